"""Calls of apply that send their unit and await its answer themselves, and hand over what they cannot finish."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import MaybeEncodingError
from pathlib import Path
from types import FrameType
from typing import Any

import faults
import jobs
import pytest
import unitlogs
from faults import Fifos, NotUnpicklable, identity, killed, make_not_picklable, square
from test_engine import ERRORS, LOSSES
from test_pool import FACES, context
from test_truth import pool_of

import pooltrace
from pooltrace.errors import PoolTerminatedError, WorkerLostError
from pooltrace.format import order
from pooltrace.pool.engine import Engine
from pooltrace.pool.pool import StdPool
from pooltrace.pool.slots import Slot
from pooltrace.tracer import session
from pooltrace.tracer._core import Gate

Judge = Callable[[str | os.PathLike[str]], order.Summary]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Slot]:
    """Each slot whose worker a call had, in order."""
    found: list[Slot] = []
    call = Slot.call

    def noted(self: Slot, *args: Any) -> Any:
        got = call(self, *args)
        if got is not False:
            found.append(self)
        return got

    monkeypatch.setattr(Slot, "call", noted)
    return found


def calling(pool: Any) -> Any:
    """A pool whose idle workers calls may have from now on."""
    assert pool.apply(square, (3,)) == 9  # asks for it, and is done by the dispatcher,
    while pool._engine.idle_slot() is None:  # which has something to do after it
        pool._engine.wake()
    return pool


def test_a_call_has_an_idle_worker_to_itself(called: list[Slot]) -> None:
    with StdPool(2) as pool:
        calling(pool)
        assert [pool.apply(square, (i,)) for i in range(50)] == [i * i for i in range(50)]
        assert pool.apply(identity, kwds={"x": 5}) == 5
        assert len(called) == 51
        assert pool.map(square, range(10)) == [i * i for i in range(10)]
        assert pool.apply(square, (3,)) == 9


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("method", faults.METHODS)
@pytest.mark.parametrize("way", LOSSES)
def test_a_worker_that_dies_while_a_call_has_it(face: Any, method: str, way: str, called: list[Slot]) -> None:
    number, code, text = LOSSES[way]
    with face(2, context=context(face, method)) as pool:
        calling(pool)
        with pytest.raises(WorkerLostError, match=text) as caught:
            pool.apply(faults.WAYS[way])
        assert (caught.value.signal, caught.value.exitcode) == (number, code)
        assert len(called) == 1
        assert pool.map(square, range(20), 1) == [i * i for i in range(20)]


@pytest.mark.parametrize("way", ERRORS)
def test_a_task_that_fails_in_a_call(way: str, called: list[Slot]) -> None:
    kind, text = ERRORS[way]
    with StdPool(1) as pool:
        calling(pool)
        with pytest.raises(kind, match=text):
            pool.apply(faults.WAYS[way])
        assert len(called) == 1
        assert pool.apply(square, (3,)) == 9


def test_what_cannot_be_pickled_in_a_call(called: list[Slot]) -> None:
    with StdPool(1) as pool:
        calling(pool)
        with pytest.raises(TypeError, match="generator"):
            pool.apply(identity, (i for i in ()))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="generator"):
            pool.apply(identity, ((i for i in ()),))
        with pytest.raises(MaybeEncodingError):
            pool.apply(make_not_picklable, (1,))
        with pytest.raises(RuntimeError, match="unpickl"):
            pool.apply(identity, (NotUnpicklable(),))
        assert pool.apply(square, (3,)) == 9
        assert len(called) == 3


def test_the_dispatcher_sees_the_death_first(called: list[Slot], fifos: Fifos) -> None:
    """It leaves the slot alone until it comes back. (The call is told of the death by a pipe of ours.)"""
    told, tell = os.pipe()
    with StdPool(1) as pool, ThreadPoolExecutor(1) as thread:
        calling(pool)
        slot = pool._engine._slots[0]
        assert slot.end is not None
        slot.end.watch(told)
        call = thread.submit(pool.apply, jobs.die_with_channel_open, fifos.names())
        fifos.wait()
        while not slot.died_lent:
            threading.Event().wait(0.001)
        assert slot.end.lent
        os.write(tell, b".")
        with pytest.raises(WorkerLostError, match="killed by SIGKILL"):
            call.result()
        fifos.open()
        assert pool.apply(square, (8,)) == 64
    assert len(called) >= 1
    os.close(told)
    os.close(tell)


def test_a_worker_that_talks_nonsense_to_a_call(called: list[Slot], fifos: Fifos) -> None:
    """The call gives it back, and the dispatcher hears of it, though nothing comes any more."""
    with StdPool(1) as pool:
        calling(pool)
        with pytest.raises(WorkerLostError, match="killed by SIGKILL"):
            pool.apply(jobs.talk_nonsense, fifos.names())
        assert pool.apply(square, (8,)) == 64


class Leaving(Gate):
    """Does something when it is left for the first time, as a signal's handler may."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._actions = [action]

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        while self._actions:
            self._actions.pop()()


def test_a_handler_that_calls_when_the_unit_was_sent(called: list[Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a pool of one worker: the unit of the second call waits behind that of the first."""
    with StdPool(1) as pool:
        calling(pool)
        found: list[int] = []
        monkeypatch.setattr(session, "begins", Leaving(lambda: found.append(pool.apply(square, (5,)))))
        assert pool.apply(square, (6,)) == 36
        assert found == [25]
        assert len(called) == 1


def test_a_handler_that_terminates_when_the_unit_was_sent(
    called: list[Slot], monkeypatch: pytest.MonkeyPatch, fifos: Fifos, capfd: pytest.CaptureFixture[str]
) -> None:
    with StdPool(1) as pool:
        calling(pool)
        monkeypatch.setattr(session, "begins", Leaving(pool.terminate))
        with pytest.raises(PoolTerminatedError):
            pool.apply(jobs.wait_between, fifos.names())
        pool.join()
    assert capfd.readouterr().err == ""


def test_calls_leave_the_dispatcher_alone(called: list[Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when it had something to do, of which the next call is no part."""
    turns: list[None] = []
    turn = Engine._turn

    def counted(self: Engine, events: Any) -> None:
        turns.append(None)
        turn(self, events)

    monkeypatch.setattr(Engine, "_turn", counted)
    with StdPool(1) as pool, ThreadPoolExecutor(1) as thread:
        calling(pool)
        done = thread.submit(lambda: [pool.apply(square, (i,)) for i in range(300)])
        for _ in range(5):
            pool._engine.wake()
        done.result()
        before = len(turns)
        for i in range(300):
            assert pool.apply(square, (i,)) == i * i
        assert len(turns) - before < 10
    assert len(called) > 300


class Interrupted(BaseException):
    pass


@pytest.fixture
def action() -> list[Callable[[], object]]:
    """What the handler of `interrupt` does; nothing: it raises."""
    return []


@pytest.fixture
def interrupt(fifos: Fifos, action: list[Callable[[], object]]) -> Iterator[threading.Thread]:
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
        fifos.wait()
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
    more: bool, called: list[Slot], fifos: Fifos, interrupt: threading.Thread
) -> None:
    """Nothing waits for its result any more; the worker is the dispatcher's, with the unit that it is in."""
    with StdPool(1) as pool:
        calling(pool)
        with pytest.raises(Interrupted):
            pool.apply(jobs.wait_between, fifos.names())
        interrupt.join()
        assert not pool._cache
        after = pool.apply_async(square, (3,)) if more else None
        pool.close()
        fifos.open()
        pool.join()
        assert after is None or after.get() == 9


def test_terminate_while_a_call_has_a_worker(called: list[Slot], fifos: Fifos) -> None:
    with StdPool(2) as pool, ThreadPoolExecutor(1) as thread:
        calling(pool)
        call = thread.submit(pool.apply, jobs.wait_between, fifos.names())
        fifos.wait()
        pool.terminate()
        with pytest.raises(PoolTerminatedError):
            call.result()
        pool.join()
    assert len(called) == 1


def test_a_handler_that_terminates_the_pool_amid_a_call(
    called: list[Slot],
    fifos: Fifos,
    interrupt: threading.Thread,
    action: list[Callable[[], object]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The worker is the dispatcher's before the handler runs, which waits for the pool's end."""
    with StdPool(2) as pool:
        calling(pool)
        action.append(pool.terminate)
        with pytest.raises(PoolTerminatedError):
            pool.apply(jobs.wait_between, fifos.names())
        pool.join()
    assert capfd.readouterr().err == ""


def test_a_handler_that_calls_again_amid_a_call(
    called: list[Slot], fifos: Fifos, interrupt: threading.Thread, action: list[Callable[[], object]]
) -> None:
    with StdPool(2) as pool:
        calling(pool)
        action.append(lambda: (found.append(pool.apply(square, (5,))), fifos.open()))
        found: list[int] = []
        assert pool.apply(jobs.wait_between, fifos.names()) is None
        assert found == [25]
    assert len(called) == 2


class Raiser:
    """Raises at the `at`-th bytecode instruction that is executed of ours, or for us, as a signal's handler may."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if not re.search("/pooltrace/(pool|tracer)/|/threading.py$|/contextlib.py$", frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise Interrupted
        return self


def test_a_call_that_is_interrupted_at_any_instruction(called: list[Slot]) -> None:
    """Nothing waits for its result, its worker goes on, the pool ends: whatever had been done until then."""
    at, interrupted = 0, True
    with StdPool(1) as pool:
        calling(pool)
        while interrupted:
            at += 1
            before = sys.gettrace()
            sys._getframe().f_trace_opcodes = True  # CPython 3.12 asks for this before it traces
            sys.settrace(Raiser(at))
            try:
                pool.apply(square, (3,))
                interrupted = False
            except Interrupted:
                pass
            finally:
                sys.settrace(before)
            assert not pool._cache, f"at instruction {at}"
            if at % 10 == 0:
                assert pool.map(square, [4, 5]) == [16, 25]
            calling(pool)
        pool.close()
        pool.join()
    assert at > 300
    assert called
    assert session.begins.inside == 0


def test_the_users_pickling_may_use_the_pool(called: list[Slot], tmp_path: Path, judge: Judge) -> None:
    """It runs before the call has the worker, under no lock, and outside of the wait that the trace shows."""
    with StdPool(1) as pool:
        calling(pool)

        class Asks:
            def __reduce__(self) -> tuple[object, ...]:
                return identity, (pool.apply(square, (6,)),)

        with pooltrace.trace(tmp_path / "t.trace"):
            assert pool.apply(identity, (Asks(),)) == 36
        assert len(called) == 2
    assert judge(tmp_path / "t.trace").tasks == 2


def test_an_interrupt_while_the_result_is_unpickled_is_the_callers(called: list[Slot]) -> None:
    with StdPool(1) as pool:
        calling(pool)
        with pytest.raises(KeyboardInterrupt):
            pool.apply(identity, (InterruptsParent(os.getpid()),))
        assert not pool._cache
        assert pool.apply(square, (3,)) == 9


class InterruptsParent:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> tuple[object, ...]:
        return interrupts, (self.pid,)


def interrupts(pid: int) -> InterruptsParent:
    made = InterruptsParent(pid)
    if os.getpid() == pid:
        raise KeyboardInterrupt
    return made


def test_close_waits_for_a_worker_that_a_call_has(called: list[Slot], fifos: Fifos) -> None:
    with StdPool(2) as pool, ThreadPoolExecutor(2) as thread:
        calling(pool)
        call = thread.submit(pool.apply, jobs.wait_between, fifos.names())
        fifos.wait()
        pool.close()
        end = thread.submit(pool.join)
        fifos.open()
        assert call.result() is None
        end.result()
    with pytest.raises(ValueError, match="Pool not running"):
        pool.apply(square, (3,))


def test_what_comes_meanwhile_gets_the_worker_when_it_is_back(called: list[Slot], fifos: Fifos) -> None:
    with StdPool(1) as pool, ThreadPoolExecutor(1) as thread:
        calling(pool)
        call = thread.submit(pool.apply, jobs.wait_between, fifos.names())
        fifos.wait()
        results = pool.map_async(square, range(10), 1)
        fifos.open()
        assert call.result() is None
        assert results.get() == [i * i for i in range(10)]


@pytest.mark.parametrize("workers", [1, 2])
def test_calls_of_many_threads_and_maps_at_once(workers: int, called: list[Slot]) -> None:
    with StdPool(workers) as pool, ThreadPoolExecutor(6) as threads:

        def calls(number: int) -> list[int]:
            return [pool.apply(square, (number * 1000 + i,)) for i in range(100)]

        def maps(number: int) -> list[int]:
            return [x for _ in range(10) for x in pool.map(square, range(30), 1)]

        calling(pool)
        called = [threads.submit(calls, number) for number in range(4)]
        mapped = [threads.submit(maps, number) for number in range(2)]
        for number, call in enumerate(called):
            assert call.result() == [(number * 1000 + i) ** 2 for i in range(100)]
        for result in mapped:
            assert result.result() == [x * x for _ in range(10) for x in range(30)]
        assert called
        assert not pool._cache


def test_workers_that_serve_one_task_each(called: list[Slot]) -> None:
    with StdPool(2, maxtasksperchild=1) as pool:
        pids = [pool.apply(os.getpid) for _ in range(20)]
    assert len(set(pids)) == 20


def test_a_subclass_that_overrides_apply_async_is_asked(called: list[Slot]) -> None:
    asked = []

    class Own(StdPool):
        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(args)
            return super().apply_async(*args, **kwargs)

    with Own(1) as pool:
        assert [pool.apply(square, (i,)) for i in range(5)] == [i * i for i in range(5)]
    assert (len(asked), called) == (5, [])


def test_large_things_cross_a_call(called: list[Slot]) -> None:
    data = os.urandom(5 << 20)
    with StdPool(1) as pool:
        calling(pool)
        assert pool.apply(identity, (data,)) == data
        assert len(called) == 1


def test_the_trace_shows_the_call_as_any_other(called: list[Slot], tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pool_of("multiprocessing", "fork", 1) as pool:
        calling(pool)
        with pooltrace.trace(path):
            notes = [pool.apply(jobs.note, (i,)) for i in range(20)]
            with pytest.raises(WorkerLostError):
                pool.apply(killed)
            assert pool.map(square, range(3)) == [0, 1, 4]
    assert len(called) == 21
    found = judge(path)
    assert found.tasks == 22
    events = list(order.read_events(path))
    blocked = [e for e in events if e.name == "GoBlock" and e.string("reason") == "waiting for a result"]
    assert len(blocked) >= 22
    assert blocked[0].stack()[0].function.endswith(".apply")
    begins = [e.time for e in events if e.name == "UserRegionBegin" and e.string("name") == "jobs.note"]
    assert all(begin <= note.begin for begin, note in zip(begins, notes, strict=True))
    assert [e.string("key") for e in events if unitlogs.is_users(e)] == ["worker lost"]


@pytest.mark.parametrize("arguments", [((1,), None), ((1,), [("a", 1)]), (5, {}), (None, {}), ((1,), {1: 2})])
def test_arguments_that_are_none_raise_what_the_stock_pools_raise(arguments: tuple[Any, Any]) -> None:
    with pooltrace.StdPool(1) as pool, multiprocessing.pool.Pool(1) as stock:
        for one in (stock, pool):
            with pytest.raises(TypeError):
                one.apply(square, *arguments)
            with pytest.raises(TypeError):
                one.apply_async(square, *arguments).get()
        assert pool.apply(square, [3], {}) == 9
