"""The tracer from start to stop, without an engine: what was emitted stands in the file, once, in order, in time."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import unitlogs
from crew import Worker, crew, run_unit

from pooltrace import MisuseError, read_trace, start, start_trace, stop, stop_trace, summary, trace
from pooltrace.format import order, raw
from pooltrace.tracer import arena, emit, session

Judge = Callable[[str | os.PathLike[str]], order.Summary]
HEADERS = ["1.22", "1.23", "1.25", "1.26"]


def submit(worker: Worker, items: int) -> list[tuple[int, int]]:
    """A unit from this thread to a worker, and the wait for its end."""
    g = emit.new_g()
    generation = emit.go_create(g, emit.frame("crew.item", "crew.py", 1), None)
    worker.order(run_unit, g, generation, items)
    ticket = emit.go_block("waiting for the unit", None)
    noted: list[tuple[int, int]] = worker.answer()
    emit.go_resume(ticket)
    return noted


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("period", [1.0, 0.0])
def test_units_items_and_times_are_those_of_the_program(
    tmp_path: Path, judge: Judge, header: str, period: float
) -> None:
    path = tmp_path / "t.trace"
    noted: dict[int, list[int]] = {}
    with crew(2) as workers, trace(path, header=header, period=period):
        task = emit.new_task()
        emit.task_begin(task, 0, "map(item)", None)
        for i in range(100):
            for worker in workers:
                noted.setdefault(worker.pid, []).extend(t for t, _ in submit(worker, 5))
            if i % 2:
                assert session.advance()
        emit.task_end(task)
    found = judge(path)
    assert found.header == header
    assert found.generations >= 50
    figures = summary()
    assert figures is not None
    assert (figures["units"], figures["items"], figures["jobs"], figures["lost_events"]) == (200, 1000, 1, 0)
    regions = [e for e in order.read_events(path) if e.name == "UserRegionBegin" and e.string("name") == "crew.item"]
    for worker, times in noted.items():
        begins = [e.time for e in regions if e.m == worker]
        ends = [*begins[1:], sys.maxsize]
        assert len(begins) == len(times)
        assert all(begin <= time <= end for begin, time, end in zip(begins, times, ends))


def number_logs(count: int, unit: int) -> None:
    """In a worker: a unit with logs numbered from 0."""
    emit.unit_begin(unit, 0, None)
    for i in range(count):
        emit.log(0, "number", str(i))
    emit.unit_end()
    emit.idle()


def test_no_event_is_lost_doubled_or_moved_by_switches(tmp_path: Path, judge: Judge) -> None:
    path, count = tmp_path / "t.trace", 20_000
    with crew(3) as workers, trace(path, period=0.0):
        for worker in workers:
            worker.order(number_logs, count, emit.new_g())
        for i in range(count):
            emit.log(0, "number", str(i))
        for worker in workers:
            worker.answer()
    judge(path)
    by_m: dict[int, list[int]] = {}
    last: dict[int, tuple[int, int]] = {}
    latest_of_older = 0
    generation = 0
    latest = 0
    for event in order.read_events(path):
        if event.gen != generation:
            generation, latest_of_older = event.gen, latest
        assert event.time > latest_of_older, "a time lies in an older generation"
        latest = max(latest, event.time)
        if event.name == "UserLog" and event.string("key") == "number":
            by_m.setdefault(event.m, []).append(int(event.string("value")))
            assert last.get(event.m, (0, 0)) < (event.gen, event.time)
            last[event.m] = (event.gen, event.time)
    assert len(by_m) == 4
    assert all(numbers == list(range(count)) for numbers in by_m.values())


def wait_inside(g: int, ready: str, go: str) -> None:
    """In a worker: a unit that says when it runs, and waits for leave to end."""
    emit.unit_begin(g, 0, emit.frame("crew.wait_inside", "crew.py", 9))
    with open(ready, "wb"):
        pass
    with open(go, "rb"):
        pass
    emit.log(0, "released", "yes")
    emit.unit_end()
    emit.idle()


@pytest.mark.parametrize("header", HEADERS)
def test_a_trace_that_starts_on_a_running_worker(tmp_path: Path, judge: Judge, header: str) -> None:
    ready, go, path = tmp_path / "ready", tmp_path / "go", tmp_path / "t.trace"
    os.mkfifo(ready)
    os.mkfifo(go)
    with crew(2) as workers:
        remove = session.describe_units(lambda: [(g, emit.frame("crew.wait_inside", "crew.py", 9))])
        g = emit.new_g()
        for _ in range(3):  # stop and start again, with the unit running all the time
            if _ == 0:
                workers[0].order(wait_inside, g, str(ready), str(go))
                with open(ready, "rb"):
                    pass
            start(path, header=header)
            session.advance()
            submit(workers[1], 2)
            stop()
            judge(path)
            first = [e for e in order.read_events(path) if e.m == workers[0].pid][:2]
            assert [e.name for e in first] == ["ProcStatus", "GoStatus" if header == "1.22" else "GoStatusStack"]
            assert first[1].arg("g") == g
            if header != "1.22":
                assert first[1].stack()[0].function == "crew.wait_inside"
        start(path, header=header)
        with open(go, "wb"):
            pass
        workers[0].answer()
        stop()
        remove()
    judge(path)
    logs = [e.string("key") for e in order.read_events(path) if unitlogs.is_users(e) and e.g == g]
    assert logs == ["released"]


def test_units_submitted_before_the_trace_are_created_where_they_start(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with crew(1) as (worker,):
        g = emit.new_g()
        created = emit.go_create(g, None, None)
        assert created == 0
        with trace(path):
            session.advance()
            worker.do(run_unit, g, created, 1)
    judge(path)
    assert [e.m for e in order.read_events(path) if e.name == "GoCreate" and e.arg("new_g") == g] == [worker.pid]


def endless_logs(g: int, ready: str) -> None:
    """In a worker: logs until it is killed."""
    emit.unit_begin(g, 0, None)
    emit.region_begin(emit.REGION, 0, "outer", None)
    with open(ready, "wb"):
        pass
    i = 0
    while True:
        emit.log(0, "number", str(i))
        i += 1


def test_a_killed_worker_leaves_all_that_it_published(tmp_path: Path, judge: Judge) -> None:
    path, ready = tmp_path / "t.trace", tmp_path / "ready"
    os.mkfifo(ready)
    pids = []
    with crew(1) as (worker,), trace(path, period=0.001):
        for _ in range(10):
            worker.order(endless_logs, emit.new_g(), str(ready))
            with open(ready, "rb"):
                pass
            session.advance()
            pids.append(worker.pid)
            worker.end(kill=True)
            worker.start()
    judge(path)
    figures = summary()
    assert figures is not None
    assert figures["workers_lost"] == 10
    assert figures["lost_events"] == 0
    numbers: dict[int, list[int]] = {}
    lost = []
    for event in order.read_events(path):
        if event.name == "UserLog" and event.string("key") == "number":
            numbers.setdefault(event.m, []).append(int(event.string("value")))
        elif event.name == "UserLog" and event.string("key") == "worker lost":
            lost.append(event.m)
    assert lost == pids
    for found in numbers.values():
        assert found == list(range(len(found)))


def hold_the_gil(ready: str, microseconds: int) -> str:
    """In a worker: sleeps in C without letting go of the GIL."""
    with open(ready, "wb"):
        pass
    ctypes.PyDLL(None).usleep(microseconds)
    return "awake"


def test_a_worker_that_holds_the_gil_does_not_hold_up_the_advance(tmp_path: Path, judge: Judge) -> None:
    path, ready = tmp_path / "t.trace", tmp_path / "ready"
    os.mkfifo(ready)
    with crew(1) as (worker,), trace(path):
        worker.order(hold_the_gil, str(ready), 600_000)
        with open(ready, "rb"):
            pass
        before = session.generation()
        for _ in range(20):
            assert session.advance()
        assert session.generation() >= before + 20
        os.set_blocking(worker.answers, False)
        with pytest.raises(BlockingIOError):  # all that, while it slept
            os.read(worker.answers, 1)
        os.set_blocking(worker.answers, True)
        assert worker.answer() == "awake"
    judge(path)


def test_a_parent_that_holds_the_gil_does_not_hold_up_the_workers(tmp_path: Path, judge: Judge) -> None:
    path, count = tmp_path / "t.trace", 100_000  # more than pipe and buffers hold together
    with crew(1) as (worker,), trace(path, period=0.05):
        worker.order(number_logs, count, emit.new_g())
        while not select_readable(worker.answers):
            ctypes.PyDLL(None).usleep(300_000)
        worker.answer()
    judge(path)
    figures = summary()
    assert figures is not None
    assert figures["lost_events"] == 0
    numbers = [int(e.string("value")) for e in order.read_events(path) if unitlogs.is_users(e)]
    assert numbers == list(range(count))


def select_readable(fd: int) -> bool:
    import select

    return bool(select.select([fd], [], [], 0)[0])


def test_threads_come_in_and_go_out(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"

    def call(i: int) -> None:
        for _ in range(20):
            emit.enter()
            emit.enter()
            emit.log(0, "thread", str(i))
            ticket = emit.go_block("nothing", None)
            emit.go_resume(ticket)
            emit.leave()
            emit.leave()

    with trace(path, period=0.0):
        threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = judge(path)
    assert found.by_name["GoCreateSyscall"] == 160
    assert sum(unitlogs.is_users(e) for e in order.read_events(path)) == 160


def test_waker_and_waiter_across_generations(tmp_path: Path, judge: Judge) -> None:
    """The unblock of a wait that began in an older generation, by another thread and by itself, in all sequences."""
    path = tmp_path / "t.trace"
    blocked, resumed = threading.Barrier(2), threading.Barrier(2)
    tickets: list[emit.Ticket | None] = []

    def wait() -> None:
        emit.enter()
        for _ in range(4):
            tickets.append(emit.go_block("a wait", None))
            blocked.wait()
            resumed.wait()
            emit.go_resume(tickets[-1])
        emit.leave()

    with trace(path):
        thread = threading.Thread(target=wait)
        thread.start()
        for before, by_us, after in [
            (False, True, False),
            (True, True, True),
            (True, True, False),
            (True, False, True),
        ]:
            blocked.wait()
            if before:
                session.advance()
            if by_us:
                emit.go_unblock(tickets[-1], None)
                emit.go_unblock(tickets[-1], None)  # the second does nothing
            if after:
                session.advance()
            resumed.wait()
        thread.join()
    assert judge(path).by_name["GoUnblock"] == 4


def test_what_a_signal_handler_does_inside_a_wait_is_no_breach(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with crew(1) as (worker,), trace(path):
        ticket = emit.go_block("a wait", None)
        g = emit.new_g()
        created = emit.go_create(g, None, None)  # as a handler would that interrupts the wait
        assert emit.go_block("inside", None) is None
        worker.do(run_unit, g, created, 1)
        emit.go_resume(ticket)
    judge(path)


def test_emits_nested_in_emits(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    nested = 0

    def callback(phase: str, info: object) -> None:
        nonlocal nested
        if threading.current_thread() is threading.main_thread():  # the reader's thread is not in the trace
            nested += 1
            emit.log(0, "nested", str(nested))

    thresholds = gc.get_threshold()
    with trace(path):
        gc.callbacks.append(callback)
        gc.set_threshold(1)
        try:
            for i in range(300):
                body = f"emit.log(0, 'outer', str({i})); emit.region_end(emit.region_begin(0, 0, 'r{i}', None))"
                exec(f"def f{i}(): {body}", globals())  # a code object that no table has seen
                globals()[f"f{i}"]()
        finally:
            gc.set_threshold(*thresholds)
            gc.callbacks.remove(callback)
    judge(path)
    assert nested > 0
    logs: dict[str, list[int]] = {"nested": [], "outer": []}
    for event in order.read_events(path):
        if unitlogs.is_users(event):
            logs[event.string("key")].append(int(event.string("value")))
    assert logs["outer"] == list(range(300))
    assert logs["nested"] == list(range(1, nested + 1))


def test_more_names_than_the_tables_hold(tmp_path: Path, judge: Judge) -> None:
    path, count = tmp_path / "t.trace", 70_000
    kept = emit.frame("kept", "kept.py", 7)
    with trace(path, period=0.05):
        for i in range(count):
            emit.region_end(emit.region_begin(emit.REGION, 0, f"name {i}", kept))
    judge(path)
    regions = [e for e in order.read_events(path) if e.name == "UserRegionBegin"]
    assert [e.string("name") for e in regions] == [f"name {i}" for i in range(count)]
    assert {e.stack()[0].function for e in regions} == {"kept"}


def test_names_are_cut_and_escaped_to_what_the_format_holds(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    names = ["é" * 600, "a" + "é" * 600, "\udc80 lone", "", "null \0 inside", "日本" * 200]
    with trace(path):
        for name in names:
            emit.log(0, name, name)
    judge(path)
    logs = [(e.string("key"), e.string("value")) for e in order.read_events(path) if unitlogs.is_users(e)]
    cut = ["é" * 512, "a" + "é" * 511, "\\udc80 lone", "", "null \0 inside", ("日本" * 200)[:341]]
    assert logs == [(name, name) for name in cut]


def test_a_deep_stack_keeps_its_innermost_frames(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"

    def down(n: int) -> None:
        if n:
            down(n - 1)
        else:
            emit.region_end(emit.region_begin(emit.REGION, 0, "deep", None))

    with trace(path):
        down(200)
    judge(path)
    (region,) = [e for e in order.read_events(path) if e.name == "UserRegionBegin"]
    frames = region.stack()
    assert len(frames) == 128
    assert all(frame.function.endswith("down") for frame in frames)


def test_misuse_is_named(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="no trace is on"):
        stop()
    with pytest.raises(MisuseError, match="no trace is on"):
        stop_trace()
    with pytest.raises(MisuseError, match=r"1\.24.*take one of 1\.22"):
        start(tmp_path / "t", header="1.24")
    with pytest.raises(MisuseError, match="period"):
        start(tmp_path / "t", period=-1)
    with pytest.raises(TypeError, match="path"):
        start(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        start(tmp_path / "none" / "t")
    with trace(tmp_path / "t"), pytest.raises(MisuseError, match="on already"):
        start(tmp_path / "u")
    assert not (tmp_path / "u").exists()


def test_nobody_reads() -> None:
    start_trace()
    emit.log(0, "a", "b")
    with pytest.raises(MisuseError, match="nobody has read"):
        stop_trace()
    assert read_trace() is None
    start_trace()  # the next one works
    with pytest.raises(MisuseError):
        stop_trace()


def test_one_reader_at_a_time_and_a_reader_in_the_same_thread(tmp_path: Path, judge: Judge) -> None:
    start_trace(period=0.001)
    data = [read_trace()]
    errors: list[Exception] = []
    entered = threading.Event()

    def read_all() -> None:
        entered.set()
        while (piece := read_trace()) is not None:
            data.append(piece)

    reader = threading.Thread(target=read_all)
    reader.start()
    entered.wait()
    while not errors:  # the other is inside read_trace sooner or later, and stays there most of the time
        try:
            data.append(read_trace())
        except MisuseError as error:
            errors.append(error)
    stop_trace()
    reader.join()
    assert "another thread" in str(errors[0])

    start_trace()
    emit.log(0, "a", "b")
    pieces = [read_trace()]
    stop_trace()  # the reader is this thread: the rest is read afterwards
    while (piece := read_trace()) is not None:
        pieces.append(piece)
    path = tmp_path / "t.trace"
    path.write_bytes(b"".join(piece for piece in pieces if piece))
    judge(path)
    assert [e.string("value") for e in order.read_events(path) if unitlogs.is_users(e)] == ["b"]


class Full(io.RawIOBase):
    """A file on a disk that is full after so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, data: object) -> int:
        self.room -= len(data)  # type: ignore[arg-type]
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return len(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("room", [0, 100, 100_000])
def test_a_full_disk_costs_the_trace_and_not_the_job(room: int, caplog: pytest.LogCaptureFixture) -> None:
    start(Full(room), period=0.001)
    with crew(1) as (worker,):
        for _ in range(200):
            assert len(submit(worker, 50)) == 50
        with pytest.raises(OSError, match="No space left"):
            stop()
    assert len([r for r in caplog.records if "cannot be written" in r.message]) == 1
    start(io.BytesIO())
    stop()


def test_lz4_by_name(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace.lz4"
    with trace(path):
        emit.log(0, "a", "b")
    assert path.read_bytes()[:4] == b"\x04\x22\x4d\x18"
    judge(path)


def test_a_forked_child_has_no_tracer(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with trace(path):
        pid = os.fork()
        if pid == 0:
            ok = (
                not emit.enabled()
                and not emit.enter()
                and emit.go_create(1, None, None) == 0
                and session.generation() == 0
            )
            emit.log(0, "child", "x")
            emit.leave()
            with trace(str(path) + ".child"):  # it may have one of its own
                emit.log(0, "child", "own")
            os._exit(0 if ok else 1)
        assert os.waitpid(pid, 0)[1] == 0
        emit.log(0, "parent", "y")
    judge(path)
    judge(str(path) + ".child")
    assert [e.string("key") for e in order.read_events(path) if unitlogs.is_users(e)] == ["parent"]


def test_a_child_forked_in_the_middle_of_an_advance_can_trace(tmp_path: Path, judge: Judge) -> None:
    """Whatever the coordinator had half done in the parent is none of the child's business."""
    children = 60
    with trace(io.BytesIO(), period=0.0):
        for number in range(children):
            emit.log(0, f"key {number}", str(number))
            pid = os.fork()
            if pid == 0:
                with trace(tmp_path / f"{number}.trace"):
                    emit.log(0, "child", str(number))
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
    for number in range(children):
        order.check(tmp_path / f"{number}.trace")
    judge(tmp_path / "0.trace")


def test_threads_that_come_and_go_while_traces_start_and_stop(tmp_path: Path, judge: Judge) -> None:
    """Each gives its place back, whether the coordinator is there, is about to go, or has gone."""
    over = threading.Event()

    def come_and_go() -> None:
        def visit() -> None:
            emit.enter()
            emit.log(0, "here", "yes")
            emit.leave()

        while not over.is_set():
            thread = threading.Thread(target=visit)
            thread.start()
            thread.join()

    assert arena.acquire()
    first = emit.new_p()
    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(60):
        path = tmp_path / f"{number}.trace"
        with trace(path, period=0.0):
            session.advance()
        order.check(path)
    over.set()
    for thread in threads:
        thread.join()
    judge(path)
    with trace(io.BytesIO()):
        pass  # the threads that ended during the last stop are struck off
    again = emit.new_p()
    emit.free_p(first)
    emit.free_p(again)
    arena.release()
    assert again == first + 1


def test_units_that_wait_cost_nothing_per_generation() -> None:
    """Of 100,000 that wait, a generation of the file tells no more than of 100."""
    item, here = emit.frame("crew.item", "crew.py", 1), emit.frame("main", "main.py", 1)
    sizes = []
    for count in (100, 100_000):
        file = io.BytesIO()
        with trace(file, period=3600.0):
            for _ in range(count):
                emit.go_create(emit.new_g(), item, here)
            for _ in range(10):
                assert session.advance()
        by_generation: dict[int, int] = {}
        for batch in raw.read_batches(io.BytesIO(file.getvalue()))[1]:
            by_generation[batch.gen] = by_generation.get(batch.gen, 0) + len(batch.data)
        sizes.append(max(list(by_generation.values())[3:-1]))  # neither those of the creations nor that of the end
    assert 0 < sizes[1] < sizes[0] + 100  # numbers may be some bytes longer; 100,000 units would be a megabyte


def looked(*_: object) -> Any:
    raise AssertionError("it was looked at")


SPECIAL = ("hash", "eq", "str", "repr", "index", "bool", "len", "iter")
Untouched = type("Untouched", (), {f"__{name}__": looked for name in SPECIAL})


def off() -> None:
    """No emit looks at its arguments, allocates, or asks for a stack, when no trace is on."""
    x: Any = Untouched()
    calls: list[tuple[Callable[..., object], tuple[Any, ...], object]] = [
        (emit.log, (x, x, x), None),
        (emit.region_begin, (x, x, x, x), 0),
        (emit.region_end, (), None),
        (emit.task_begin, (x, x, x, x), None),
        (emit.task_end, (x,), None),
        (emit.go_create, (x, x, x), 0),
        (emit.go_cancel, (x, x, x), None),
        (emit.go_block, (x, x), None),
        (emit.go_unblock, (None, x), None),
        (emit.go_resume, (None,), None),
    ]
    for call, args, nothing in calls:
        assert call(*args) == nothing
    before = sys.getallocatedblocks()
    for call, args, _ in calls:
        call(*args)
    assert sys.getallocatedblocks() - before <= 2  # what the loop itself holds


def test_with_no_trace_on_nothing_is_looked_at() -> None:
    off()
    with crew(1) as (worker,):
        worker.do(off)
        with trace(io.BytesIO()):  # so that both have a place in the arena
            emit.log(0, "here", "yes")
            worker.do(run_unit, emit.new_g(), 0, 1)
        off()
        worker.do(off)


def test_without_a_trace_there_is_no_advance() -> None:
    assert not session.advance(3600.0)
    code = "from pooltrace.tracer import session; assert not session.advance(3600.0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_exit_without_stop_leaves_a_whole_trace(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    code = f"import pooltrace; from pooltrace.tracer import emit; pooltrace.start({str(path)!r}); emit.log(0, 'a', 'b')"
    subprocess.run([sys.executable, "-c", code], check=True)
    judge(path)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLTRACE_DIR", str(tmp_path))

    def held() -> tuple[int, int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), len(os.listdir(tmp_path))

    def round_trip() -> None:
        with crew(2) as workers, trace(io.BytesIO(), period=0.001):
            assert os.stat(workers[0].place.path).st_mode & 0o777 == 0o600
            assert os.stat(os.path.dirname(workers[0].place.path)).st_mode & 0o777 == 0o700
            submit(workers[0], 3)
            workers[1].end(kill=True)

    round_trip()
    before = held()
    for _ in range(20):
        round_trip()
    assert held() == before
    assert before[2] == 0


def test_without_room_for_the_arena_the_reason_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLTRACE_DIR", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        start(tmp_path / "t.trace")
    place = arena.worker_open(1)  # a pool goes on without
    assert (place.entry, place.write_fd) == (-1, -1)
    assert not arena.attach_worker(place.path, place.entry, place.write_fd)
    place.gone(None)


def start_here(path: str) -> list[str]:
    """In a worker, by its main thread, by a thread that has written into the trace, and by one that has not."""
    said: list[str] = []

    def begin(annotate: bool) -> None:
        if annotate:
            emit.enter()
            emit.log(0, "annotated", "")
            emit.leave()
        try:
            start(path)
        except MisuseError as error:
            said.append(str(error))

    begin(False)
    for annotate in (True, False):
        thread = threading.Thread(target=begin, args=(annotate,))
        thread.start()
        thread.join()
    return said


def test_a_worker_is_told_that_it_cannot_start_a_trace(tmp_path: Path, judge: Judge) -> None:
    path, other = tmp_path / "t.trace", tmp_path / "other.trace"
    with crew(1) as (worker,), trace(path):
        said = worker.do(start_here, str(other))
    judge(path)
    assert len(said) == 3
    assert all(line.startswith("a worker cannot start a trace: ") for line in said)
    assert not other.exists()


def stop_self() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_stopped_worker_does_not_hold_up_the_advance(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with crew(1) as (worker,), trace(path):
        g = emit.new_g()
        created = emit.go_create(g, None, None)
        worker.order(run_unit, g, created, 3)
        worker.answer()
        worker.order(stop_self)
        os.waitpid(worker.pid, os.WUNTRACED)
        for _ in range(5):
            assert session.advance()
        os.kill(worker.pid, signal.SIGCONT)
        worker.answer()
        submit(worker, 2)
    judge(path)


# --- regions that interleave ----------------------------------------------------------------------


def regions_of(path: Path) -> list[str]:
    """Begins (+) and ends (-) of regions and the logs, in order."""
    sign = {"UserRegionBegin": ("+", "name"), "UserRegionEnd": ("-", "name"), "UserLog": ("", "key")}
    events = [e for e in order.read_events(path) if e.name in sign and (e.name != "UserLog" or unitlogs.is_users(e))]
    return [sign[event.name][0] + event.string(sign[event.name][1]) for event in events]


def test_a_region_that_is_not_the_innermost_first_ends_what_is_in_it(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with trace(path):
        first = emit.region_begin(emit.REGION, 0, "first", None)
        second = emit.region_begin(emit.REGION, 0, "second", None)
        assert 0 < first < second
        emit.region_end(first)
        emit.log(0, "between", "")
        emit.region_end(second)  # it has been ended
        emit.region_end(first)  # twice
        emit.region_end(0)  # that of a region that was not recorded
        emit.region_end(10**15)
    judge(path)
    assert regions_of(path) == ["+first", "+second", "-second", "-first", "between"]


def test_one_of_ours_that_ended_with_a_user_s_around_it_is_what_its_own_end_means(tmp_path: Path, judge: Judge) -> None:
    """Not the one around both."""
    path = tmp_path / "t.trace"
    with trace(path):
        emit.region_begin(emit.ITEM, 0, "item", None)
        user = emit.region_begin(emit.REGION, 0, "user", None)
        emit.region_begin(emit.PHASE, 0, "pickle", None)
        emit.region_begin(emit.REGION, 0, "lost", None)
        emit.region_end(user)  # in a __reduce__, say
        emit.region_begin(emit.PHASE, 0, "write", None)
        emit.region_end()
        emit.region_begin(emit.REGION, 0, "left open", None)
        emit.region_end()  # pickle's
        emit.log(0, "in item", "")
        emit.region_end()
    judge(path)
    pickle = ["+pickle", "+lost", "-lost", "-pickle"]
    inside = ["+user", *pickle, "-user", "+write", "-write", "+left open", "-left open", "in item"]
    assert regions_of(path) == ["+item", *inside, "-item"]


def leave_region_open(_: int) -> None:
    emit.region_begin(emit.REGION, 0, "left open", None)


def run_and_leave_open(g: int) -> None:
    """In a worker."""
    emit.unit_begin(g, 0, None)
    emit.run_chunk(leave_region_open, range(2), 0, 0, "item", None)
    emit.region_begin(emit.PHASE, 0, "pickle", None)
    emit.region_end()
    emit.unit_end()
    emit.idle()


def test_a_region_left_open_ends_with_its_item(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with crew(1) as (worker,), trace(path):
        worker.do(run_and_leave_open, emit.new_g())
    judge(path)
    assert regions_of(path) == 2 * ["+item", "+left open", "-left open", "-item"] + ["+pickle", "-pickle"]


def test_a_region_of_an_older_trace_or_of_another_thread_ends_nothing(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with trace(tmp_path / "older.trace"):
        old = emit.region_begin(emit.REGION, 0, "old", None)
    with trace(path):
        emit.region_begin(emit.REGION, 0, "outer", None)
        emit.region_end(old)
        foreign: list[int] = []

        def other() -> None:
            emit.enter()
            foreign.append(emit.region_begin(emit.REGION, 0, "foreign", None))
            emit.log(0, "foreign began", "")
            emit.leave()

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        emit.region_end(foreign[0])
        emit.log(0, "inside outer", "")
    judge(path)
    mine = [e for e in order.read_events(path) if e.m == threading.get_native_id()]
    names = [e.name for e in mine if e.name != "UserLog" or unitlogs.is_users(e)]
    assert names.count("UserRegionBegin") == 1
    assert "UserRegionEnd" not in names[: names.index("UserLog")]


def coroutines(g: int) -> list[str]:
    """In a worker: a unit in which two coroutines wait for each other inside their regions."""
    import asyncio

    said: list[str] = []

    async def one(name: str, mine: asyncio.Event, other: asyncio.Event) -> None:
        handle = emit.region_begin(emit.REGION, 0, name, None)
        mine.set()
        await other.wait()
        emit.log(0, "in " + name, "")
        said.append(name)
        emit.region_end(handle)

    async def both() -> None:
        a, b = asyncio.Event(), asyncio.Event()
        await asyncio.gather(one("a", a, b), one("b", b, a))

    emit.unit_begin(g, 0, None)
    asyncio.run(both())
    emit.unit_end()
    emit.idle()
    return said


def test_coroutines_in_a_unit_do_not_end_each_other_s_unit(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with crew(1) as (worker,), trace(path, period=0.001):
        said = [name for _ in range(50) for name in worker.do(coroutines, emit.new_g())]
    judge(path)
    found = regions_of(path)
    assert [name[3:] for name in found if name.startswith("in ")] == said
    assert Counter(name for name in found if name[0] in "+-") == {"+a": 50, "-a": 50, "+b": 50, "-b": 50}
    figures = summary()
    assert figures is not None
    assert (figures["units"], figures["lost_events"]) == (50, 0)
