"""What a trace of a real pool says is what the program itself noted, under every start method, face and header."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gotool
import jobs
import multiprocess
import pytest
import truth
from jobs import note, note_if_alive

import pooltrace
from pooltrace.format import order
from pooltrace.pool import worker
from pooltrace.pool.slots import Slot
from pooltrace.tracer import session

Judge = Callable[[str | os.PathLike[str]], order.Summary]
FACES = {"multiprocess": (multiprocess, pooltrace.Pool), "multiprocessing": (multiprocessing, pooltrace.StdPool)}


def pool_of(face: str, method: str, workers: int = 2, **options: Any) -> Any:
    family, cls = FACES[face]
    return cls(workers, context=family.get_context(method), **options)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("period", [1.0, 0.0])
def test_every_start_method_and_face(tmp_path: Path, judge: Judge, method: str, face: str, period: float) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path, period=period), pool_of(face, method) as pool:
        notes = pool.map(note, range(300), chunksize=3)
    judge(path)
    truth.agree(path, "jobs.note", notes, units=100)
    figures = pooltrace.summary()
    assert figures is not None
    assert (figures["items"], figures["jobs"], figures["workers_lost"], figures["lost_events"]) == (300, 1, 0, 0)


@pytest.mark.parametrize("header", ["1.22", "1.23", "1.25", "1.26"])
@pytest.mark.parametrize("period", [1.0, 0.0])
def test_every_header_over_many_generations(tmp_path: Path, judge: Judge, header: str, period: float) -> None:
    path = tmp_path / "t.trace"
    notes = []
    with pooltrace.trace(path, header=header, period=period), pool_of("multiprocessing", "fork") as pool:
        for _ in range(50):
            notes += pool.map(note, range(8), chunksize=1)
            session.advance()
    found = judge(path)
    assert found.header == header
    assert found.generations > 50
    truth.agree(path, "jobs.note", notes, units=400)


def test_two_pools_at_once_and_several_submitting_threads(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    notes = []

    def submit(pool: Any) -> None:
        for _ in range(10):
            notes.extend(pool.map(note, range(20), chunksize=2))
            notes.append(pool.apply(note, (0,)))
            notes.extend(pool.imap_unordered(note, range(10)))

    with pooltrace.trace(path, period=0.01):
        with pool_of("multiprocessing", "fork") as first, pool_of("multiprocess", "fork", 3) as second:
            threads = [threading.Thread(target=submit, args=(pool,)) for pool in (first, second, first, second)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    found = judge(path)
    truth.agree(path, "jobs.note", notes, units=4 * 10 * (10 + 1 + 10))
    assert found.tasks == 4 * 10 * 3


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_lost_worker(tmp_path: Path, judge: Judge, method: str) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pool_of("multiprocessing", method) as pool:
        with pytest.raises(pooltrace.WorkerLostError, match="SIGKILL") as caught:
            pool.map(partial(note_if_alive, victim=7), range(20), chunksize=1)
        assert caught.value.signal == 9
        notes = pool.map(note, range(50), chunksize=5)
    judge(path)
    truth.agree(path, "jobs.note", notes, units=10)
    lost = [e for e in order.read_events(path) if e.name == "UserLog" and e.string("key") == "worker lost"]
    assert [e.m for e in lost] == [caught.value.pid]
    assert "SIGKILL" in lost[0].string("value")
    figures = pooltrace.summary()
    assert figures is not None
    assert figures["workers_lost"] == 1


def left_alive(path: Path) -> tuple[int, set[int]]:
    """How many units of the test's functions a trace has, and which of them it leaves alive at its end."""
    created: set[int] = set()
    ended: set[int] = set()
    for event in order.read_events(path):
        if event.name == "GoCreate" and (frames := event.stack("new_stack")) and frames[0].function.startswith("jobs."):
            created.add(event.arg("new_g"))
        elif event.name == "GoDestroy":
            ended.add(event.g)
    return len(created), created - ended


@pytest.mark.parametrize("header", ["1.22", "1.26"])
@pytest.mark.parametrize("way", ["terminate", "unpicklable", "initializer"])
def test_units_that_never_run_are_ended(header: str, way: str, tmp_path: Path, judge: Judge) -> None:
    """Queued in the parent or at the worker, created in this generation or in an older one."""
    path, begun, never = tmp_path / "t.trace", tmp_path / "begun", tmp_path / "never"
    os.mkfifo(begun)
    os.mkfifo(never)
    with pooltrace.trace(path, header=header, period=3600.0):
        if way == "initializer":
            pool = pool_of("multiprocessing", "fork", 1, initializer=jobs.fail)
            with pytest.raises(pooltrace.PoolBrokenError):
                pool.map(note, range(30), chunksize=1)
            cancelled = 30
        elif way == "unpicklable":
            pool = pool_of("multiprocessing", "fork", 1)
            with pytest.raises(TypeError):
                pool.apply(note, (threading.Lock(),))
            cancelled = 1
        else:
            pool = pool_of("multiprocessing", "fork", 1)
            pool.apply_async(jobs.wait_between, (str(begun), str(never)))
            pool.map_async(note, range(10), chunksize=1)
            begun.read_bytes()
            assert session.advance()
            pool.map_async(note, range(10), chunksize=1)
            cancelled = 20
        pool.terminate()
        pool.join()
    judge(path)
    count, alive = left_alive(path)
    figures = pooltrace.summary()
    assert figures is not None
    assert figures["units_cancelled"] == cancelled
    assert count == cancelled + (way == "terminate")
    assert alive == set()


def test_a_unit_that_comes_after_the_end_of_its_pool_is_ended(tmp_path: Path, judge: Judge) -> None:
    """The feeder of an imap may get an item, and make a unit of it, when nobody takes units any more."""
    path, go = tmp_path / "t.trace", threading.Event()

    def numbers() -> Iterator[int]:
        yield 0
        go.wait()
        yield 1

    with pooltrace.trace(path):
        pool = pool_of("multiprocessing", "fork", 1)
        assert next(pool.imap(note, numbers())).number == 0
        (feeder,) = (thread for thread in threading.enumerate() if thread.name == "pooltrace feeder")
        pool.terminate()
        pool.join()
        go.set()
        feeder.join()
    judge(path)
    assert left_alive(path) == (2, set())


@pytest.mark.parametrize("older", [False, True])
def test_a_worker_that_dies_between_claim_and_begin(
    older: bool, tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit is the worker's own: it is started on it, and lost with it."""
    path = tmp_path / "t.trace"

    def die(self: object, frame: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pooltrace.trace(path, period=3600.0), pool_of("multiprocessing", "fork", 1) as pool:
        pool.map(note, range(3))
        (before,) = (process.pid for process in pool._pool)
        monkeypatch.setattr(worker._Worker, "_unit", die)
        os.kill(before, signal.SIGKILL)  # the next one has the hook
        if older:
            monkeypatch.setattr(Slot, "flush", advance_first(Slot.flush))
        with pytest.raises(pooltrace.WorkerLostError) as caught:
            pool.map(note, range(4), chunksize=4)
        monkeypatch.undo()
    judge(path)
    assert left_alive(path)[1] == set()
    logs = [e for e in order.read_events(path) if e.name == "UserLog" and e.string("key") == "worker lost"]
    assert [(e.m, e.g in read_units(path)) for e in logs if e.m == caught.value.pid] == [(caught.value.pid, True)]


def advance_first(flush: Callable[[Slot], bool]) -> Callable[[Slot], bool]:
    """The worker gets its units in the generation after that of their creation."""

    def hook(slot: Slot) -> bool:
        assert session.advance()
        return flush(slot)

    return hook


def read_units(path: Path) -> set[int]:
    return {e.arg("new_g") for e in order.read_events(path) if e.name == "GoCreate" and e.stack("new_stack")}


def test_a_trace_that_begins_while_a_worker_starts(tmp_path: Path, judge: Judge) -> None:
    """The start-up that is under way is one in this trace, too, and no unit."""
    path, begun, go = tmp_path / "t.trace", tmp_path / "begun", tmp_path / "go"
    os.mkfifo(begun)
    os.mkfifo(go)
    with pool_of("multiprocessing", "fork", 1, initializer=jobs.wait_between, initargs=(str(begun), str(go))) as pool:
        begun.read_bytes()
        with pooltrace.trace(path):
            go.write_bytes(b"")
            notes = pool.map(note, range(6), chunksize=3)
    judge(path)
    truth.agree(path, "jobs.note", notes, units=2)
    figures = pooltrace.summary()
    assert figures is not None
    assert (figures["units"], figures["items"]) == (2, 6)
    assert figures["slots"][0]["start_ns"] > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trace_around_part_of_a_pools_life(tmp_path: Path, judge: Judge, workers: int) -> None:
    """Pools older than the trace and pools that outlive it, with units in flight at both ends."""
    with pool_of("multiprocessing", "fork", workers) as pool:
        for i in range(5):
            path = tmp_path / f"{i}.trace"
            before = pool.map_async(note, range(200), chunksize=1)
            pooltrace.start(path, period=0.001)
            within = pool.map(note, range(50), chunksize=1)
            after = pool.map_async(note, range(200), chunksize=1)
            pooltrace.stop()
            judge(path)
            noted = {(n.pid, n.begin) for n in [*before.get(), *within, *after.get()]}
            found = truth.read(path, "jobs.note", whole=False)
            for m, items in found.items.items():  # each region holds exactly one note of its worker
                mine = sorted(begin for pid, begin in noted if pid == m)
                for item in items:
                    assert sum(item.begin <= begin <= item.end for begin in mine) == 1
            inside = {(n.pid, n.begin) for n in within}
            seen = {
                (m, begin)
                for m, items in found.items.items()
                for item in items
                for pid, begin in inside
                if pid == m and item.begin <= begin <= item.end
            }
            assert seen == inside


def test_waits_have_wakers_and_stacks(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pool_of("multiprocessing", "fork") as pool:
        pool.map(note, range(10), chunksize=1)
    judge(path)
    blocks = [e for e in order.read_events(path) if e.name == "GoBlock"]
    mine = [e for e in blocks if any("test_waits_have" in frame.function for frame in e.stack())]
    assert mine, "the wait in map() has the caller's stack"
    unblocks = [e for e in order.read_events(path) if e.name == "GoUnblock" and e.arg("g") == mine[0].g]
    assert any(e.m != mine[0].m for e in unblocks), "another thread brought the result"
    creates = [e for e in order.read_events(path) if e.name == "GoCreate" and e.stack("new_stack")]
    notes = [e for e in creates if e.stack("new_stack")[0].function == "jobs.note"]
    assert all(any("test_waits_have" in frame.function for frame in e.stack()) for e in notes)


def test_a_hundred_thousand_units(tmp_path: Path) -> None:
    """Order, worker and count exactly; how far durations agree is printed, and asserted by scripts/truth.py."""
    path, count = tmp_path / "t.trace", 100_000
    with pooltrace.trace(path), pool_of("multiprocessing", "fork") as pool:
        notes = pool.map(note, range(count), chunksize=1)
    assert [n.number for n in notes] == list(range(count))
    order.check(path)
    binary = gotool.require_go()
    subprocess.run([binary, "-d=parsed", path], stdout=subprocess.DEVNULL, check=True)
    differences = truth.agree(path, "jobs.note", notes, units=count)
    print(f"durations differ by {statistics.median(differences)} ns in the median, {max(differences)} ns at most")
