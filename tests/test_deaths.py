"""Workers that die in every state in which a tracer can be, before and after switches: nothing is lost or left open."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import unitlogs
from crew import Worker, crew, flood, run_unit

from pooltrace import read_trace, start_trace, stop_trace, summary, trace
from pooltrace.format import order
from pooltrace.format.order import Summary
from pooltrace.tracer import emit, session

Judge = Callable[[str | os.PathLike[str]], Summary]
HEADERS = ["1.22", "1.23", "1.25", "1.26"]


# --- in the worker: into a state, and stay there --------------------------------------------------


def say(count: int, size: int = 1) -> int:
    for i in range(count):
        emit.log(0, "said", str(i).zfill(size))
    return count


def nothing(gs: list[int]) -> int:
    return 0


def idle(gs: list[int]) -> int:
    run_unit(gs[0], 0, 2)
    return 0


def begun(gs: list[int]) -> int:
    emit.unit_begin(gs[0], 0, emit.frame("crew.begun", "crew.py", 1))
    return 0


def in_nested_regions(gs: list[int]) -> int:
    emit.unit_begin(gs[0], 0, emit.frame("crew.nested", "crew.py", 1))
    for i in range(20):
        emit.region_begin((emit.ITEM, emit.PHASE, emit.REGION)[i % 3], 0, f"depth {i}", None)
        say(1)
    return 20


def with_full_buffers(gs: list[int]) -> int:
    """More than two blocks, and the third one nearly full."""
    emit.unit_begin(gs[0], 0, emit.frame("crew.full", "crew.py", 1))
    return say(178, 1000)


def between_units(gs: list[int]) -> int:
    for g in gs:
        emit.unit_begin(g, 0, emit.frame("crew.one", "crew.py", 1))
        say(1)
        emit.unit_end()
    return len(gs)


def in_a_collection(gs: list[int]) -> int:
    """Of Python's collector, in the middle of an emit (which takes the stack, and so allocates)."""
    emit.unit_begin(gs[0], 0, emit.frame("crew.collection", "crew.py", 1))

    def callback(phase: str, info: dict[str, int]) -> None:
        gc.callbacks.remove(callback)
        _there[0](say(3))

    gc.set_threshold(1)
    gc.callbacks.append(callback)
    while True:
        emit.region_begin(emit.PHASE, 0, "collected", None)
        emit.region_end()
        emit.stack()


STATES: list[Callable[[list[int]], int]] = [
    nothing, idle, begun, in_nested_regions, with_full_buffers, between_units, in_a_collection,
]  # fmt: skip
_there: list[Callable[[int], None]] = []


def stay(name: str, gs: list[int], ready: str) -> None:
    def there(said: int) -> None:
        with open(ready, "w") as fifo:
            fifo.write(str(said))
        threading.Event().wait()

    _there[:] = [there]
    there({state.__name__: state for state in STATES}[name](gs))


# --- the tests ------------------------------------------------------------------------------------


def put_into(worker: Worker, state: Callable[[list[int]], int], ready: Path) -> int:
    """Orders it there, and waits until it is; how much it said there."""
    gs = [emit.new_g() for _ in range(50)]  # not always in a row: the coordinator takes some too
    worker.order(stay, state.__name__, gs, str(ready))
    with open(ready) as fifo:
        return int(fifo.read())


def closed(path: Path, judge: Judge, deaths: int, said: int, still_open: int | None = 0) -> None:
    judge(path)
    events = list(order.read_events(path))
    keys = Counter(e.string("key") for e in events if unitlogs.is_users(e))
    assert keys == Counter({"worker lost": deaths, "said": said})
    names = Counter(e.name for e in events)
    if still_open is not None:
        assert names["UserRegionBegin"] == names["UserRegionEnd"] + still_open
    figures = summary()
    assert figures is not None
    assert (figures["workers_lost"], figures["lost_events"]) == (deaths, 0)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("state", STATES)
def test_a_death_beside_a_switch(tmp_path: Path, judge: Judge, state: Callable[[list[int]], int], header: str) -> None:
    """Just before one, just after one, between two, with none; each time the slot is filled again at once."""
    path, ready = tmp_path / "t.trace", tmp_path / "ready"
    os.mkfifo(ready)
    said = 0
    with crew(1) as (worker,), trace(path, header=header, period=3600.0):
        for before, after in ((0, 0), (1, 0), (0, 1), (2, 2), (0, 0)):
            said += put_into(worker, state, ready)
            for _ in range(before):
                assert session.advance()
            worker.end(kill=True)
            worker.start()
            for _ in range(after):
                assert session.advance()
    closed(path, judge, 5, said)


@pytest.mark.parametrize("state", STATES)
def test_a_death_that_is_told_generations_later(
    tmp_path: Path, judge: Judge, state: Callable[[list[int]], int]
) -> None:
    """It was stopped, and killed while stopped; the pool hears of it only after three switches."""
    path, ready = tmp_path / "t.trace", tmp_path / "ready"
    os.mkfifo(ready)
    with crew(2) as (worker, other), trace(path, period=3600.0):
        said = put_into(worker, state, ready)
        os.kill(worker.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
        assert session.advance()
        os.kill(worker.pid, signal.SIGKILL)
        for _ in range(3):
            other.do(run_unit, emit.new_g(), 0, 1)
            assert session.advance()
        worker.end(kill=True)
    closed(path, judge, 1, said)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("switches", [0, 1, 2])
def test_a_unit_that_was_claimed_and_never_began(tmp_path: Path, judge: Judge, header: str, switches: int) -> None:
    """It is lost with its worker; its start function is known all the same."""
    path = tmp_path / "t.trace"
    with crew(1) as (worker,), trace(path, header=header, period=3600.0):
        assert worker.do(os.getpid) == worker.pid  # it has its place
        g = emit.new_g()
        start = emit.frame("crew.claimed", "crew.py", 1)
        created = emit.go_create(g, start, None)
        for _ in range(switches):
            assert session.advance()
        worker.end(kill=True, claimed=(g, created, start))
    judge(path)
    events = list(order.read_events(path))
    starts = [e for e in events if e.name == "GoStart" and e.arg("g") == g]
    assert [e.m for e in starts] == [worker.pid]
    assert [e.m for e in events if e.name == "UserLog" and e.string("key") == "worker lost"] == [worker.pid]


@pytest.mark.parametrize("state", STATES)
def test_a_death_after_the_trace_is_none_of_it(tmp_path: Path, judge: Judge, state: Callable[[list[int]], int]) -> None:
    path, second, ready = tmp_path / "t.trace", tmp_path / "second.trace", tmp_path / "ready"
    os.mkfifo(ready)
    with crew(1) as (worker,):
        with trace(path, period=3600.0):
            said = put_into(worker, state, ready)
        worker.end(kill=True)
        worker.start()
        closed(path, judge, 0, said, still_open=20 if state is in_nested_regions else None)
        with trace(second):
            worker.do(run_unit, emit.new_g(), 0, 3)
        closed(second, judge, 0, 0)


@pytest.mark.parametrize("state", STATES)
def test_a_death_before_the_trace_in_a_slot_that_is_filled_in_it(
    tmp_path: Path, judge: Judge, state: Callable[[list[int]], int]
) -> None:
    """The state in which it died is not its successor's."""
    path, ready = tmp_path / "t.trace", tmp_path / "ready"
    os.mkfifo(ready)
    with crew(1) as (worker,):
        put_into(worker, state, ready)
        worker.end(kill=True)
        with trace(path, period=3600.0):
            worker.start()
            worker.do(run_unit, emit.new_g(), 0, 3)
            assert session.advance()
    closed(path, judge, 0, 0)


def test_a_death_with_blocks_in_a_pipe_that_nobody_reads(tmp_path: Path, judge: Judge) -> None:
    """The file's reader stalls, so the pipes are left to fill: what is in them comes before what is in the arena."""
    path, ready, data = tmp_path / "t.trace", tmp_path / "ready", []
    os.mkfifo(ready)
    with crew(2) as (loud, worker):
        start_trace(period=3600.0, patience=1.0)
        assert session.advance()  # nobody reads that, so there is no other, and the pipes are left to fill
        loud.do(flood, emit.new_g(), 100_000)
        said = put_into(worker, with_full_buffers, ready)
        worker.end(kill=True)
        worker.start()
        reader = threading.Thread(target=lambda: data.extend(iter(read_trace, None)))
        reader.start()
        stop_trace()
        reader.join()
    path.write_bytes(b"".join(data))
    judge(path)
    keys = Counter(e.string("key") for e in order.read_events(path) if unitlogs.is_users(e))
    assert (keys["said"], keys["worker lost"]) == (said, 1)
    figures = summary()
    assert figures is not None
    assert figures["lost_events"] > 0  # of the other one
