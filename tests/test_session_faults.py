"""The tracer at bad moments: the trace ends inside an emit, processes fork there, readers and threads are missing."""

from __future__ import annotations

import gc
import io
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import unitlogs
from crew import crew, flood, run_unit

import pooltrace
from pooltrace import MisuseError, read_trace, start, start_trace, stop, stop_trace, summary, trace
from pooltrace.format import order
from pooltrace.tracer import arena, emit, session

Judge = Callable[[str | os.PathLike[str]], order.Summary]


class Nowhere:
    """A sink that keeps nothing."""

    def write(self, data: bytes) -> None:
        pass


def figures() -> dict[str, Any]:
    found = summary()
    assert found is not None
    return found


def values(path: Path) -> list[str]:
    return [event.string("value") for event in order.read_events(path) if unitlogs.is_users(event)]


def test_workers_are_buried_while_traces_start_and_stop() -> None:
    """Each burial is the coordinator's, or nobody's: a slot that is given out again is not listed any more."""
    over = threading.Event()

    def bury(p: int) -> None:
        while not over.is_set():
            place = arena.worker_open(p)
            place.close_write()
            place.gone("pid 1 was killed by SIGKILL")

    assert arena.acquire()
    threads = [threading.Thread(target=bury, args=(900 + number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        start(Nowhere())
        stop()
    over.set()
    for thread in threads:
        thread.join()
    arena.release()


# --- inside an emit -------------------------------------------------------------------------------


@pytest.fixture
def inside_emit() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Calls a function once, from a collector callback inside an emit (where CPython collects there: before 3.12)."""
    pending: list[Callable[[], None]] = []

    def callback(phase: str, info: dict[str, int]) -> None:
        if pending and phase == "start" and threading.current_thread() is threading.main_thread():
            pending.pop()()

    def emit_deep(depth: int) -> None:
        if depth:
            emit_deep(depth - 1)
        else:
            emit.region_begin(emit.REGION, 0, "region", None)

    def run(call: Callable[[], None]) -> None:
        gc.collect()
        threshold = gc.get_threshold()
        pending.append(call)
        gc.set_threshold(1)
        try:
            emit_deep(20)
        finally:
            gc.set_threshold(*threshold)
            pending.clear()

    gc.callbacks.append(callback)
    yield run
    gc.callbacks.remove(callback)


@pytest.mark.parametrize("by", ["this thread", "another"])
def test_a_trace_that_ends_inside_an_emit(by: str, inside_emit: Callable[[Callable[[], None]], None]) -> None:
    def end() -> None:
        if by == "this thread":
            stop()
            return
        thread = threading.Thread(target=stop)
        thread.start()
        thread.join()

    for _ in range(20):
        start(Nowhere())
        inside_emit(end)
        if session.generation():  # no collection came
            stop()


def test_a_fork_inside_an_emit(inside_emit: Callable[[Callable[[], None]], None], tmp_path: Path) -> None:
    children: list[int] = []
    start(Nowhere())
    for _ in range(5):
        parent = os.getpid()
        inside_emit(lambda: children.append(os.fork()))
        if os.getpid() != parent:
            emit.log(0, "key", "value")
            with trace(tmp_path / f"{os.getpid()}.trace"):
                emit.log(0, "key", "value")
            os._exit(0)
    stop()
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(children)


# --- who starts, who stops ------------------------------------------------------------------------


def test_the_one_who_started_an_older_trace_is_nobody_special(tmp_path: Path, judge: Judge) -> None:
    """P 0 is the thread's that started this trace, not its that started an older one, which another thread stopped."""
    path = tmp_path / "t.trace"
    begun, go = threading.Event(), threading.Event()

    def second() -> None:
        with trace(path):
            emit.log(0, "key", "before")
            begun.set()
            go.wait()
            assert session.advance()
            emit.log(0, "key", "after")

    start(Nowhere())
    stopper = threading.Thread(target=stop)
    stopper.start()
    stopper.join()
    thread = threading.Thread(target=second)
    thread.start()
    begun.wait()
    emit.enter()
    emit.log(0, "key", "old starter")
    emit.leave()
    go.set()
    thread.join()
    judge(path)
    assert values(path) == ["before", "old starter", "after"]


def test_the_child_of_a_fork_leaves_the_trace_alone(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    code = f"""
import os, sys, pooltrace
with pooltrace.trace({str(path)!r}):
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
    judge(path)


# --- readers --------------------------------------------------------------------------------------


def test_without_a_thread_for_the_reader_there_is_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no)
        with pytest.raises(RuntimeError, match="can't start"):
            start(Nowhere())
    with pytest.raises(MisuseError, match="no trace is on"):
        stop()
    with trace(io.BytesIO()):
        pass


def test_a_reader_that_has_gone_is_not_waited_for() -> None:
    start_trace()
    reader = threading.Thread(target=read_trace)
    reader.start()
    reader.join()
    with pytest.raises(MisuseError, match="the thread that read the trace has ended"):
        stop_trace()
    with trace(io.BytesIO()):
        pass


def test_a_reader_that_has_not_read_to_the_end_is_told(tmp_path: Path) -> None:
    start_trace()
    read_trace()
    stop_trace()
    with pytest.raises(MisuseError, match="it has not been read to its end"):
        start_trace()
    while read_trace() is not None:
        pass
    with trace(tmp_path / "t.trace"):
        pass


def test_nobody_reads_what_start_writes(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with trace(path, period=0.0):
        for _ in range(50):
            with pytest.raises(MisuseError, match=r"start\(\) reads this trace itself"):
                read_trace()
            emit.log(0, "key", "value")
    judge(path)
    assert read_trace() is None


def test_a_sink_may_raise_anything(caplog: pytest.LogCaptureFixture) -> None:
    class Sink:
        def write(self, data: bytes) -> None:
            raise KeyboardInterrupt

    def record() -> None:
        start(Sink())
        emit.log(0, "key", "value")
        stop()

    with pytest.raises(KeyboardInterrupt):
        record()
    with trace(io.BytesIO()):
        pass


# --- limits ---------------------------------------------------------------------------------------


def test_more_made_stacks_than_a_stream_has_ids_for() -> None:
    """One for each job: after two million jobs nothing was recorded any more."""
    count = (1 << 21) + 1000
    here = emit.frame("main", "main.py", 1)
    start(Nowhere(), period=0.2)
    for number in range(count):
        emit.go_create(number + (1 << 40), emit.frame("job", "jobs.py", 1), here)
    stop()
    assert figures()["lost_events"] == 0
    assert figures()["events"] >= count


def test_regions_that_are_too_deep_are_left_out_with_their_ends(tmp_path: Path, judge: Judge) -> None:
    path, deep = tmp_path / "t.trace", 5000
    with trace(path):
        outer = emit.region_begin(emit.REGION, 0, "outer", None)
        for _ in range(deep):
            emit.region_begin(emit.PHASE, 0, "inner", None)
        handle = emit.region_begin(emit.REGION, 0, "too deep", None)
        for _ in range(deep):
            emit.region_end()
        emit.log(0, "key", "inside outer")
        emit.region_end(handle)
        emit.region_end(outer)
    judge(path)
    names = [e.name for e in order.read_events(path) if e.name != "UserLog" or unitlogs.is_users(e)]
    at = names.index("UserLog")
    assert names[:at].count("UserRegionBegin") - names[:at].count("UserRegionEnd") == 1
    assert names.count("UserRegionBegin") == names.count("UserRegionEnd") == 4096
    assert figures()["lost_events"] == deep + 2 - 4096


def test_generation_numbers_wrap(tmp_path: Path, judge: Judge) -> None:
    """From the highest to 4, as in Go, with a worker, a unit that waits and one that runs over the border."""
    path, highest = tmp_path / "t.trace", 0x7FFFFFFF
    with crew(2) as workers:
        with open(workers[0].place.path, "r+b") as file:  # the arena: its third word is the generation in force
            file.seek(16)
            file.write(struct.pack("=Q", (highest - 3) << 33))
        with trace(path, period=3600.0):
            g = emit.new_g()
            created = emit.go_create(g, emit.frame("crew.later", "crew.py", 1), None)
            for _ in range(6):
                for worker in workers:
                    assert worker.do(run_unit, emit.new_g(), 0, 3)
                assert session.advance()
            workers[0].do(run_unit, g, created, 2)
    judge(path)
    generations = list(dict.fromkeys(event.gen for event in order.read_events(path)))
    assert generations == [highest - 2, highest - 1, highest, 4, 5, 6, 7]
    assert figures()["lost_events"] == 0
    assert figures()["items"] == 6 * 2 * 3 + 2
    with trace(path):  # and the next one goes on
        pass
    assert next(iter(order.read_events(path))).gen == 9


class Name(str):
    """A str of a subclass, as some code generators have for names of files."""


def test_names_may_be_of_a_subclass_of_str(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    space: dict[str, Any] = {"emit": emit, "__name__": "generated"}
    exec(compile("def f(): emit.region_begin(emit.REGION, 0, 'region', None)", Name("made.py"), "exec"), space)
    with trace(path):
        space["f"]()
        emit.region_begin(emit.REGION, 0, Name("named"), None)
    judge(path)
    regions = [event for event in order.read_events(path) if event.name == "UserRegionBegin"]
    assert [region.string("name") for region in regions] == ["region", "named"]
    assert regions[0].stack()[0].file == "made.py"


def test_a_wait_whose_handle_was_lost_is_over_when_its_thread_leaves(tmp_path: Path, judge: Judge) -> None:
    """An exception may come between the wait's begin and the moment at which its handle is kept."""
    path = tmp_path / "t.trace"

    def lose() -> None:
        emit.enter()
        emit.go_block("waiting", None)
        emit.leave()
        for number in range(3):
            emit.enter()
            emit.log(0, "key", str(number))
            emit.leave()

    with trace(path):
        thread = threading.Thread(target=lose)
        thread.start()
        thread.join()
    judge(path)
    assert values(path) == ["0", "1", "2"]


def test_a_worker_whose_trace_began_with_a_unit_says_so_once(tmp_path: Path, judge: Judge) -> None:
    with crew(1) as (worker,):
        for number in range(20):
            path = tmp_path / f"{number}.trace"
            start(path)
            for _ in range(3):
                worker.do(run_unit, emit.new_g(), 0, 2)
            stop()
            order.check(path)
            assert (figures()["units"], figures()["items"], figures()["lost_events"]) == (3, 6, 0)
    judge(path)
    assert pooltrace.summary() is figures()


def test_a_worker_that_comes_amid_a_generation_is_read_from_then_on(tmp_path: Path, judge: Judge) -> None:
    """Else what it says would fill its pipe, and the job would wait for the next advance, or lose events."""
    path = tmp_path / "t.trace"
    with trace(path, period=3600, patience=0.6), crew(1) as (worker,):
        assert worker.do(flood, emit.new_g(), 24_000, 50) == 24_000  # more than the pipe holds
    assert figures()["lost_events"] == 0
    judge(path)


# --- sinks that stall -----------------------------------------------------------------------------


def test_a_reader_that_stalls_costs_the_job_its_patience_and_the_trace_says_so(tmp_path: Path, judge: Judge) -> None:
    """Nobody reads while the worker runs: what fits nowhere is lost, and counted in the file; then all is well."""
    # 100 MB of strings: twice 32 MB fit, one generation's that was closed before anybody read, and the next one's.
    path, count = tmp_path / "t.trace", 200_000
    with crew(1) as (worker,):
        start_trace(period=0.01, patience=0.05)
        pieces = [read_trace()]
        assert worker.do(flood, emit.new_g(), count, 500) == count
        assert worker.do(run_unit, emit.new_g(), 0, 3)
        stop_trace()
        while (piece := read_trace()) is not None:
            pieces.append(piece)
        path.write_bytes(b"".join(piece for piece in pieces if piece))
        lost = figures()["lost_events"]
        assert lost > 0
        with trace(tmp_path / "next.trace"):  # with new patience
            worker.do(run_unit, emit.new_g(), 0, 3)
        assert (figures()["items"], figures()["lost_events"]) == (3, 0)
    judge(tmp_path / "next.trace")
    order.check(path)
    kept, told = 0, 0
    for event in order.read_events(path):
        if event.name == "UserLog" and event.string("key") == "events lost":
            told += int(event.string("value").split()[0])
            assert event.string("value").endswith(f" of M {worker.pid}")
        kept += event.name == "UserLog" and event.string("key") == "flood"
    assert told == lost
    assert 0 < count - kept <= lost


class Stuck(Nowhere):
    """Takes the first piece, and then nothing until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.taken = 0

    def write(self, data: bytes) -> None:
        self.taken += 1
        if self.taken > 1:
            self.go.wait()


def test_a_sink_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "STALL", 0.5)
    sink = Stuck()
    start(sink)
    assert session.advance()
    emit.log(0, "key", "value")
    with pytest.raises(TimeoutError, match=r"taken nothing for 0\.5 s"):
        stop()
    with pytest.raises(MisuseError, match="still takes nothing"):
        start(Nowhere())
    sink.go.set()
    pump = session._state.own_reader
    if pump is not None:
        pump.join()
    with trace(io.BytesIO()):
        pass


PROGRAM = """
import logging, multiprocessing, os, sys
logging.basicConfig(format="%(message)s")
import pooltrace
from pooltrace.tracer import emit, session
session.STALL = 0.5

def work(number):
    emit.log(0, "text", f"{number:0>1000}" * 20)
    return number

def main(path):
    with pooltrace.StdPool(2, context=multiprocessing.get_context("fork")) as pool:
        assert pool.map(work, range(5000), 10) == list(range(5000))
"""
STALLED = """
fifo = os.open(sys.argv[1], os.O_RDWR)  # so that it opens, and nobody reads
pooltrace.start(sys.argv[1], patience=0.1, period=0.01)
main(sys.argv[1])
"""
NEVER_READ = """
pooltrace.start_trace(patience=0.1, period=0.01)
main(sys.argv[1])
"""


@pytest.mark.parametrize(("rest", "said"), [(STALLED, r"pooltrace: the trace is not complete: .*\n"), (NEVER_READ, "")])
def test_a_program_ends_as_it_would_though_its_trace_stalls(rest: str, said: str, tmp_path: Path) -> None:
    """Its results are right, its status is 0, and it says one line, or nothing where nobody wanted a file."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + rest, str(fifo)], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(said, done.stderr), done.stderr


class Short(Nowhere):
    """Takes one piece, and no more."""

    def __init__(self) -> None:
        self.pieces = 0

    def write(self, data: bytes) -> None:
        self.pieces += 1
        if self.pieces > 1:
            raise OSError(28, "No space left on device")


def test_a_sink_that_fails_ends_the_trace_at_once() -> None:
    """From then on nobody records: it would cost the job for nothing."""
    start(Short())
    assert emit.enabled()
    session.advance()
    while emit.enabled():
        os.sched_yield()
    with crew(1) as (worker,):
        assert not worker.do(emit.enabled)
        with pytest.raises(OSError, match="No space left"):
            stop()
