"""What tests say with pooltrace's annotations, in pools' workers and elsewhere; importable under every start method.

Every name begins with "u ", which tells it from those of the pool. Times are taken around each, of the same clock.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import unitlogs

from pooltrace import log, region, task
from pooltrace.format import order

clock = time.monotonic_ns


class Noted(NamedTuple):
    """A region in a task, with a log: who said it, and the times before and after each begin and end."""

    tid: int
    name: str
    begin: tuple[int, int]
    end: tuple[int, int]


def say(name: str) -> Noted:
    before = clock()
    with region(f"u region {name}"):
        begun = clock()
        with task(f"u task {name}"):
            log(f"u log {name}", len(name))
        ending = clock()
    return Noted(threading.get_native_id(), name, (before, begun), (ending, clock()))


def in_main(name: str) -> list[Noted]:
    return [say(name)]


def in_threads(name: str) -> list[Noted]:
    """Two threads at the same time."""
    noted: list[Noted] = []
    together = threading.Barrier(2)

    def run(number: int) -> None:
        together.wait()
        noted.append(say(f"{name} {number}"))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return noted


def in_coroutines(name: str) -> list[Noted]:
    """Two coroutines: the first to begin is the first to end, while the other is in its region and its task.

    In Go regions nest: the second's, which began inside the first's, ends with it.
    """
    return asyncio.run(_two(name))


async def _two(name: str) -> list[Noted]:
    begun, logged = asyncio.Event(), asyncio.Event()

    async def first() -> Noted:
        before = clock()
        with region(f"u region {name} 0"):
            begin = (before, clock())
            with task(f"u task {name} 0"):
                await begun.wait()
                log(f"u log {name} 0", "first")
            logged.set()
            ending = clock()
        return Noted(threading.get_native_id(), f"{name} 0", begin, (ending, clock()))

    async def second() -> Noted:
        before = clock()
        with region(f"u region {name} 1"):
            begin = (before, clock())
            with task(f"u task {name} 1"):
                begun.set()
                await logged.wait()
                log(f"u log {name} 1", "second")
                await asyncio.sleep(0)  # the first goes on to its end
            ending = clock()
        return Noted(threading.get_native_id(), f"{name} 1", begin, (ending, clock()))

    one, two = await asyncio.gather(first(), second())
    return [one, two._replace(end=one.end)]


WAYS: dict[str, Callable[[str], list[Noted]]] = {f.__name__: f for f in (in_main, in_threads, in_coroutines)}


def unit(way: str, name: str) -> list[Noted]:
    return WAYS[way](name)


def unit_of_pair(pair: tuple[str, str]) -> list[Noted]:
    return unit(*pair)


@region("u decorated")
def decorated(x: int) -> int:
    """A function that is decorated."""
    return x + 1


def leave_open(name: str) -> int:
    """A unit that begins a task, and does not end it."""
    task(f"u task {name}").__enter__()
    log("u log in the open one", name)
    return os.getpid()


def log_only(name: str) -> int:
    log("u log", name)
    return os.getpid()


# What a trace has of it


class Task(NamedTuple):
    name: str
    parent: int
    m: int
    begin: int


class Region(NamedTuple):
    m: int
    name: str
    task: int
    begin: int
    end: int
    stack: tuple[str, ...]


class Log(NamedTuple):
    m: int
    task: int
    key: str
    value: str
    time: int


class Said:
    """A trace's tasks (the jobs among them), and the user's regions and logs, in its order."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.tasks: dict[int, Task] = {}
        self.ended: dict[int, int] = {}  # when
        self.regions: list[Region] = []
        self.logs: list[Log] = []
        begun: dict[int, list[Region]] = {}
        for event in order.read_events(path):
            if event.name == "UserTaskBegin":
                number = event.arg("task")
                assert number not in self.tasks
                self.tasks[number] = Task(event.string("name"), event.arg("parent"), event.m, event.time)
            elif event.name == "UserTaskEnd":
                number = event.arg("task")
                assert number not in self.ended
                self.ended[number] = event.time
            elif event.name == "UserRegionBegin":
                stack = tuple(frame.function for frame in event.stack())
                new = Region(event.m, event.string("name"), event.arg("task"), event.time, 0, stack)
                begun.setdefault(event.g, []).append(new)
            elif event.name == "UserRegionEnd":
                opened = begun[event.g].pop()
                assert (opened.name, opened.task) == (event.string("name"), event.arg("task"))
                if opened.name.startswith("u "):
                    self.regions.append(opened._replace(end=event.time))
            elif unitlogs.is_users(event):
                said = Log(event.m, event.arg("task"), event.string("key"), event.string("value"), event.time)
                self.logs.append(said)
        self.open = [region.name for regions in begun.values() for region in regions]

    def number(self, name: str) -> int:
        """Of the one task with that name."""
        (number,) = (number for number, one in self.tasks.items() if one.name == name)
        return number

    def region(self, name: str) -> Region:
        (found,) = (region for region in self.regions if region.name == name)
        return found

    def log(self, key: str) -> Log:
        (found,) = (log for log in self.logs if log.key == key)
        return found

    def users(self) -> dict[str, Task]:
        """The user's tasks."""
        return {one.name: one for one in self.tasks.values() if one.name.startswith("u ")}

    def holds(self, noted: Noted, parent: int) -> None:
        """Asserts that it has what was noted, as it was: by whom, in which task, when."""
        found = self.region(f"u region {noted.name}")
        assert (found.m, found.task) == (noted.tid, parent)
        assert noted.begin[0] <= found.begin <= noted.begin[1]
        assert noted.end[0] <= found.end <= noted.end[1]
        number = self.number(f"u task {noted.name}")
        begun, ended, log = self.tasks[number], self.ended[number], self.log(f"u log {noted.name}")
        assert (begun.parent, begun.m) == (parent, noted.tid)
        assert (log.m, log.task) == (noted.tid, number)
        assert found.begin < begun.begin < log.time < ended
