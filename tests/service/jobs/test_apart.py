"""Forks that work for their parent."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.jobs.apart import run_apart

LONG = "x" * 3_000_000


def test_the_result_comes_back_and_nothing_else_does() -> None:
    found: list[int] = []

    def work() -> tuple[int, str]:
        found.append(1)
        return os.getpid(), LONG

    answer = run_apart(work, seconds=60)
    assert answer is not None
    pid, text = answer
    assert pid != os.getpid()
    assert text == LONG
    assert found == []


def test_failures_are_none() -> None:
    def fail() -> int:
        raise ValueError

    def end() -> int:
        os._exit(3)

    assert run_apart(fail, seconds=60) is None
    assert run_apart(end, seconds=60) is None
    assert run_apart(lambda: lambda: 1, seconds=60) is None  # not to be pickled


def test_endless_work_is_ended() -> None:
    assert run_apart(lambda: time.sleep(3600), seconds=0.2) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_fork_does_not_outlive_its_parent() -> None:
    program = (
        "import os, time; from service.jobs.apart import run_apart\n"
        "def work(): print(os.getpid(), flush=True); time.sleep(3600)\n"
        "run_apart(work, seconds=3600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        fork = int(process.stdout.readline())
        process.kill()
        process.wait()
        assert process.stdout.read() == b""  # at once: the fork held the other end
    deadline = time.monotonic() + 30
    while Path(f"/proc/{fork}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{fork}").exists()
