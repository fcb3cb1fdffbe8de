"""Judges what a random program left: ``python tests/randomcheck.py DIRECTORY``; one line per fault, exit status 1.

Each trace goes through our own check and Go's parser, is held against what the items noted and against the summary, is
cut at a random border and judged again. What has to be true, and where a note cannot tell:

1. Per worker the items of the trace are those that were noted, in that order, each noted time inside its item's region.
   A region whose worker died before it could note anything has no note: it is that worker's last.
2. Every item that was noted wholly between start's return and stop's call has its region. At most one per worker has
   none: the one whose region began before the trace and whose note came after (its worker was running then).
3. An item whose process died in it is its worker's last, and its loss is told on that worker, if its pool went on.
4. The items of a job are of one task, and a task has the items of one job.
5. No unit is started twice; when all pools had ended before stop was called, none is alive at the end, and no task.
6. The summary counts what the file has; nothing is lost.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gotool
import pieces
import randomitems
from randomitems import PREPARE, Noted

from pooltrace.format import order
from pooltrace.format.order import Event


@dataclass
class Region:
    """One item's region; ``end`` is None when the trace ended before it."""

    m: int
    g: int
    task: int
    function: str
    begin: int
    end: int | None = None


@dataclass
class Told:
    """What a trace says, as far as it can be compared."""

    regions: dict[int, list[Region]] = field(default_factory=lambda: defaultdict(list))  # by M, in order
    created: set[int] = field(default_factory=set)  # units
    started: Counter[int] = field(default_factory=Counter)
    destroyed: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)  # Ms that ran a unit when the trace began
    lost: list[int] = field(default_factory=list)  # the M of each log of a lost worker
    tasks: Counter[int] = field(default_factory=Counter)
    tasks_ended: set[int] = field(default_factory=set)


class Program(NamedTuple):
    """What the program wrote down of itself."""

    traces: list[dict[str, Any]]
    pools: list[dict[str, Any]]
    jobs: dict[int, int]
    surprises: list[str]
    notes: dict[int, list[Noted]]


def load(directory: Path) -> Program:
    """Raises OSError if the program did not come to its end."""
    known = json.loads((directory / "program.json").read_text())
    jobs = {int(number): job for number, job in known["jobs"].items()}
    return Program(known["traces"], known["pools"], jobs, known["surprises"], randomitems.read_notes(directory))


def read(path: Path) -> Told:
    """Reads a trace that is known to be right in form."""
    told = Told()
    open_now: dict[int, list[Region | None]] = defaultdict(list)
    first: int | None = None
    for event in order.read_events(path):
        first = event.gen if first is None else first
        _take(told, open_now[event.g], event, event.gen == first)
    return told


def _take(told: Told, open_here: list[Region | None], event: Event, first: bool) -> None:
    name = event.name
    if name == "UserRegionBegin":
        function = event.string("name")
        region = None
        if function.startswith(randomitems.MODULE):
            region = Region(event.m, event.g, event.arg("task"), function, event.time)
            told.regions[event.m].append(region)
        open_here.append(region)
    elif name == "UserRegionEnd":
        region = open_here.pop()
        if region is not None:
            region.end = event.time
    elif name == "GoCreate":
        frames = event.stack("new_stack")
        if frames and frames[0].function.startswith(randomitems.MODULE):
            told.created.add(event.arg("new_g"))
    elif name == "GoStart":
        told.started[event.arg("g")] += 1
    elif name == "GoDestroy":
        told.destroyed.add(event.g)
    elif name in ("GoStatus", "GoStatusStack"):
        if first and event.values()["gstatus"] == "running":
            told.running.add(event.arg("m"))
    elif name == "UserTaskBegin":
        told.tasks[event.arg("task")] += 1
    elif name == "UserTaskEnd":
        told.tasks_ended.add(event.arg("task"))
    elif name == "UserLog" and event.string("key") == "worker lost":
        told.lost.append(event.m)


# --- the comparisons ------------------------------------------------------------------------------


class TraceJudge:
    """Holds one trace against the program's notes; each method yields what is wrong."""

    def __init__(self, program: Program, trace: dict[str, Any], told: Told) -> None:
        self.program = program
        self.told = told
        self.summary: dict[str, Any] | None = trace.get("summary")
        self.started: int = trace["started"]
        self.stopping: int = trace["stopping"]
        self.all_ended = all(pool["ended"] is not None and pool["ended"] < self.stopping for pool in program.pools)
        self.matched: dict[int, set[int]] = {}  # by M: positions in its notes

    def faults(self) -> Iterator[str]:
        for m, regions in self.told.regions.items():
            yield from self._order(m, regions, self.program.notes.get(m, []))
        for pid, notes in self.program.notes.items():
            yield from self._complete(pid, notes)
            yield from self._deaths(pid, notes)
        yield from self._units()

    def _order(self, m: int, regions: list[Region], notes: list[Noted]) -> Iterator[str]:
        matched = self.matched[m] = set()
        at = 0
        for i, region in enumerate(regions):
            last = i == len(regions) - 1
            while at < len(notes) and notes[at].begin < region.begin:
                at += 1
            if at == len(notes) or (region.end is not None and notes[at].begin > region.end):
                if not last or (at < len(notes) and region.end is not None):
                    yield f"{region}: no item was noted in it"
                return
            note = notes[at]
            if note.function != region.function:
                yield f"{region}: {note} was noted in it"
            if region.end is None:
                if not last:
                    yield f"{region}: not ended, but its worker went on"
            elif note.end is None:
                if not last or at != len(notes) - 1:
                    yield f"{note}: its process died in it, but went on"
            elif note.end > region.end:
                yield f"{region}: ended before its item: {note}"
            matched.add(at)
            at += 1

    def _complete(self, pid: int, notes: list[Noted]) -> Iterator[str]:
        matched = self.matched.get(pid, set())
        inside = [i for i, n in enumerate(notes) if n.begin >= self.started and (n.end or n.begin) <= self.stopping]
        for i in inside:
            straddles = i == inside[0] and pid in self.told.running
            if i not in matched and not straddles:
                yield f"{notes[i]}: has no region"

    def _deaths(self, pid: int, notes: list[Noted]) -> Iterator[str]:
        """3: only where it is sure that the loss was no wanted one, and was buried within the trace."""
        if not self.all_ended or any(pool["end"] != "close" for pool in self.program.pools):
            return
        for note in notes:
            if note.end is None and note.begin >= self.started and note.number != PREPARE:
                count = self.told.lost.count(pid)
                if count != 1:
                    yield f"{note}: its process died in it, its loss is told {count} times"

    def _units(self) -> Iterator[str]:
        told = self.told
        twice = [g for g in told.created if told.started[g] > 1]
        if twice:
            yield f"units that were started twice: {twice[:5]}"
        tasks = [task for task, count in told.tasks.items() if count > 1]
        if tasks:
            yield f"tasks that begin twice: {tasks[:5]}"
        if self.all_ended:
            alive = sorted(told.created - told.destroyed)
            if alive:
                yield f"{len(alive)} of {len(told.created)} units are alive at the end of all pools: {alive[:5]}"
            tasks = sorted(told.tasks.keys() - told.tasks_ended)
            if tasks:
                yield f"{len(tasks)} of {len(told.tasks)} tasks are under way at the end of all pools: {tasks[:5]}"
        left_open = [
            one for of_m in told.regions.values() for one in of_m if one.end is None and one.g in told.destroyed
        ]
        if left_open:
            yield f"regions that outlive their unit: {left_open[:2]}"

    def tasks(self, tasks_of: dict[int, set[int]], jobs_of: dict[int, set[int]]) -> None:
        """Collects which tasks the items of each job have, over all traces."""
        for m, regions in self.told.regions.items():
            notes = [note for i, note in enumerate(self.program.notes.get(m, [])) if i in self.matched[m]]
            for region, note in zip(regions, notes):
                if note.number != PREPARE:
                    job = self.program.jobs[note.number]
                    tasks_of[job].add(region.task)
                    jobs_of[region.task].add(job)

    def figures(self, counts: order.Summary) -> Iterator[str]:
        """6."""
        if self.summary is None:
            return  # the trace was left to the interpreter's exit
        told = self.told
        # an initializer's call is no item; an item that runs when the trace ends is one
        functions = [region.function for regions in told.regions.values() for region in regions]
        items = sum(function.split(".")[-1] not in ("prepare", "prepare_badly") for function in functions)
        want = {
            "items": items,
            "jobs": sum(told.tasks.values()),
            "workers_lost": len(told.lost),
            "generations": counts.generations,
            "bytes": counts.bytes,
            "lost_events": 0,
            "failed": False,
        }
        for name, value in want.items():
            if self.summary[name] != value:
                yield f"the summary has {name}={self.summary[name]}, the trace {value}"


# --- a whole directory ----------------------------------------------------------------------------


def judge(directory: Path) -> list[str]:
    """All that is wrong. Raises OSError if the program did not come to its end."""
    program = load(directory)
    faults = [f"surprise: {line}" for line in program.surprises]
    tasks_of: dict[int, set[int]] = defaultdict(set)
    jobs_of: dict[int, set[int]] = defaultdict(set)
    for trace in program.traces:
        path = directory / trace["path"]
        try:
            faults += [f"{path.name}: {fault}" for fault in _judge_one(path, program, trace, tasks_of, jobs_of)]
        except Exception as error:
            faults.append(f"{path.name}: {type(error).__name__}: {error}")
    faults += [f"job {job} has the tasks {sorted(tasks)}" for job, tasks in tasks_of.items() if len(tasks) > 1]
    faults += [f"task {task} has items of the jobs {sorted(jobs)}" for task, jobs in jobs_of.items() if len(jobs) > 1]
    return faults


def _judge_one(
    path: Path,
    program: Program,
    trace: dict[str, Any],
    tasks_of: dict[int, set[int]],
    jobs_of: dict[int, set[int]],
) -> Iterator[str]:
    counts = order.check(path)
    if counts.header != trace["header"]:
        yield f"its header is {counts.header}, not {trace['header']}"
    gotool.compare(path)
    one = TraceJudge(program, trace, read(path))
    yield from one.faults()
    yield from one.figures(counts)
    one.tasks(tasks_of, jobs_of)
    with tempfile.TemporaryDirectory() as scratch:
        pieces.cut_somewhere(path, Path(scratch))


def main(words: list[str]) -> int:
    gotool.gotrace()
    faults = judge(Path(words[0]))
    for fault in faults:
        print(f"fault: {' '.join(fault.split())}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
