"""What the pools of random programs run: functions that note when they begin and end, and go wrong on demand.

A note is one line, appended by one write to a file of the process's own, so that what was noted survives a kill:
``b|e PID NUMBER NS FUNCTION``, NS by time.perf_counter_ns, which is the clock of the traces. The directory of the notes
is in the environment, where workers of every start method find it. Knows neither pools nor traces.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pooltrace.tracer import emit

NOTES = "POOLTRACE_RANDOM_NOTES"
MODULE = "randomitems."
ASKED = "as was asked"  # the text of every error that a plan asks for
PREPARE = -1  # the number of an initializer's note

faulthandler.enable()  # in workers too: a program that hangs is ended by SIGABRT, and then all stacks are told


class Item(NamedTuple):
    """One item: its number, what it does on the way, each with a measure, and something to carry about."""

    number: int
    acts: tuple[tuple[str, int], ...] = ()
    load: bytes = b""


class Noted(NamedTuple):
    """A note, put together; ``end`` is None for an item whose process died in it (or is in it still)."""

    pid: int
    number: int
    function: str
    begin: int
    end: int | None


# --- the notes ------------------------------------------------------------------------------------

_file: tuple[int, int] = (0, -1)  # the process that it was opened by, the descriptor
_is_stray = False  # this process was forked by an item: what it runs of the rest of the chunk is nobody's


def _write(line: str) -> None:
    global _file
    if _is_stray:
        return
    if _file[0] != os.getpid():
        path = Path(os.environ[NOTES]) / f"notes.{os.getpid()}"
        _file = os.getpid(), os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.write(_file[1], line.encode())


def read_notes(directory: Path) -> dict[int, list[Noted]]:
    """All notes by process, in the order of their begins."""
    found: dict[int, list[Noted]] = defaultdict(list)
    for path in directory.glob("notes.*"):
        for line in path.read_text().splitlines():
            kind, pid, number, ns, function = line.split()
            mine = found[int(pid)]
            if kind == "b":
                mine.append(Noted(int(pid), int(number), function, int(ns), None))
            else:
                assert mine, line
                assert (mine[-1].number, mine[-1].end) == (int(number), None), line
                mine[-1] = mine[-1]._replace(end=int(ns))
    return dict(found)


# --- what an item may do --------------------------------------------------------------------------


def _spin(microseconds: int) -> None:
    until = time.perf_counter_ns() + 1000 * microseconds
    while time.perf_counter_ns() < until:
        pass


def _fork(_: int) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _fork_back(_: int) -> None:
    """The child comes back into the worker's code, as a careless program's would."""
    global _is_stray
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    else:
        _is_stray = True


def _thread(count: int) -> None:
    """Another thread of the worker, which may annotate as well."""

    def run() -> None:
        for i in range(count):
            emit.enter()
            handle = emit.region_begin(emit.REGION, 0, "of a thread", None)
            emit.log(0, "thread", str(i))
            emit.region_end(handle)
            emit.leave()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def _regions(depth: int) -> None:
    if depth == 0:
        return
    handle = emit.region_begin(emit.REGION, 0, f"depth {depth}", None)
    try:
        emit.log(0, "depth", str(depth))
        _regions(depth - 1)
    finally:
        emit.region_end(handle)


def _logs(count: int) -> None:
    for i in range(count):
        emit.log(0, "figure", "x" * (i * 37 % 1500))


def _garbage(count: int) -> None:
    for _ in range(count):
        ring: list[Any] = []
        ring.append(ring)


class NotPicklable:
    def __reduce__(self) -> tuple[object, ...]:
        raise RuntimeError(f"cannot be pickled, {ASKED}")


class NotUnpicklable:
    """Pickles well; unpickling it raises."""

    def __reduce__(self) -> tuple[object, ...]:
        return _raise, (0,)


def _raise(_: int) -> None:
    raise ValueError(ASKED)


def _exit(code: int) -> None:
    sys.exit(code)


def _die_in_region(_: int) -> None:
    emit.region_begin(emit.REGION, 0, "the last", None)
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def _kill(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


HARMLESS: dict[str, Callable[[int], object]] = {
    "spin": _spin,
    "nap": lambda microseconds: time.sleep(microseconds / 1e6),
    "fork": _fork,
    "fork back": _fork_back,
    "thread": _thread,
    "regions": _regions,
    "logs": _logs,
    "garbage": _garbage,
    "collect": lambda generation: gc.collect(generation % 3),
}
FAILING: dict[str, Callable[[int], object]] = {
    "raise": _raise,
    "exit": _exit,
    "unpicklable": lambda _: NotPicklable(),
    "unreadable": lambda _: NotUnpicklable(),
}
DEADLY: dict[str, Callable[[int], object]] = {
    "kill": _kill,
    "kill in region": _die_in_region,
    "_exit": lambda code: os._exit(code),
}
_ACTS = HARMLESS | FAILING | DEADLY
_RESULTS = {"unpicklable", "unreadable"}  # the act's value is the item's


def _noted(function: str, item: Item) -> object:
    pid, value = os.getpid(), (item.number, item.load)
    result: object = value
    begin = time.perf_counter_ns()
    _write(f"b {pid} {item.number} {begin} {MODULE}{function}\n")
    try:
        for act, measure in item.acts:
            made = _ACTS[act](measure)
            if act in _RESULTS:
                result = made
    finally:
        end = time.perf_counter_ns()
        _write(f"e {pid} {item.number} {end} {MODULE}{function}\n")
    return result


# --- the functions --------------------------------------------------------------------------------


def work(item: Item) -> object:
    return _noted("work", item)


def spread(number: int, acts: tuple[tuple[str, int], ...], load: bytes) -> object:
    """For starmap."""
    return _noted("spread", Item(number, acts, load))


def extended(prefix: str, item: Item) -> object:
    """For partials."""
    return _noted("extended", item)


class Stateful:
    """A callable with a state, which is loaded afresh for each chunk."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, item: Item) -> object:
        self.calls += 1
        return _noted("Stateful", item)


def prepare() -> None:
    """An initializer."""
    _noted("prepare", Item(PREPARE))


def prepare_badly() -> None:
    """An initializer that fails in some workers, and kills others."""
    acts = {0: (("raise", 0),), 1: (("kill", 0),)}.get(os.getpid() % 5, ())
    _noted("prepare_badly", Item(PREPARE, acts))
