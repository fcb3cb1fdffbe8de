"""Functions that pools of the tests run, and what they note about themselves; importable under every start method."""

from __future__ import annotations

import os
import time
from typing import NamedTuple


class Note(NamedTuple):
    """What an item says of itself: where it ran, as which number, from when to when (perf_counter_ns)."""

    pid: int
    number: int
    begin: int
    end: int


def note(number: int) -> Note:
    """Does nothing else."""
    begin = time.perf_counter_ns()
    return Note(os.getpid(), number, begin, time.perf_counter_ns())


def note_if_alive(number: int, victim: int) -> Note:
    """The same, but one number kills its worker."""
    if number == victim:
        os.kill(os.getpid(), 9)
    return note(number)


def wait_between(begun: str, never: str) -> None:
    """Says that it runs, and waits for what never comes. (Two FIFOs.)"""
    with open(begun, "wb"):
        pass
    with open(never, "rb"):
        pass


def threads(_: int) -> int:
    """How many threads its process has."""
    return len(os.listdir("/proc/self/task"))


def fail() -> None:
    """An initializer that fails."""
    raise ValueError("no licence")
