"""What a slot tells a trace that starts on a running pool: the name of whatever runs in its worker at the switch."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import jobs
import pytest
from faults import LIMIT, Fifos, square
from test_truth import pool_of

import pooltrace
from pooltrace.format import order
from pooltrace.tracer import arena, emit, session
from pooltrace.tracer._core import Gate

Judge = Callable[[str | os.PathLike[str]], order.Summary]
START_UP = "pooltrace.pool.worker.main"


class Nowhere:
    """A sink that keeps nothing."""

    def write(self, data: bytes) -> None:
        pass


class Told(Gate):
    """A gate that tells when somebody has to wait at it."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.on_wait = self.event.set


@pytest.fixture
def begins(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(session, "begins", told)
    monkeypatch.setattr(session, "_HOLD", LIMIT)
    return told


def names_in(path: Path, m: int) -> list[str]:
    """Of the Gs that ran in that worker, in order; "" for one that has no name."""
    names: dict[int, str] = {}
    for event in order.read_events(path):
        if event.name in ("GoStatus", "GoStatusStack") and event.m == m and event.arg("m") == m:
            frames = event.stack() if event.name == "GoStatusStack" else ()
            names.setdefault(event.arg("g"), frames[0].function if frames else "")
        elif event.name == "GoCreate" and (frames := event.stack("new_stack")):
            names.setdefault(event.arg("new_g"), frames[0].function)
        elif event.name == "GoStart" and event.m == m:
            names.setdefault(event.arg("g"), "")
    return [name for name in names.values() if name.startswith(("jobs.", "faults.", START_UP)) or not name]


def test_a_trace_that_starts_while_a_worker_is_launched(
    tmp_path: Path, judge: Judge, fifos: Fifos, begins: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its start-up runs, but its slot has no process yet, and the pool no slots."""
    path, launch = tmp_path / "t.trace", ForkProcess.start

    def start() -> None:
        pooltrace.start(path)
        begins.event.set()

    starter = threading.Thread(target=start)

    def launched(process: ForkProcess) -> None:
        launch(process)
        fifos.wait()
        starter.start()
        begins.event.wait()  # it waits for us; one that did not has started

    monkeypatch.setattr(ForkProcess, "start", launched)
    with pool_of("multiprocessing", "fork", 1, initializer=jobs.wait_between, initargs=fifos.names()) as pool:
        starter.join()
        fifos.open()
        (note,) = pool.map(jobs.note, [1])
        pooltrace.stop()
    judge(path)
    assert names_in(path, note.pid) == [START_UP, "jobs.note"]
    summary = pooltrace.summary()
    assert summary is not None
    assert (summary["units"], summary["items"]) == (1, 1)


def start_amid(path: Path, meanwhile: Callable[[], None], fifos: Fifos, begins: Told) -> None:
    """Starts a trace; between its question what runs and the switch `meanwhile` is called, and what it begins runs, if
    the one who begins it does not wait for the switch."""

    def watch() -> None:
        fifos.wait()
        begins.event.set()

    def asked() -> list[tuple[int, emit.Stack]]:
        meanwhile()
        watcher.start()
        begins.event.wait()
        return []

    watcher = threading.Thread(target=watch)
    forget = session.describe_units(asked)  # it comes after the slots that there are
    try:
        pooltrace.start(path)
    finally:
        forget()
    watcher.join()
    fifos.open()


def test_a_unit_that_is_sent_while_a_trace_starts(tmp_path: Path, judge: Judge, fifos: Fifos, begins: Told) -> None:
    path, results = tmp_path / "t.trace", []
    with pool_of("multiprocessing", "fork", 1) as pool:
        pid = pool.apply(os.getpid)
        start_amid(path, lambda: results.append(pool.apply_async(jobs.wait_between, fifos.names())), fifos, begins)
        results[0].get()
        pooltrace.stop()
    judge(path)
    assert names_in(path, pid) == ["jobs.wait_between"]


def test_a_worker_that_is_launched_while_a_trace_starts(
    tmp_path: Path, judge: Judge, fifos: Fifos, begins: Told
) -> None:
    path = tmp_path / "t.trace"
    with ThreadPoolExecutor(1) as thread:
        made: list[Future[Any]] = []
        options = {"initializer": jobs.wait_between, "initargs": fifos.names()}
        start_amid(
            path,
            lambda: made.append(thread.submit(pool_of, "multiprocessing", "fork", 1, **options)),
            fifos,
            begins,
        )
        with made[0].result() as pool:
            (note,) = pool.map(jobs.note, [1])
            pooltrace.stop()
    judge(path)
    assert names_in(path, note.pid) == [START_UP, "jobs.note"]


def test_a_trace_that_starts_between_a_units_answer_and_its_end(
    tmp_path: Path, judge: Judge, fifos: Fifos, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls, end = tmp_path / "t.trace", itertools.count(), emit.unit_end

    def slow_end(*sizes: Any) -> None:
        if next(calls) == 1:  # 0 is the start-up
            jobs.wait_between(*fifos.names())
        end(*sizes)

    monkeypatch.setattr(emit, "unit_end", slow_end)
    with pool_of("multiprocessing", "fork", 1) as pool:
        assert pool.apply(square, (3,)) == 9
        fifos.wait()
        pooltrace.start(path)
        fifos.open()
        (note,) = pool.map(jobs.note, [1])
        pooltrace.stop()
    judge(path)
    assert names_in(path, note.pid) == ["faults.square", "jobs.note"]


def test_launches_and_units_of_pools_do_not_wait_for_each_other(begins: Told) -> None:
    """A launch runs what the user gave it to pickle, which may use another pool."""
    with pool_of("multiprocessing", "fork", 1) as pool, begins, ThreadPoolExecutor(1) as thread:
        assert pool.apply(square, (3,)) == 9
        with thread.submit(pool_of, "multiprocessing", "fork", 1).result() as other:
            assert other.apply(square, (4,)) == 16
    assert not begins.event.is_set()


def test_a_start_goes_ahead_when_a_launch_takes_too_long(monkeypatch: pytest.MonkeyPatch, begins: Told) -> None:
    monkeypatch.setattr(session, "_HOLD", 0.0)
    with ThreadPoolExecutor(1) as thread, begins:
        thread.submit(pooltrace.start, Nowhere()).result()
    pooltrace.stop()


def test_a_start_within_a_launch_and_one_within_a_start(monkeypatch: pytest.MonkeyPatch, begins: Told) -> None:
    """By a signal's handler, or by what the user gave to pickle."""
    monkeypatch.setattr(session, "_HOLD", 0.0)
    with begins:
        pooltrace.start(Nowhere())
        pooltrace.stop()

    def again() -> list[tuple[int, emit.Stack]]:
        forget()
        pooltrace.start(Nowhere())
        return []

    forget = session.describe_units(again)
    with pytest.raises(pooltrace.MisuseError, match="a trace is on already"):
        pooltrace.start(Nowhere())
    pooltrace.stop()
    with begins:
        pass


class Interrupted(Exception):
    pass


def test_a_start_that_is_interrupted_while_it_waits_leaves_nothing(begins: Told) -> None:
    def handler(number: int, frame: object) -> None:
        if not handled.is_set():
            handled.set()
            raise Interrupted

    def inside() -> None:
        with begins:
            entered.set()
            begins.event.wait()
            while not handled.wait(0.01):  # one that comes just before the wait does not end it
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            over.wait()

    entered, handled, over = threading.Event(), threading.Event(), threading.Event()
    before, old = arena._users, signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=inside)
    try:
        thread.start()
        entered.wait()
        with pytest.raises(Interrupted):
            pooltrace.start(Nowhere())
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, old)
    assert arena._users == before
    assert (begins.inside, begins.is_mine) == (0, False)
    with begins:  # it is open
        pass
    pooltrace.start(Nowhere())
    pooltrace.stop()
