"""Functions that pools of the tests run, and what they note about themselves; importable under every start method."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
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


def _sockets() -> list[int]:
    fds = [int(name) for name in os.listdir("/proc/self/fd")]
    return [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode)]


def die_with_channel_open(begun: str, go: str) -> None:
    """Kills its process; a child keeps the sockets open until it may go on, so that only the death itself tells."""
    kept = [os.dup(fd) for fd in _sockets()]
    if os.fork() == 0:
        with open(begun, "wb"):
            pass
        with open(go, "rb"):
            os._exit(len(kept) & 1)
    os.kill(os.getpid(), 9)


def talk_nonsense(begun: str, never: str) -> None:
    """Writes into its channel, and waits for what never comes."""
    for fd in _sockets():
        with contextlib.suppress(OSError):
            socket.socket(fileno=os.dup(fd)).send(b"\xff" * 64)
    wait_between(begun, never)


def threads(_: int) -> int:
    """How many threads its process has."""
    return len(os.listdir("/proc/self/task"))


def fail() -> None:
    """An initializer that fails."""
    raise ValueError("no licence")
