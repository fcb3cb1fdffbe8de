"""Ways to go wrong in a worker, as functions for a pool; how it is held at a point; when a test has to end."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

LIMIT = 120.0  # seconds in which every test has to end, see conftest
METHODS = ("fork", "spawn", "forkserver")


class Fifos(NamedTuple):
    """Two FIFOs: what passes says that it is there, and waits until it may go on."""

    begun: Path
    go: Path

    def names(self) -> tuple[str, str]:
        return str(self.begun), str(self.go)

    def wait(self) -> None:
        self.begun.read_bytes()

    def open(self) -> None:
        self.go.write_bytes(b"")


def square(x: int) -> int:
    return x * x


def add(x: int, y: int = 0) -> int:
    return x + y


def identity(x: Any) -> Any:
    return x


def size(x: Any) -> int:
    return len(x)


def add_size(x: Any, y: int) -> int:
    return len(x) + y


def getpid(_: object = None) -> int:
    return os.getpid()


def run_short(spare: int) -> None:
    """From now on its process may have so many bytes more than it has."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + spare, resource.getrlimit(resource.RLIMIT_AS)[1]))


def killed_at(which: Any, x: Any) -> Any:
    """Kills its process if x is that."""
    if x == which:
        killed()
    return x


def killed_at_any(*_: Any) -> None:
    killed()


def unless_three(way: str, x: int) -> int:
    """Squares x; 3 goes wrong, in the way that is named."""
    if x == 3:
        WAYS[way]()
    return x * x


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def exited() -> None:
    os._exit(7)


def crashed() -> None:
    faulthandler.disable()
    ctypes.string_at(0)


def left() -> None:
    sys.exit(3)


def interrupted() -> None:
    raise KeyboardInterrupt


def interrupted_by_signal() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(LIMIT)


def raised() -> None:
    raise LookupError("three")


def unreadable() -> None:
    raise TwoArguments(1, 2)


def closed_all() -> None:
    os.closerange(3, 256)


def forked() -> None:
    """Forks; the child returns into the worker's code, as a careless program's would."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)


WAYS = {
    way.__name__: way
    for way in (
        killed,
        exited,
        crashed,
        left,
        interrupted,
        interrupted_by_signal,
        raised,
        unreadable,
        closed_all,
        forked,
    )
}


class TwoArguments(Exception):
    """Cannot be unpickled: its args are one, its constructor wants two."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} {b}")


class NotPicklable:
    def __reduce__(self) -> tuple[object, ...]:
        raise RuntimeError("cannot be pickled")


class NotUnpicklable:
    """Pickles well; unpickling it raises."""

    def __reduce__(self) -> tuple[object, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise RuntimeError("cannot be unpickled")


class KillsReader:
    """Unpickling it kills the process."""

    def __reduce__(self) -> tuple[object, ...]:
        return killed, ()


def make_not_picklable(_: object) -> NotPicklable:
    return NotPicklable()


def make_not_unpicklable(_: object) -> NotUnpicklable:
    return NotUnpicklable()


def make_lambda(_: object) -> Any:
    return lambda: 42


def failing_initializer() -> None:
    raise ValueError("no licence")


def dying_initializer() -> None:
    os._exit(9)


STATE: list[int] = []


def remember(*values: int) -> None:
    STATE.extend(values)


def remembered(_: object = None) -> list[int]:
    return STATE


def wait_for_file(path: str) -> str:
    """Waits until the file is there (the handshake of tests that hold a worker busy), and returns its content."""
    while not os.path.exists(path):
        time.sleep(0.002)
    with open(path) as file:
        return file.read()


def touch(path: str) -> str:
    with open(path + ".part", "w") as file:
        file.write("done")
    os.rename(path + ".part", path)
    return path


def touch_and_hang(path: str) -> None:
    touch(path)
    threading.Event().wait()


def ignore_terminate(path: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    touch_and_hang(path)


def stop_self(path: str) -> None:
    touch(path)
    os.kill(os.getpid(), signal.SIGSTOP)
