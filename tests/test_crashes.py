"""Each way to die at each stage: the one unit fails by name, all others are right and ran once, the trace shows it."""

from __future__ import annotations

import fcntl
import functools
import os
import signal
import struct
import termios
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.pool import MaybeEncodingError
from pathlib import Path
from typing import Any

import pytest
from faults import METHODS, WAYS, Fifos, getpid, run_short, square
from test_pool import context

import pooltrace
from pooltrace.errors import PoolTerminatedError, TaskExitError, TaskTimeoutError, WorkerLostError
from pooltrace.format import order
from pooltrace.pool.pool import StdPool
from pooltrace.pool.slots import Slot

Judge = Callable[[str | os.PathLike[str]], order.Summary]
DEATHS = {
    "killed": (signal.SIGKILL, None),
    "crashed": (signal.SIGSEGV, None),
    "exited": (None, 7),
}
"""Signal and exit code of each way that ends the process."""
ERRORS: dict[tuple[str, str], type[BaseException]] = {
    ("unpickling", "left"): TaskExitError,
    ("running", "left"): TaskExitError,
    ("pickling", "left"): MaybeEncodingError,
    ("unpickling", "unreadable"): MaybeEncodingError,
    ("running", "unreadable"): MaybeEncodingError,
    ("pickling", "unreadable"): MaybeEncodingError,
    ("unpickling", "short"): MemoryError,
    ("running", "short"): MemoryError,
    ("pickling", "short"): MaybeEncodingError,
}
"""What becomes of the unit by a way that the process survives."""


def go_wrong(way: str, parent: int) -> int:
    if os.getpid() == parent:
        return 3
    if way == "short":
        run_short(16 << 20)
        return len(bytes(1 << 30))
    WAYS[way]()
    return 3


class GoesWrong:
    """Where it is unpickled."""

    def __init__(self, way: str, parent: int) -> None:
        self._parts = way, parent

    def __reduce__(self) -> tuple[object, ...]:
        return go_wrong, self._parts


class GoesWrongWhenPickled:
    def __init__(self, way: str, parent: int) -> None:
        self._parts = way, parent

    def __reduce__(self) -> tuple[object, ...]:
        go_wrong(*self._parts)
        return GoesWrongWhenPickled, self._parts


def work(directory: str, stage: str, way: str, parent: int, x: int) -> Any:
    """The square, and a mark that it ran: the second time there is one already."""
    os.close(os.open(os.path.join(directory, str(x)), os.O_CREAT | os.O_EXCL))
    if x == 3 and stage == "running":
        go_wrong(way, parent)
    if x == 3 and stage == "pickling":
        return GoesWrongWhenPickled(way, parent)
    return x * x


def outcomes(results: Any, count: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(count):
        try:
            found.append(next(results))
        except BaseException as error:
            found.append(error)
    return found


def losses(path: Path) -> int:
    return sum(e.name == "UserLog" and e.string("key") == "worker lost" for e in order.read_events(path))


@pytest.mark.parametrize("way", [*DEATHS, "left", "unreadable", "short"])
@pytest.mark.parametrize("stage", ["unpickling", "running", "pickling"])
@pytest.mark.parametrize("method", METHODS)
def test_a_worker_that_goes_wrong_with_its_unit(
    method: str, stage: str, way: str, tmp_path: Path, judge: Judge
) -> None:
    path, marks, parent = tmp_path / "t.trace", tmp_path / "marks", os.getpid()
    marks.mkdir()
    with StdPool(2, context=context(StdPool, method)) as pool, pooltrace.trace(path):
        run = functools.partial(work, str(marks), stage, way, parent)
        items = [GoesWrong(way, parent) if x == 3 and stage == "unpickling" else x for x in range(8)]
        found = outcomes(pool.imap(run, items), 8)
        error = found.pop(3)
        assert found == [x * x for x in range(8) if x != 3]
        if way in DEATHS:
            assert isinstance(error, WorkerLostError)
            assert (error.signal, error.exitcode) == DEATHS[way]
            assert "test_crashes.work (item 3" in str(error)
        else:
            assert type(error) is ERRORS[stage, way], error
        assert pool.map(square, range(20), 1) == [x * x for x in range(20)]
    judge(path)
    assert losses(path) == (way in DEATHS)
    ran = {int(mark.name) for mark in marks.iterdir()}
    assert ran == set(range(8)) - ({3} if stage == "unpickling" else set())


def wait_and_go_wrong(begun: str, go: str, way: str, parent: int) -> None:
    """In a thread of a worker's."""
    with open(begun, "wb"):
        pass
    with open(go, "rb"):
        pass
    go_wrong(way, parent)


def start_thread(begun: str, go: str, way: str, parent: int, size: int = 0) -> bytes:
    threading.Thread(target=wait_and_go_wrong, args=(begun, go, way, parent), daemon=True).start()
    return bytes(size)


@pytest.mark.parametrize("way", DEATHS)
@pytest.mark.parametrize("method", METHODS)
def test_a_worker_that_dies_idle(method: str, way: str, fifos: Fifos, tmp_path: Path, judge: Judge) -> None:
    """No unit is lost by it."""
    path = tmp_path / "t.trace"
    with StdPool(1, context=context(StdPool, method)) as pool, pooltrace.trace(path):
        assert pool.apply(start_thread, (*fifos.names(), way, os.getpid())) == b""
        process = pool._pool[0]
        fifos.wait()
        fifos.open()
        wait([process.sentinel])
        assert pool.map(square, range(20), 1) == [x * x for x in range(20)]
    judge(path)
    assert losses(path) == 1


@pytest.mark.parametrize("way", DEATHS)
@pytest.mark.parametrize("method", METHODS)
def test_a_worker_that_dies_while_it_sends(
    method: str, way: str, fifos: Fifos, tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The channel is full, and nobody reads it until then; a part of the result is there."""
    path = tmp_path / "t.trace"
    with StdPool(1, context=context(StdPool, method)) as pool, pooltrace.trace(path):
        assert pool.apply(square, (3,)) == 9
        monkeypatch.setattr(Slot, "receive", lambda slot: [])
        call = pool.apply_async(start_thread, (*fifos.names(), way, os.getpid(), 64 << 20))
        fifos.wait()
        while unread(pool._engine._slots[0].channel.fileno()) < 1000:
            threading.Event().wait(0.001)
        fifos.open()
        with pytest.raises(WorkerLostError) as caught:
            call.get()
        assert (caught.value.signal, caught.value.exitcode) == DEATHS[way]
        monkeypatch.undo()
        assert pool.map(square, range(20), 1) == [x * x for x in range(20)]
    judge(path)
    assert losses(path) == 1


def unread(fd: int) -> int:
    """Bytes that are there to be read."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_that_dies_before_it_claims_what_it_was_sent(method: str, tmp_path: Path, judge: Judge) -> None:
    """All of it runs elsewhere."""
    path, marks = tmp_path / "t.trace", tmp_path / "marks"
    marks.mkdir()
    with StdPool(1, context=context(StdPool, method)) as pool, pooltrace.trace(path):
        victim = pool.apply(getpid)
        os.kill(victim, signal.SIGSTOP)
        call = pool.map_async(functools.partial(work, str(marks), "", "", 0), range(8), 1)
        end = pool._engine._slots[0].end
        assert end is not None
        while not end.inflight:
            threading.Event().wait(0.001)
        os.kill(victim, signal.SIGKILL)
        assert call.get() == [x * x for x in range(8)]
        assert pool.apply(getpid) != victim
    judge(path)
    assert losses(path) == 1


LOCKS: list[Any] = []


def keep_lock(lock: Any) -> None:
    LOCKS.append(lock)


def take_lock_and_die() -> None:
    LOCKS[0].acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def with_lock(x: int) -> int:
    with LOCKS[0]:
        return x


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_that_dies_with_a_lock_of_the_users(method: str, tmp_path: Path, judge: Judge) -> None:
    """Nobody can give that back. Who does not need it goes on, who waits for it has a limit if he wants one, and the
    pool ends at once all the same."""
    ctx, path = context(StdPool, method), tmp_path / "t.trace"
    with pooltrace.trace(path), StdPool(2, keep_lock, (ctx.Lock(),), context=ctx, task_timeout=1.0) as pool:
        assert pool.map(with_lock, range(3), 1) == [0, 1, 2]
        with pytest.raises(WorkerLostError, match="SIGKILL"):
            pool.apply(take_lock_and_die)
        waiting = pool.apply_async(with_lock, (1,))
        assert pool.map(square, range(20), 1) == [x * x for x in range(20)]
        with pytest.raises(TaskTimeoutError, match="with_lock"):
            waiting.get()
        assert pool.apply(square, (3,)) == 9
    judge(path)
    assert losses(path) >= 2  # both workers
    with StdPool(2, keep_lock, (ctx.Lock(),), context=ctx) as pool:
        with pytest.raises(WorkerLostError):
            pool.apply(take_lock_and_die)
        waiting = pool.apply_async(with_lock, (1,))
        assert pool.map(square, range(20), 1) == [x * x for x in range(20)]
        pool.terminate()
        with pytest.raises(PoolTerminatedError):
            waiting.get()
