"""What a process needs once but would hold for ever, done in a fork of it."""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1
_PART = 1 << 20


def run_apart(function: Callable[[], Result], *, seconds: float) -> Result | None:
    """What `function` returns, pickled on the way; None where it raises, or takes longer than `seconds`.

    Modules that it imports and memory that it takes are gone afterwards. Call it before anything has computed
    with several threads: a fork has none of them, and waits for them for ever (hence `seconds`).
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of any other thread; those that there are here only wait for their input.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _answer(function, writing, parent)
    os.close(writing)
    answer = _read(reading, time.monotonic() + seconds)
    os.close(reading)
    if answer is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if answer is None or status != 0:
        return None
    result: Result = pickle.loads(answer)  # our own fork's, over a pipe that nobody else has
    return result


def _answer(function: Callable[[], object], writing: int, parent: int) -> None:
    """The fork's part. It ends here whatever happens: its parent's clean-up is not its business."""
    try:
        _end_with_parent(parent)
        answer = memoryview(pickle.dumps(function()))
        while answer:
            answer = answer[os.write(writing, answer) :]
    except BaseException:
        os._exit(1)
    os._exit(0)


def _end_with_parent(parent: int) -> None:
    """A builder that is killed must not be survived by something that holds its pipes open."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _read(reading: int, deadline: float) -> bytes | None:
    """Everything until the other end closes; None where that takes too long."""
    parts: list[bytes] = []
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            part = os.read(reading, _PART)
            if not part:
                return b"".join(parts)
            parts.append(part)
    return None
