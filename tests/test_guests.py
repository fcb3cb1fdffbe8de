"""Threads inside a worker: each is an M of its own while it is inside a call of ours, whatever becomes of both."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import unitlogs
from crew import Worker, crew, flood, run_unit
from faults import METHODS

import pooltrace
from pooltrace import read_trace, start, start_trace, stop, stop_trace, summary, trace
from pooltrace.format import order
from pooltrace.format.order import Summary
from pooltrace.tracer import emit, session

Judge = Callable[[str | os.PathLike[str]], Summary]
Noted = list[tuple[int, int, int]]  # thread id, before, after


def lost_events() -> int:
    figures = summary()
    assert figures is not None
    lost = figures["lost_events"]
    assert isinstance(lost, int)
    return lost


def annotate(name: str, logs: int, noted: Noted | None = None) -> None:
    """One call in a thread of a worker: a region with logs in it."""
    before = time.monotonic_ns()
    emit.enter()
    region = emit.region_begin(emit.REGION, 0, name, None)
    for i in range(logs):
        emit.log(0, name, str(i))
    emit.region_end(region)
    emit.leave()
    if noted is not None:
        noted.append((threading.get_native_id(), before, time.monotonic_ns()))


def gone(tid: int) -> None:
    """Waits until the system has no such thread any more: a join returns before its end is told."""
    while os.path.exists(f"/proc/self/task/{tid}"):
        os.sched_yield()


def in_threads(count: int, logs: int, times: int = 1) -> Noted:
    """So many threads at the same time, each with so many calls."""
    noted: Noted = []
    together = threading.Barrier(count)

    def run(number: int) -> None:
        together.wait()
        for _ in range(times):
            annotate(f"thread {number}", logs, noted)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
        assert thread.native_id is not None
        gone(thread.native_id)
    return noted


def regions(path: Path) -> list[tuple[int, int, int]]:
    """M, begin and end of each region of a thread."""
    found: list[tuple[int, int, int]] = []
    begun: dict[int, int] = {}
    for event in order.read_events(path):
        if event.name == "UserRegionBegin" and event.string("name").startswith("thread "):
            assert event.m not in begun
            begun[event.m] = event.time
        elif event.name == "UserRegionEnd" and event.string("name").startswith("thread "):
            found.append((event.m, begun.pop(event.m), event.time))
    assert not begun
    return found


def logs(path: Path) -> Counter[str]:
    return Counter(e.string("key") for e in order.read_events(path) if unitlogs.is_users(e))


def job(number: int) -> Noted:
    return in_threads(2, 3)


@pytest.mark.parametrize("method", METHODS)
def test_threads_of_a_unit_stand_where_they_ran(tmp_path: Path, judge: Judge, method: str) -> None:
    path = tmp_path / "t.trace"
    with (
        trace(path, period=0.01),
        pooltrace.StdPool(2, context=__import__("multiprocessing").get_context(method)) as pool,
    ):
        noted = [one for unit in pool.map(job, range(20), chunksize=1) for one in unit]
    judge(path)
    found = regions(path)
    assert sorted(m for m, _, _ in found) == sorted(tid for tid, _, _ in noted)
    for (_, before, after), (_, begin, end) in zip(sorted(noted), sorted(found), strict=True):
        assert before <= begin <= end <= after
    assert lost_events() == 0


@pytest.mark.parametrize("header", ["1.22", "1.26"])
def test_all_that_threads_say_is_there_over_full_buffers_and_switches(
    tmp_path: Path, judge: Judge, header: str
) -> None:
    path = tmp_path / "t.trace"
    with crew(2) as workers, trace(path, header=header, period=0.0):
        for worker in workers:
            worker.order(in_threads, 3, 1000, 4)
        for worker in workers:
            assert len(worker.answer()) == 12
    judge(path)
    assert logs(path) == {f"thread {i}": 8_000 for i in range(3)}
    values: dict[int, list[int]] = {}
    for event in order.read_events(path):
        if unitlogs.is_users(event):
            values.setdefault(event.m, []).append(int(event.string("value")))
    assert all(of_one == list(range(1000)) * 4 for of_one in values.values())
    assert lost_events() == 0


def test_the_main_thread_s_units_go_on_beside_them(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with crew(1) as (worker,), trace(path, period=0.001):
        worker.do(begin_beside)
        for _ in range(200):
            worker.do(run_unit, emit.new_g(), 0, 5)
        said = worker.do(end_beside)
    judge(path)
    assert logs(path) == {"beside": said}
    figures = summary()
    assert figures is not None
    assert (figures["units"], figures["items"], figures["lost_events"]) == (200, 1000, 0)


_beside: dict[str, Any] = {}


def begin_beside() -> None:
    _beside.update(stop=threading.Event(), count=0, begun=threading.Event())

    def run() -> None:
        while not _beside["stop"].is_set():
            annotate("beside", 1)
            _beside["count"] += 1
            _beside["begun"].set()
            os.sched_yield()

    _beside["thread"] = threading.Thread(target=run)
    _beside["thread"].start()
    _beside["begun"].wait()


def end_beside() -> int:
    _beside["stop"].set()
    _beside["thread"].join()
    count: int = _beside["count"]
    return count


def entries(worker: Worker) -> int:
    """How many entries the arena has, by its size."""
    return os.path.getsize(worker.place.path) // (4096 + 2 * 65536)


def test_the_entry_of_a_thread_that_ended_serves_again(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with crew(1) as (worker,), trace(path, period=3600.0):
        for _ in range(100):
            worker.do(in_threads, 2, 3)
            assert session.advance()  # reads the pipe to its end
        assert entries(worker) <= 6
    judge(path)
    assert sum(logs(path).values()) == 600
    assert len(regions(path)) == 200


def test_threads_that_end_with_no_trace_on_give_theirs_back_at_the_next(tmp_path: Path, judge: Judge) -> None:
    with crew(1) as (worker,):
        for i in range(5):
            path = tmp_path / f"{i}.trace"
            start(path)
            worker.do(begin_beside)
            stop()
            worker.do(end_beside)  # in the middle of a call, perhaps
            judge(path)
        assert entries(worker) <= 8


def test_threads_that_end_while_the_pipe_is_full_leave_all_that_they_said(tmp_path: Path, judge: Judge) -> None:
    """It is taken from the arena at the next switch, and their entries serve again."""
    path, data = tmp_path / "t.trace", []
    with crew(1) as (worker,):
        start_trace(period=3600.0, patience=1.0)
        assert session.advance()  # nobody reads that, so there is no other, and the pipes are left to fill
        worker.do(flood, emit.new_g(), 100_000)
        worker.do(in_threads, 6, 3)
        before = entries(worker)
        reader = threading.Thread(target=lambda: data.extend(iter(read_trace, None)))
        reader.start()
        try:
            for _ in range(20):
                assert session.advance()
                worker.do(in_threads, 2, 3)
            assert entries(worker) == before
        finally:
            stop_trace()
            reader.join()
        assert lost_events() > 0
    path.write_bytes(b"".join(data))
    judge(path)
    assert [logs(path)[f"thread {i}"] for i in range(6)] == [21 * 3] * 2 + [3] * 4
    assert len(regions(path)) == 20 * 2 + 6


def begin_quietly() -> None:
    """A thread that says one thing, and another one when it ends."""
    _beside.update(stop=threading.Event(), begun=threading.Event())

    def run() -> None:
        emit.enter()
        emit.log(0, "quiet", "begun")
        _beside["begun"].set()
        _beside["stop"].wait()
        emit.log(0, "quiet", "over")
        emit.leave()

    _beside["thread"] = threading.Thread(target=run)
    _beside["thread"].start()
    _beside["begun"].wait()


def end_quietly() -> None:
    _beside["stop"].set()
    _beside["thread"].join()


def test_a_thread_does_not_get_a_p_that_was_not_free_when_it_came(tmp_path: Path, judge: Judge) -> None:
    """The coordinator hears of both in one turn: of the end of one of the parent's threads first, which it closes now,
    and of a worker's thread afterwards, which has said something before that."""
    path, begun, end = tmp_path / "t.trace", threading.Event(), threading.Event()

    def stay() -> None:
        emit.enter()
        begun.set()
        end.wait()  # it ends inside its call

    with crew(1) as (worker,), trace(path, period=3600.0):
        thread = threading.Thread(target=stay)
        thread.start()
        begun.wait()
        assert session.advance()  # now it sleeps
        worker.do(begin_quietly)
        end.set()
        thread.join()
        assert thread.native_id is not None
        gone(thread.native_id)
        assert session.advance()
        worker.do(end_quietly)
    judge(path)
    assert logs(path) == {"quiet": 2}


def test_a_thread_goes_on_into_the_next_trace(tmp_path: Path, judge: Judge) -> None:
    with crew(1) as (worker,):
        worker.do(begin_beside)
        for i in range(3):
            path = tmp_path / f"{i}.trace"
            with trace(path):
                worker.do(begin_one_more)
            judge(path)
            assert logs(path)["beside"] >= 1
        worker.do(end_beside)


def begin_one_more() -> None:
    """Returns after a whole call of the thread that began after this."""
    for _ in range(2):
        _beside["begun"].clear()
        _beside["begun"].wait()


def nested_for_ever(ready: str, depth: int) -> None:
    """In a worker: a thread in so many regions, then it waits for its death."""

    def run() -> None:
        emit.enter()
        for i in range(depth):
            emit.region_begin(emit.REGION, 0, f"thread {i}", None)
            emit.log(0, "depth", str(i))
        with open(ready, "wb"):
            pass
        threading.Event().wait()

    threading.Thread(target=run, daemon=True).start()
    emit.unit_begin(emit.new_g() + (1 << 40), 0, None)
    threading.Event().wait()


def test_a_killed_worker_s_threads_are_closed_with_it(tmp_path: Path, judge: Judge) -> None:
    path, ready = tmp_path / "t.trace", tmp_path / "ready"
    os.mkfifo(ready)
    with crew(1) as (worker,), trace(path, period=3600.0):
        for i in range(6):
            worker.order(nested_for_ever, str(ready), 4)
            with open(ready, "rb"):
                pass
            if i % 2:
                assert session.advance()
            worker.end(kill=True)
            worker.start()
        assert entries(worker) <= 6
    judge(path)
    events = list(order.read_events(path))
    assert Counter(e.string("key") for e in events if unitlogs.is_users(e)) == {"depth": 24, "worker lost": 6}
    ends = [e.string("name") for e in events if e.name == "UserRegionEnd"]
    assert ends == [f"thread {i}" for i in (3, 2, 1, 0)] * 6  # innermost first


def test_a_thread_that_ends_inside_a_call_is_closed(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with crew(1) as (worker,), trace(path, period=3600.0):
        worker.do(leave_open)
        assert session.advance()
        worker.do(leave_open)
    judge(path)
    names = Counter(e.name for e in order.read_events(path))
    assert names["UserRegionBegin"] == names["UserRegionEnd"] == 2


def leave_open() -> None:
    def run() -> None:
        emit.enter()
        emit.region_begin(emit.REGION, 0, "thread of no end", None)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert thread.native_id is not None
    gone(thread.native_id)


def fork_in_thread() -> tuple[bool, int]:
    """What the child of a fork in a thread sees, and its exit status: it has no tracer."""
    seen: list[tuple[bool, int]] = []

    def run() -> None:
        annotate("before", 1)
        pid = os.fork()
        if pid == 0:
            try:
                annotate("in the child", 1)
                os._exit(3 if emit.enabled() else 4)
            finally:
                os._exit(5)
        _, status = os.waitpid(pid, 0)
        annotate("after", 1)
        seen.append((emit.enabled(), os.waitstatus_to_exitcode(status)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return seen[0]


def test_the_child_of_a_fork_in_a_thread_has_no_tracer(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with crew(1) as (worker,), trace(path):
        assert worker.do(fork_in_thread) == (True, 4)
    judge(path)
    assert logs(path) == {"before": 1, "after": 1}


def wait_in_thread() -> None:
    def run() -> None:
        emit.enter()
        ticket = emit.go_block("thread waits", None)
        emit.go_unblock(ticket, None)  # not from a worker: the waiter does it itself
        emit.go_resume(ticket)
        emit.leave()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def test_a_thread_s_wait_is_its_own(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with crew(1) as (worker,), trace(path):
        worker.do(wait_in_thread)
        worker.do(wait_in_thread)
    judge(path)
    waits = [e for e in order.read_events(path) if e.name == "GoBlock" and e.string("reason") == "thread waits"]
    assert len(waits) == 2
