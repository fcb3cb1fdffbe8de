"""The backlog: how many units each worker gets, what is taken back, and that nothing waits behind a long unit."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

import jobs
import pytest
from faults import square

from pooltrace.pool import _channel
from pooltrace.pool.backlog import Backlog
from pooltrace.pool.jobs import Job, Row, Unit
from pooltrace.pool.pool import StdPool
from pooltrace.pool.serialize import Serializer
from pooltrace.pool.slots import DEPTH_NS
from pooltrace.tracer import emit


@pytest.fixture(params=[0, 1, 1000], autouse=True)
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many plain units a slot takes in one go; the others one by one, as those that need a pickler."""
    monkeypatch.setattr(FakeSlot, "at_once", request.param)


class FakeSlot:
    """Takes what it is given; the first one runs for ever."""

    at_once = 0

    def __init__(self, depth: int | None = None, is_open: bool = True) -> None:
        self.units: list[Unit] = []
        self.depth = depth
        self.open = is_open
        self.in_a_call = False

    @property
    def inflight(self) -> int:
        return len(self.units)

    def is_open(self) -> bool:
        return self.open

    def wants(self, job: Job) -> int:
        depth = self.depth or (max(2, DEPTH_NS // job.unit_ns) if job.unit_ns else 2)
        return max(0, depth - len(self.units))

    def post(self, unit: Unit, serializer: Serializer) -> bool:
        serializer.dumps(unit.payload())
        if not self.in_a_call:
            self.units.append(unit)
        return not self.in_a_call

    def post_row(self, row: Row, most: int) -> int:
        count = 0 if self.in_a_call else min(self.at_once, most, row.left)
        self.units.extend(row.take() for _ in range(count))
        return count

    def post_units(self, waiting: Any, most: int) -> int:
        count = 0
        for unit in list(waiting):
            together = type(unit) is Unit and unit.job is waiting[0].job and unit.error is None and not self.in_a_call
            if not together or count == min(self.at_once, most) or _channel.plain(unit.payload()) is None:
                break
            self.units.append(unit)
            count += 1
        return count

    def take_back(self, most: int) -> list[Unit]:
        keep = max(1, len(self.units) - most)
        taken, self.units = self.units[keep:], self.units[:keep]
        return taken

    @property
    def indexes(self) -> list[int]:
        return [unit.index for unit in self.units]


def backlog_of(count: int, unit_ns: int = 0) -> tuple[Backlog, Job, list[tuple[Unit, BaseException]]]:
    failed: list[tuple[Unit, BaseException]] = []
    backlog = Backlog(Serializer("multiprocessing"), lambda unit, error: failed.append((unit, error)))
    job = Job(1, _channel.MAP, square)
    job.unit_ns = unit_ns
    if count:
        add(backlog, Row(Unit, job, range(count), 1, 0, count, emit.new_g(count)))
    return backlog, job, failed


def add(backlog: Backlog, *rows: Any) -> None:
    backlog.take_in(deque(rows))


def assign(backlog: Backlog, *slots: FakeSlot) -> list[Any]:
    return backlog.assign(list(slots))  # type: ignore[arg-type]


def test_one_for_each_before_a_second_for_any() -> None:
    backlog, _, _ = backlog_of(5)
    a, b, c = FakeSlot(), FakeSlot(), FakeSlot()
    assert assign(backlog, a, b, c) == [a, b, c]
    assert (a.indexes, b.indexes, c.indexes) == ([0, 3], [1, 4], [2])
    assert len(backlog) == 0


def test_of_units_that_may_be_long_one_waits_at_each_worker() -> None:
    for unit_ns in (0, DEPTH_NS, 10**12):
        backlog, _, _ = backlog_of(1000, unit_ns)
        a, b = FakeSlot(), FakeSlot()
        assign(backlog, a, b)
        assert (a.inflight, b.inflight, len(backlog)) == (2, 2, 996)


def test_of_short_ones_as_many_as_make_two_milliseconds() -> None:
    backlog, _, _ = backlog_of(1000, DEPTH_NS // 50)
    a, b = FakeSlot(), FakeSlot()
    assign(backlog, a, b)
    assert (a.inflight, b.inflight, len(backlog)) == (50, 50, 900)


def test_no_worker_gets_more_than_its_share() -> None:
    backlog, _, _ = backlog_of(30, 1000)
    a, b, c = FakeSlot(), FakeSlot(), FakeSlot()
    assign(backlog, a, b, c)
    assert (a.inflight, b.inflight, c.inflight) == (10, 10, 10)
    backlog, _, _ = backlog_of(10, 1000)
    a, b = FakeSlot(), FakeSlot(is_open=False)
    assign(backlog, a, b)
    assert (a.inflight, b.inflight) == (10, 0)


def test_half_of_what_waits_is_taken_back_for_who_has_nothing() -> None:
    backlog, _, _ = backlog_of(40, 1000)
    a, b = FakeSlot(), FakeSlot(is_open=False)
    assign(backlog, a, b)
    b.open = True
    assert assign(backlog, a, b) == [b]
    assert a.indexes == list(range(20))
    assert b.indexes == list(range(20, 40))  # in their order
    assert assign(backlog, a, b) == []


def test_the_last_one_that_waits_is_taken_back() -> None:
    backlog, _, _ = backlog_of(2)
    a, b = FakeSlot(), FakeSlot(is_open=False)
    assign(backlog, a, b)
    b.open = True
    assign(backlog, a, b)
    assert (a.indexes, b.indexes) == ([0], [1])


def test_a_job_that_is_over_gets_no_worker() -> None:
    backlog, job, failed = backlog_of(10)
    other = Job(2, _channel.MAP, square)
    add(backlog, Row(Unit, other, range(1), 1, 0, 1, emit.new_g()))
    job.end()
    a = FakeSlot()
    assign(backlog, a)
    assert [unit.job for unit in a.units] == [other]
    assert (len(backlog), failed) == (0, [])


def test_units_that_cannot_be_sent_fail_and_others_take_their_place() -> None:
    backlog, job, failed = backlog_of(0)
    bad = Unit(job, 0, None, emit.new_g())
    bad.error = ValueError("the iterator's")
    unpicklable = Unit(job, 1, (i for i in ()), emit.new_g())
    good = Unit(job, 2, (1,), emit.new_g())
    add(backlog, bad, unpicklable, good)
    a = FakeSlot()
    assign(backlog, a)
    assert a.units == [good]
    assert [unit for unit, _ in failed] == [bad, unpicklable]
    assert str(failed[0][1]) == "the iterator's"


def test_units_that_wait_one_by_one_are_counted() -> None:
    """By the job, whose feeder may go on, and by the backlog."""
    backlog, job, _ = backlog_of(0, 1000)
    other = Job(2, _channel.MAP, square)
    other.unit_ns = 1000
    units = [Unit(job if i < 6 else other, i, (i,), emit.new_g()) for i in range(8)]
    for unit in units:
        unit.size = 10
    add(backlog, *units)
    a = FakeSlot(depth=7)
    assign(backlog, a)
    assert (a.units, len(backlog)) == (units[:7], 1)
    assert [(job.sent, job.sent_bytes), (other.sent, other.sent_bytes)] == [(6, 60), (1, 10)]
    backlog.put_back(a.take_back(3))
    assert [(job.sent, job.sent_bytes), (other.sent, other.sent_bytes)] == [(4, 40), (0, 0)]
    job.end()
    b = FakeSlot(depth=9)
    assign(backlog, b)
    assert (b.units, len(backlog)) == (units[6:], 0)
    assert [(job.sent, job.sent_bytes), (other.sent, other.sent_bytes)] == [(6, 60), (2, 20)]


def test_a_worker_that_a_call_has_since_it_was_looked_at() -> None:
    """The unit stays the first that waits."""
    backlog, _, _ = backlog_of(3, 1000)
    a, b = FakeSlot(), FakeSlot()
    a.in_a_call = True
    assign(backlog, a, b)
    assert (a.indexes, b.indexes, len(backlog)) == ([], [0, 1], 1)
    a.in_a_call = False
    assign(backlog, a)
    assert (a.indexes, len(backlog)) == ([2], 0)


def test_what_is_put_back_comes_first_and_in_order() -> None:
    backlog, _, _ = backlog_of(6, 1000)
    a = FakeSlot(depth=4)
    assign(backlog, a)
    backlog.put_back(a.take_back(3))
    b = FakeSlot(depth=10)
    assign(backlog, b)
    assert b.indexes == [1, 2, 3, 4, 5]


def test_a_row_makes_its_units_one_by_one() -> None:
    job = Job(1, _channel.MAP, square)
    row = Row(Unit, job, range(7), 3, 0, 3, 100)
    units = [row.take() for _ in range(3)]
    assert [unit.payload() for unit in units] == [(0, 1, 2), (3, 4, 5), (6,)]
    assert [(unit.g, unit.index, unit.span) for unit in units] == [(100, 0, (0, 3)), (101, 1, (3, 6)), (102, 2, (6, 7))]
    assert row.left == 0


# -- with workers


def blocked(folder: Path) -> tuple[str, str]:
    names = folder / "begun", folder / "go"
    for name in names:
        os.mkfifo(name)
    return str(names[0]), str(names[1])


def square_or_wait(number: int, begun: str, go: str) -> int:
    if number < 0:
        jobs.wait_between(begun, go)
    return number * number


@pytest.mark.parametrize("chunksize", [1, 10])
def test_results_do_not_wait_for_a_long_unit_behind_them(chunksize: int, tmp_path: Path) -> None:
    """The worker may hold back results of short units; the engine finds them."""
    begun, go = blocked(tmp_path)
    with StdPool(1) as pool:
        pool.map(square, range(1000), 1)  # it knows now that they are short
        short = pool.map_async(square, range(300), chunksize)
        long = pool.apply_async(jobs.wait_between, (begun, go))
        assert short.get() == [x * x for x in range(300)]
        assert not long.ready()
        Path(begun).read_bytes()
        Path(go).write_bytes(b"")
        long.get()


def test_results_do_not_wait_for_a_long_unit_of_their_own_job(tmp_path: Path) -> None:
    begun, go = blocked(tmp_path)
    with StdPool(1) as pool:
        numbers = [*range(300), -1]
        results = pool.imap_unordered(_Call(begun, go), numbers)
        assert sorted(next(results) for _ in range(300)) == [x * x for x in range(300)]
        Path(begun).read_bytes()
        Path(go).write_bytes(b"")
        assert next(results) == 1


class _Call:
    def __init__(self, begun: str, go: str) -> None:
        self._names = begun, go

    def __call__(self, number: int) -> int:
        return square_or_wait(number, *self._names)


@pytest.mark.parametrize("workers", [2, 3])
def test_nothing_waits_behind_a_long_unit_while_another_worker_is_idle(workers: int, tmp_path: Path) -> None:
    begun, go = blocked(tmp_path)
    with StdPool(workers) as pool:
        pool.map(square, range(1000), 1)
        numbers = [-1, *range(500)]
        results = pool.imap_unordered(_Call(begun, go), numbers)
        assert sorted(next(results) for _ in range(500)) == sorted(x * x for x in range(500))
        Path(begun).read_bytes()
        Path(go).write_bytes(b"")
        assert next(results) == 1


def test_memory_does_not_grow_with_the_units_of_a_map() -> None:
    """A million units wait as a few rows."""
    with StdPool(1) as pool:
        pool.map(square, range(10))
        result = pool.map_async(square, range(1_000_000), 1)
        assert pool._taskqueue.qsize() > 0
        assert len(pool._engine.inbox) + len(pool._engine._backlog._rows) < 2000
        pool.terminate()
        assert not result.ready() or not result.successful()
