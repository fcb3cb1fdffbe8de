"""What a slot tells a trace that starts on a running pool: the name of whatever runs in its worker at the switch."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, NamedTuple

import jobs
import pytest
from faults import LIMIT, square
from test_truth import pool_of

import pooltrace
from pooltrace.format import order
from pooltrace.tracer import emit, session

Judge = Callable[[str | os.PathLike[str]], order.Summary]
START_UP = "pooltrace.pool.worker.main"


class Gate(NamedTuple):
    """Two FIFOs: what passes says that it is there, and waits until it may go on."""

    begun: Path
    go: Path

    def names(self) -> tuple[str, str]:
        return str(self.begun), str(self.go)

    def wait(self) -> None:
        self.begun.read_bytes()

    def open(self) -> None:
        self.go.write_bytes(b"")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    made = Gate(tmp_path / "begun", tmp_path / "go")
    for path in made:
        os.mkfifo(path)
    return made


class Told:
    """`session.begins`, which tells when somebody has to wait for it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.event = threading.Event()

    def acquire(self, timeout: float = -1) -> bool:
        if self.lock.acquire(blocking=False):
            return True
        self.event.set()
        return self.lock.acquire(timeout=timeout)

    def release(self) -> None:
        self.lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


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
    tmp_path: Path, judge: Judge, gate: Gate, begins: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its start-up runs, but its slot has no process yet, and the pool no slots."""
    path, launch = tmp_path / "t.trace", ForkProcess.start

    def start() -> None:
        pooltrace.start(path)
        begins.event.set()

    starter = threading.Thread(target=start)

    def launched(process: ForkProcess) -> None:
        launch(process)
        gate.wait()
        starter.start()
        begins.event.wait()  # it waits for us; one that did not has started

    monkeypatch.setattr(ForkProcess, "start", launched)
    with pool_of("multiprocessing", "fork", 1, initializer=jobs.wait_between, initargs=gate.names()) as pool:
        starter.join()
        gate.open()
        (note,) = pool.map(jobs.note, [1])
        pooltrace.stop()
    judge(path)
    assert names_in(path, note.pid) == [START_UP, "jobs.note"]
    summary = pooltrace.summary()
    assert summary is not None
    assert (summary["units"], summary["items"]) == (1, 1)


def start_amid(path: Path, meanwhile: Callable[[], None], gate: Gate, begins: Told) -> None:
    """Starts a trace; between its question what runs and the switch `meanwhile` is called, and what it begins runs, if
    the one who begins it does not wait for the switch."""

    def watch() -> None:
        gate.wait()
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
    gate.open()


def test_a_unit_that_is_sent_while_a_trace_starts(tmp_path: Path, judge: Judge, gate: Gate, begins: Told) -> None:
    path, results = tmp_path / "t.trace", []
    with pool_of("multiprocessing", "fork", 1) as pool:
        pid = pool.apply(os.getpid)
        start_amid(path, lambda: results.append(pool.apply_async(jobs.wait_between, gate.names())), gate, begins)
        results[0].get()
        pooltrace.stop()
    judge(path)
    assert names_in(path, pid) == ["jobs.wait_between"]


def test_a_worker_that_is_launched_while_a_trace_starts(tmp_path: Path, judge: Judge, gate: Gate, begins: Told) -> None:
    path = tmp_path / "t.trace"
    with ThreadPoolExecutor(1) as thread:
        made: list[Future[Any]] = []
        options = {"initializer": jobs.wait_between, "initargs": gate.names()}
        start_amid(
            path,
            lambda: made.append(thread.submit(pool_of, "multiprocessing", "fork", 1, **options)),
            gate,
            begins,
        )
        with made[0].result() as pool:
            (note,) = pool.map(jobs.note, [1])
            pooltrace.stop()
    judge(path)
    assert names_in(path, note.pid) == [START_UP, "jobs.note"]


def test_a_trace_that_starts_between_a_units_answer_and_its_end(
    tmp_path: Path, judge: Judge, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls, end = tmp_path / "t.trace", itertools.count(), emit.unit_end

    def slow_end() -> None:
        if next(calls) == 1:  # 0 is the start-up
            jobs.wait_between(*gate.names())
        end()

    monkeypatch.setattr(emit, "unit_end", slow_end)
    with pool_of("multiprocessing", "fork", 1) as pool:
        assert pool.apply(square, (3,)) == 9
        gate.wait()
        pooltrace.start(path)
        gate.open()
        (note,) = pool.map(jobs.note, [1])
        pooltrace.stop()
    judge(path)
    assert names_in(path, note.pid) == ["faults.square", "jobs.note"]
