"""Pauses of Python's collector: ranges that nest in whatever is recorded, over borders, starts, ends and deaths."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import pooltrace
from pooltrace.errors import WorkerLostError
from pooltrace.format import order
from pooltrace.tracer import emit, session

Judge = Callable[[str | os.PathLike[str]], order.Summary]
Within = Callable[[Callable[[], object]], None]


@pytest.fixture
def within() -> Within:
    """Does something in the middle of a full collection: after our callback for its start, before that for its end."""
    todo: list[Callable[[], object]] = []

    def callback(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and todo:
            todo.pop()()

    def collect(action: Callable[[], object]) -> None:
        todo.append(action)
        gc.callbacks.append(callback)  # behind ours
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(callback)
        assert not todo

    return collect


def pauses(path: Path, m: int | None = None) -> list[str]:
    m = threading.get_native_id() if m is None else m
    return [e.name.removeprefix("GCMarkAssist") for e in order.read_events(path) if "MarkAssist" in e.name and e.m == m]


@pytest.mark.parametrize("header", ["1.22", "1.23", "1.25", "1.26"])
def test_a_pause_that_is_open_over_borders(tmp_path: Path, judge: Judge, within: Within, header: str) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path, period=60, header=header):
        within(lambda: [session.advance() for _ in range(3)])
        emit.log(0, "after", "it")
    judge(path)
    assert pauses(path) == ["Begin", "Active", "Active", "Active", "End"]
    [begin] = [e for e in order.read_events(path) if e.name == "GCMarkAssistBegin"]
    assert begin.stack()[0].function.endswith("collect")


def test_a_trace_that_starts_within_a_pause(tmp_path: Path, judge: Judge, within: Within) -> None:
    """CPython calls what is put into gc.callbacks meanwhile: so the rest of that pause is in the trace."""
    path = tmp_path / "t.trace"
    within(lambda: pooltrace.start(path))
    gc.collect()
    pooltrace.stop()
    judge(path)
    assert pauses(path) == ["Begin", "End"] * 2


def test_a_trace_that_ends_within_a_pause(tmp_path: Path, judge: Judge, within: Within) -> None:
    path = tmp_path / "t.trace"
    pooltrace.start(path)
    within(pooltrace.stop)
    judge(path)
    assert pauses(path) == ["Begin"]
    with pooltrace.trace(path):
        emit.log(0, "another", "trace")
    judge(path)
    assert pauses(path) == []


def test_a_trace_that_is_another_one_at_the_end_of_a_pause(tmp_path: Path, judge: Judge, within: Within) -> None:
    first, second = tmp_path / "1.trace", tmp_path / "2.trace"
    pooltrace.start(first)

    def change() -> None:
        pooltrace.stop()
        pooltrace.start(second)

    within(change)
    pooltrace.stop()
    judge(first)
    judge(second)
    assert (pauses(first), pauses(second)) == (["Begin"], [])


def test_regions_and_logs_within_a_pause(tmp_path: Path, judge: Judge, within: Within) -> None:
    """A finalizer's, say."""
    path = tmp_path / "t.trace"

    def finalizer() -> None:
        handle = emit.region_begin(emit.REGION, 0, "finalizer", None)
        emit.log(0, "in", "it")
        emit.region_end(handle)

    with pooltrace.trace(path):
        outer = emit.region_begin(emit.REGION, 0, "outer", None)
        within(finalizer)
        emit.region_end(outer)
    judge(path)
    names = [e.name for e in order.read_events(path) if e.m == threading.get_native_id()]
    assert [n for n in names if n.startswith(("UserRegion", "GCMark"))] == [
        "UserRegionBegin",
        "GCMarkAssistBegin",
        "UserRegionBegin",
        "UserRegionEnd",
        "GCMarkAssistEnd",
        "UserRegionEnd",
    ]


def test_a_wait_within_a_pause_ends_it(tmp_path: Path, judge: Judge, within: Within) -> None:
    path = tmp_path / "t.trace"

    def wait() -> None:
        ticket = emit.go_block("waiting in a finalizer", None)
        session.advance()
        emit.go_resume(ticket)

    with pooltrace.trace(path, period=60):
        within(wait)
        gc.collect()
    judge(path)
    assert pauses(path) == ["Begin", "End", "Begin", "End"]


def test_the_youngest_objects_are_only_counted(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path):
        gc.collect(0)
        gc.collect(1)
        gc.collect(2)
    judge(path)
    assert pauses(path) == ["Begin", "End"] * 2


def die_within(header: str) -> None:
    def callback(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            os.kill(os.getpid(), signal.SIGKILL)

    gc.callbacks.append(callback)
    gc.collect()


@pytest.mark.parametrize("header", ["1.22", "1.26"])
def test_a_worker_that_dies_within_a_pause(tmp_path: Path, judge: Judge, header: str) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path, header=header), pooltrace.StdPool(1) as pool:
        with pytest.raises(WorkerLostError):
            pool.apply(die_within, (header,))
    judge(path)
    [end] = [e for e in order.read_events(path) if e.name == "GCMarkAssistEnd" and e.m != os.getpid()]
    [lost] = [e for e in order.read_events(path) if e.name == "UserLog" and e.string("key") == "worker lost"]
    assert (end.m, end.g) == (lost.m, lost.g)
    counts = Counter(e.name for e in order.read_events(path) if e.m == end.m)
    assert counts["GCMarkAssistBegin"] == counts["GCMarkAssistEnd"]


def ours() -> int:
    return sum(getattr(callback, "__name__", "") == "collecting" for callback in gc.callbacks)


def test_the_collector_is_watched_while_a_trace_is_on(tmp_path: Path, judge: Judge) -> None:
    """In a worker until its first unit afterwards: it makes each collection dearer."""
    assert ours() == 0
    with pooltrace.StdPool(1) as pool:
        assert pool.apply(ours) == 0
        for i in range(2):
            with pooltrace.trace(tmp_path / f"{i}.trace"):
                assert (pool.apply(ours), ours()) == (1, 1)
            assert (pool.apply(ours), ours()) == (0, 0)
            judge(tmp_path / f"{i}.trace")


def test_callbacks_that_the_program_replaces(tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    path, before = tmp_path / "t.trace", gc.callbacks
    with pooltrace.trace(path):
        monkeypatch.setattr(gc, "callbacks", [])
    monkeypatch.undo()
    assert gc.callbacks is before
    assert ours() == 0
    with pooltrace.trace(path):
        assert ours() == 1
    judge(path)


def test_a_forked_child_watches_nothing(tmp_path: Path) -> None:
    with pooltrace.trace(tmp_path / "t.trace"):
        pid = os.fork()
        if pid == 0:
            os._exit(ours())
        assert os.waitpid(pid, 0)[1] == 0
