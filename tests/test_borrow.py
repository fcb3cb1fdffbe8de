"""Borrowed workers: a call of apply that does it all itself, and hands over what it cannot finish."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import MaybeEncodingError
from pathlib import Path
from typing import Any

import faults
import jobs
import pytest
from faults import NotUnpicklable, identity, killed, make_not_picklable, square
from test_engine import ERRORS, LOSSES
from test_pool import FACES, context
from test_truth import pool_of

import pooltrace
from pooltrace.errors import PoolTerminatedError, WorkerLostError
from pooltrace.format import order
from pooltrace.pool.borrow import Borrowed, Lending
from pooltrace.pool.jobs import Job
from pooltrace.pool.pool import StdPool
from pooltrace.pool.slots import Slot

Judge = Callable[[str | os.PathLike[str]], order.Summary]


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> list[Slot]:
    """Each slot that was lent and used, in order."""
    found: list[Slot] = []
    run = Borrowed.run

    def noted(self: Borrowed, *args: Any) -> None:
        found.append(self._slot)
        run(self, *args)

    monkeypatch.setattr(Lending, "enabled", True)
    monkeypatch.setattr(Borrowed, "run", noted)
    return found


def borrowing(pool: Any, lent: list[Slot]) -> Any:
    """A pool that lends from now on: it begins to when it is first asked, and has seen that its workers are idle."""
    while not lent:
        assert pool.apply(square, (3,)) == 9
    lent.clear()
    return pool


def test_a_call_borrows_an_idle_worker(lent: list[Slot]) -> None:
    with StdPool(2) as pool:
        borrowing(pool, lent)
        assert [pool.apply(square, (i,)) for i in range(50)] == [i * i for i in range(50)]
        assert pool.apply(identity, kwds={"x": 5}) == 5
        assert len(lent) == 51
        assert pool.map(square, range(10)) == [i * i for i in range(10)]
        assert pool.apply(square, (3,)) == 9


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("method", faults.METHODS)
@pytest.mark.parametrize("way", LOSSES)
def test_a_worker_that_dies_while_it_is_lent(face: Any, method: str, way: str, lent: list[Slot]) -> None:
    number, code, text = LOSSES[way]
    with face(2, context=context(face, method)) as pool:
        borrowing(pool, lent)
        with pytest.raises(WorkerLostError, match=text) as caught:
            pool.apply(faults.WAYS[way])
        assert (caught.value.signal, caught.value.exitcode) == (number, code)
        assert len(lent) == 1
        assert pool.map(square, range(20), 1) == [i * i for i in range(20)]


@pytest.mark.parametrize("way", ERRORS)
def test_a_task_that_fails_while_its_worker_is_lent(way: str, lent: list[Slot]) -> None:
    kind, text = ERRORS[way]
    with StdPool(1) as pool:
        borrowing(pool, lent)
        with pytest.raises(kind, match=text):
            pool.apply(faults.WAYS[way])
        assert len(lent) == 1
        assert pool.apply(square, (3,)) == 9


def test_what_cannot_be_pickled_when_a_worker_is_lent(lent: list[Slot]) -> None:
    with StdPool(1) as pool:
        borrowing(pool, lent)
        with pytest.raises(TypeError, match="generator"):
            pool.apply(identity, (i for i in ()))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="generator"):
            pool.apply(identity, ((i for i in ()),))
        with pytest.raises(MaybeEncodingError):
            pool.apply(make_not_picklable, (1,))
        with pytest.raises(RuntimeError, match="unpickl"):
            pool.apply(identity, (NotUnpicklable(),))
        assert pool.apply(square, (3,)) == 9
        assert len(lent) == 5


def test_a_worker_that_is_dead_when_it_is_lent(lent: list[Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit has not begun: another worker runs it."""
    post = Slot.post

    def late(self: Slot, *args: Any) -> None:
        monkeypatch.undo()
        assert self.process is not None
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        post(self, *args)

    with StdPool(1) as pool:
        borrowing(pool, lent)
        monkeypatch.setattr(Slot, "post", late)
        assert pool.apply(square, (7,)) == 49
        assert pool.apply(square, (8,)) == 64


def test_the_dispatcher_sees_the_death_first(lent: list[Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves the slot alone until it comes back."""
    give_back, seen = Lending.give_back, threading.Event()

    def late(self: Lending, slot: Slot) -> None:
        while not slot.died_lent:
            seen.wait(0.001)
        give_back(self, slot)

    with StdPool(1) as pool:
        borrowing(pool, lent)
        monkeypatch.setattr(Lending, "give_back", late)
        with pytest.raises(WorkerLostError):
            pool.apply(killed)
        monkeypatch.undo()
        assert pool.apply(square, (8,)) == 64


class Interrupted(Exception):
    pass


class Task:
    """A task that is in a worker until it is let go."""

    def __init__(self, folder: Path) -> None:
        self._begun, self._go = folder / "begun", folder / "go"
        os.mkfifo(self._begun)
        os.mkfifo(self._go)
        self.call = (jobs.wait_between, (str(self._begun), str(self._go)))

    def wait(self) -> None:
        self._begun.read_bytes()

    def end(self) -> None:
        self._go.write_bytes(b"")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(tmp_path)


@pytest.fixture
def action() -> list[Callable[[], object]]:
    """What the handler of `interrupt` does; nothing: it raises."""
    return []


@pytest.fixture
def interrupt(task: Task, action: list[Callable[[], object]]) -> Iterator[threading.Thread]:
    """Interrupts the main thread once, when the task runs."""
    handled = threading.Event()

    def handler(number: int, frame: object) -> None:
        if handled.is_set():
            return
        handled.set()
        if not action:
            raise Interrupted
        action[0]()

    def run() -> None:
        task.wait()
        while not handled.wait(0.01):  # one that comes just before a wait does not end it
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=run)
    thread.start()
    yield thread
    thread.join()
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("more", [True, False])
def test_a_call_that_is_interrupted_hands_its_worker_over(
    more: bool, lent: list[Slot], task: Task, interrupt: threading.Thread
) -> None:
    with StdPool(1) as pool:
        borrowing(pool, lent)
        with pytest.raises(Interrupted):
            pool.apply(*task.call)
        interrupt.join()
        assert len(pool._cache) == 1  # its result will come
        after = pool.apply_async(square, (3,)) if more else None
        pool.close()
        task.end()
        pool.join()
        assert after is None or after.get() == 9


def test_terminate_while_a_worker_is_lent(lent: list[Slot], task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its channel is the borrower's until its end."""
    stop, stopped = Slot.stop, []

    def noted(self: Slot) -> None:
        stopped.append(self.lent)
        stop(self)

    monkeypatch.setattr(Slot, "stop", noted)
    with StdPool(2) as pool, ThreadPoolExecutor(1) as thread:
        borrowing(pool, lent)
        call = thread.submit(pool.apply, *task.call)
        task.wait()
        pool.terminate()
        with pytest.raises(PoolTerminatedError):
            call.result()
        pool.join()
    assert len(lent) == 1
    assert stopped
    assert not any(stopped)


def test_a_handler_that_terminates_the_pool_amid_a_call(
    lent: list[Slot], task: Task, interrupt: threading.Thread, action: list[Callable[[], object]], capfd: Any
) -> None:
    """The worker is taken from the call, which cannot go on before the handler returns."""
    with StdPool(2) as pool:
        borrowing(pool, lent)
        action.append(pool.terminate)
        with pytest.raises(PoolTerminatedError):
            pool.apply(*task.call)
        pool.join()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("when", ["post", "flush"])
def test_a_call_that_is_interrupted_before_its_unit_is_sent(
    when: str, lent: list[Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result is given up, or brought by the dispatcher; the pool does not wait for it for ever."""

    def stop(self: Slot, *args: Any) -> None:
        monkeypatch.undo()
        raise Interrupted

    with StdPool(1) as pool:
        borrowing(pool, lent)
        monkeypatch.setattr(Slot, when, stop)
        with pytest.raises(Interrupted):
            pool.apply(square, (3,))
        assert pool.apply_async(square, (4,)).get() == 16
        pool.close()
        pool.join()


def test_a_call_that_is_interrupted_before_its_job_begins(lent: list[Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Job, *args: Any) -> None:
        monkeypatch.undo()
        raise Interrupted

    with StdPool(1) as pool:
        borrowing(pool, lent)
        monkeypatch.setattr(Job, "__init__", stop)
        with pytest.raises(Interrupted):
            pool.apply(square, (3,))
        assert pool.apply(square, (4,)) == 16
        pool.close()
        pool.join()


def test_close_waits_for_a_worker_that_is_lent(lent: list[Slot], task: Task) -> None:
    with StdPool(2) as pool, ThreadPoolExecutor(2) as thread:
        borrowing(pool, lent)
        call = thread.submit(pool.apply, *task.call)
        task.wait()
        pool.close()
        end = thread.submit(pool.join)
        task.end()
        assert call.result() is None
        end.result()
    with pytest.raises(ValueError, match="Pool not running"):
        pool.apply(square, (3,))


def test_what_comes_meanwhile_gets_the_worker_when_it_is_back(lent: list[Slot], task: Task) -> None:
    with StdPool(1) as pool, ThreadPoolExecutor(1) as thread:
        borrowing(pool, lent)
        call = thread.submit(pool.apply, *task.call)
        task.wait()
        results = pool.map_async(square, range(10), 1)
        task.end()
        assert call.result() is None
        assert results.get() == [i * i for i in range(10)]


@pytest.mark.parametrize("workers", [1, 2])
def test_calls_of_many_threads_and_maps_at_once(workers: int, lent: list[Slot]) -> None:
    with StdPool(workers) as pool, ThreadPoolExecutor(6) as threads:

        def calls(number: int) -> list[int]:
            return [pool.apply(square, (number * 1000 + i,)) for i in range(100)]

        def maps(number: int) -> list[int]:
            return [x for _ in range(10) for x in pool.map(square, range(30), 1)]

        borrowing(pool, lent)
        called = [threads.submit(calls, number) for number in range(4)]
        mapped = [threads.submit(maps, number) for number in range(2)]
        for number, call in enumerate(called):
            assert call.result() == [(number * 1000 + i) ** 2 for i in range(100)]
        for result in mapped:
            assert result.result() == [x * x for _ in range(10) for x in range(30)]
        assert lent
        assert not pool._cache


def test_workers_that_serve_one_task_each(lent: list[Slot]) -> None:
    with StdPool(2, maxtasksperchild=1) as pool:
        pids = [pool.apply(os.getpid) for _ in range(20)]
    assert len(set(pids)) == 20


def test_a_subclass_that_overrides_apply_async_is_asked(lent: list[Slot]) -> None:
    asked = []

    class Own(StdPool):
        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(args)
            return super().apply_async(*args, **kwargs)

    with Own(1) as pool:
        assert [pool.apply(square, (i,)) for i in range(5)] == [i * i for i in range(5)]
    assert (len(asked), lent) == (5, [])


def test_large_things_cross_a_lent_worker(lent: list[Slot]) -> None:
    data = os.urandom(5 << 20)
    with StdPool(1) as pool:
        borrowing(pool, lent)
        assert pool.apply(identity, (data,)) == data
        assert len(lent) == 1


def test_the_trace_shows_the_call_as_any_other(lent: list[Slot], tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pool_of("multiprocessing", "fork", 1) as pool:
        borrowing(pool, lent)
        with pooltrace.trace(path):
            notes = [pool.apply(jobs.note, (i,)) for i in range(20)]
            with pytest.raises(WorkerLostError):
                pool.apply(killed)
            assert pool.map(square, range(3)) == [0, 1, 4]
    assert len(lent) == 21
    found = judge(path)
    assert found.tasks == 22
    events = list(order.read_events(path))
    blocked = [e for e in events if e.name == "GoBlock" and e.string("reason") == "waiting for a result"]
    assert len(blocked) >= 22
    assert blocked[0].stack()[0].function.endswith("Face.apply")
    begins = [e.time for e in events if e.name == "UserRegionBegin" and e.string("name") == "jobs.note"]
    assert all(begin <= note.begin for begin, note in zip(begins, notes, strict=True))
    assert [e.string("key") for e in events if e.name == "UserLog"] == ["worker lost"]
