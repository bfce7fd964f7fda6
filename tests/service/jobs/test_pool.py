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
