"""Builder processes that hang or die; stand-ins, since real ones do neither when asked."""

import asyncio
import sys
from pathlib import Path

import pytest

from service.jobs.pool import BuilderDiedError, BuilderPool, BuildTimeoutError


@pytest.mark.parametrize(
    ("script", "error", "starts"),
    [("exec sleep 600", BuildTimeoutError, 1), ("exit 1", BuilderDiedError, 2)],
    ids=["hangs", "dies"],
)
def test_a_builder_that_does_not_answer_is_ended_and_its_place_is_free_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, error: type[Exception], starts: int
) -> None:
    started = tmp_path / "started"
    builder = tmp_path / "builder"
    builder.write_text(f"#!/bin/sh\necho >> {started}\n{script}\n")
    builder.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(builder))

    async def main() -> None:
        pool = BuilderPool(count=1, queue_limit=0, timeout=1, arguments=[])
        for _ in range(2):  # the second on the place that the first has left
            pool.reserve()
            async with asyncio.timeout(60):
                with pytest.raises(error):
                    await pool.run({}, lambda stage, fraction: None)
            assert pool.pids == []

    asyncio.run(main())
    assert len(started.read_text()) == 2 * starts


@pytest.mark.parametrize("said", [None, "ACTIVE"])
def test_threads_of_a_builder_do_not_spin_unless_the_operator_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str | None
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", said)
    builder = tmp_path / "builder"
    builder.write_text("""#!/bin/sh\nread job\necho '{"outcome": {"policy": "'$OMP_WAIT_POLICY'"}}'\n""")
    builder.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(builder))

    async def main() -> None:
        pool = BuilderPool(count=1, queue_limit=0, timeout=60, arguments=[])
        pool.reserve()
        outcome = await pool.run({}, lambda stage, fraction: None)
        assert outcome == {"policy": said or "PASSIVE"}
        await pool.stop()

    asyncio.run(main())
