"""What our writer puts at the head of each generation, which no reader asks for: figures, statuses, clocks, names."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import unitlogs
from crew import Worker, crew, flood, run_unit
from test_session import wait_inside

from pooltrace import summary, trace
from pooltrace.format import order, spec
from pooltrace.format.generation import Generation, Misreads, read_generations
from pooltrace.format.order import Event, Summary
from pooltrace.format.raw import open_trace, read_batches
from pooltrace.tracer import emit, machine, session

Judge = Callable[[str | os.PathLike[str]], Summary]
HEADERS = ["1.22", "1.23", "1.25", "1.26"]


def by_generation(path: Path) -> list[list[Event]]:
    found: dict[int, list[Event]] = {}
    for event in order.read_events(path):
        found.setdefault(event.gen, []).append(event)
    return list(found.values())


def generations(path: Path) -> list[Generation]:
    with open_trace(path) as file:
        _, batches = read_batches(file)
        return list(read_generations(batches, Misreads()))


def args_of(events: list[Event], name: str) -> list[int]:
    return [event.args[0] for event in events if event.name == name]


class Gates:
    """Units that wait, each in a worker of its own."""

    def __init__(self, folder: Path, workers: list[Worker]) -> None:
        self.workers = workers
        self.gs = [emit.new_g() for _ in workers]
        self.go = [folder / f"go {i}" for i in range(len(workers))]
        ready = folder / "ready"
        for path in (ready, *self.go):
            os.mkfifo(path)
        for worker, g, go in zip(workers, self.gs, self.go):
            worker.order(wait_inside, g, str(ready), str(go))
            ready.read_bytes()
        ready.unlink()

    def open(self) -> None:
        for worker, go in zip(self.workers, self.go):
            go.write_bytes(b"")
            worker.answer()
            go.unlink()


@pytest.mark.parametrize("header", HEADERS)
def test_each_generation_begins_with_the_figures_of_its_time(tmp_path: Path, judge: Judge, header: str) -> None:
    path, begun = tmp_path / "t.trace", time.time_ns()
    with crew(2) as workers, trace(path, header=header, period=3600.0):
        gates = Gates(tmp_path, workers[:1])
        assert session.advance()
        workers.append(Worker())  # in the middle of a generation
        workers[2].do(run_unit, emit.new_g(), 0, 1)
        assert session.advance()
        assert session.advance()
        gates.open()
    judge(path)
    found = by_generation(path)
    slots = [args_of(events, "ProcsChange") for events in found]
    assert [counts[0] for counts in slots] == [2, 2, 3, 3]  # at its head
    assert slots[1][-1] == 3  # and where it changed
    assert [args_of(events, "HeapGoal") for events in found] == [[machine.memory_limit()]] * 4
    assert all(len(args_of(events, "HeapAlloc")) == 1 for events in found)
    assert all(10 << 20 < args_of(events, "HeapAlloc")[0] < 4 << 30 for events in found)
    if header in ("1.25", "1.26"):
        clocks = [g.tables.snapshot for g in generations(path) if g.tables.snapshot]
        walls = [clock.sec * 1_000_000_000 + clock.nsec for clock in clocks]
        assert len(walls) == 4
        assert begun <= walls[0] <= walls[1] <= walls[2] <= walls[3] <= time.time_ns()


def test_the_exchange_at_the_start_shows_once(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with trace(path, period=3600.0):
        for _ in range(3):
            assert session.advance()
    judge(path)
    stops = [event for event in order.read_events(path) if event.name.startswith("STW")]
    assert [event.name for event in stops] == ["STWBegin", "STWEnd"]
    assert stops[0].string("kind") == "start trace"
    assert {event.m for event in stops} == {threading.get_native_id()}


def test_what_each_worker_does_is_said_by_its_own_m_or_by_none(tmp_path: Path, judge: Judge) -> None:
    """Those that work say it themselves, first of all; of those that do nothing it is said by no M."""
    path = tmp_path / "t.trace"
    with crew(3) as workers, trace(path, period=3600.0):
        gates = Gates(tmp_path, workers[:1])
        for _ in range(3):
            assert session.advance()
        gates.open()
    judge(path)
    running, idle = spec.ProcStatus.RUNNING, spec.ProcStatus.IDLE
    for events in by_generation(path)[1:]:
        told = {e.arg("p"): (e.m, e.args[1]) for e in events if e.name == "ProcStatus"}
        assert told[workers[0].p] == (workers[0].pid, running)
        assert told[workers[1].p] == told[workers[2].p] == (-1, idle)
        assert next(e for e in events if e.m == workers[0].pid).name == "ProcStatus"


@pytest.mark.parametrize("header", HEADERS)
def test_a_trace_that_starts_with_work_in_every_slot(tmp_path: Path, judge: Judge, header: str) -> None:
    path = tmp_path / "t.trace"
    with crew(4) as workers:
        gates = Gates(tmp_path, workers)
        frame = emit.frame("crew.wait_inside", "crew.py", 9)
        forget = session.describe_units(lambda: [(g, frame) for g in gates.gs])
        with trace(path, header=header):
            forget()
            gates.open()
    judge(path)
    events = list(order.read_events(path))
    for worker, g in zip(workers, gates.gs):
        mine = [event for event in events if event.m == worker.pid]
        status = mine[1]
        assert [mine[0].name, status.name] == ["ProcStatus", "GoStatus" if header == "1.22" else "GoStatusStack"]
        assert (mine[0].arg("p"), status.arg("g")) == (worker.p, g)
        assert header == "1.22" or status.stack()[0].function == "crew.wait_inside"
        assert [event.string("key") for event in mine if unitlogs.is_users(event)] == ["released"]


def test_ids_of_units_may_have_more_bits_than_a_word_keeps(tmp_path: Path, judge: Judge) -> None:
    """31 of them: the rest comes from the newest id, also when that has gone on beyond the next 2**31."""
    path = tmp_path / "t.trace"
    with crew(1) as workers:
        with open(workers[0].place.path, "r+b") as file:  # the arena: its sixth word is the next G's id
            file.seek(40)
            file.write(struct.pack("=Q", (5 << 31) - 2))
        gates = Gates(tmp_path, workers)
        assert gates.gs == [(5 << 31) - 2]
        for _ in range(10):
            emit.new_g()
        with trace(path):
            gates.open()
    judge(path)
    status = [e for e in order.read_events(path) if e.m == workers[0].pid and e.name.startswith("GoStatus")]
    assert [event.arg("g") for event in status] == gates.gs


def test_ids_go_on_from_one_arena_to_the_next() -> None:
    ids = []
    for _ in range(3):
        with crew(1) as (worker,), trace(io.BytesIO()):
            ids += [emit.new_g(), emit.new_task()]
            worker.do(run_unit, emit.new_g(), 0, 1)
    assert sorted(set(ids[::2])) == ids[::2]
    assert sorted(set(ids[1::2])) == ids[1::2]


def test_a_line_of_code_has_one_pc_whoever_names_it_and_when(tmp_path: Path, judge: Judge) -> None:
    """Go's tools add up by it."""
    path = tmp_path / "t.trace"
    with crew(2) as workers, trace(path, period=3600.0):
        for _ in range(3):
            for worker in workers:
                worker.do(run_unit, emit.new_g(), 0, 2)
            emit.log(0, "here", str(emit.stack().frames[0]))
            emit.region_end(emit.region_begin(emit.REGION, 0, "region", None))
            assert session.advance()
    judge(path)
    pcs: dict[tuple[int | str, ...], set[int]] = defaultdict(set)
    lines: dict[int, set[tuple[int | str, ...]]] = defaultdict(set)
    for generation in generations(path):
        for number in generation.tables.stacks:
            for frame in generation.tables.stack(number):
                pcs[frame.function, frame.file, frame.line].add(frame.pc)
                lines[frame.pc].add((frame.function, frame.file, frame.line))
    assert len(pcs) > 3
    assert all(len(of_line) == 1 for of_line in pcs.values())
    assert all(len(of_pc) == 1 for of_pc in lines.values())


class Counting:
    """A sink that keeps nothing, and tells when it has got a megabyte."""

    def __init__(self) -> None:
        self.size = 0
        self.megabyte = threading.Event()

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > 1 << 20:
            self.megabyte.set()


def many_events(g: int, count: int) -> None:
    """In a worker."""
    emit.unit_begin(g, 0, None)
    for _ in range(count):
        emit.log(0, "text", "the same")
    emit.unit_end()
    emit.idle()


def test_the_file_is_written_while_its_generation_is_open() -> None:
    sink = Counting()
    with crew(1) as (worker,), trace(sink, period=3600.0):
        first = session.generation()
        worker.do(many_events, emit.new_g(), 200_000)
        sink.megabyte.wait()
        assert session.generation() == first


def test_texts_that_are_used_once_are_forgotten_with_their_generation() -> None:
    """Some bytes of them make a generation end early, and only once each."""
    with crew(1) as (worker,), trace(Counting(), period=3600.0):
        worker.do(flood, emit.new_g(), 80_000)
    figures = summary()
    assert figures is not None
    assert figures["lost_events"] == 0
    assert 2 <= figures["generations"] <= 6  # 80 MB in pieces of 32, and what comes while one is closed
