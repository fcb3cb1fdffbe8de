"""The head of a piece of a trace: what its first generation has to be told when those before it are gone.

Units that wait are not repeated in each generation of a file, nor are the jobs under way. So whatever begins a file in
the middle (a cut, a recorder's window) puts a head before its first generation: the status of each G that is alive,
with its start function; the user regions that the running ones are in; the tasks under way. Knows states and batches;
no files, no generations but the one that it is for.

What is in it has times just before the generation's own, one unit of time apart. A G that runs, or is in a syscall,
has its status in the generation itself, as the format asks for, and here before it: its regions are put behind that
one, and readers allow generations that do not say it.
Tasks can be begun by a running G only: a G that was destroyed before comes back for it, on the M and P that it had.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Container, Iterable, Iterator
from typing import Final, NamedTuple

from pooltrace.format import spec
from pooltrace.format.generation import Frame, Generation
from pooltrace.format.order import Event
from pooltrace.format.raw import Batch, RawEvent, encode_event, read_events
from pooltrace.format.spec import GoStatus, Header, ProcStatus
from pooltrace.format.states import State

Frames = tuple[Frame, ...]

_NEW: Final = 1 << 62  # from here on a G where none was destroyed before, and (see _spare) a P where none is idle
_BATCH_BYTES: Final = spec.MAX_BATCH_SIZE - (4 << 10)


class Task(NamedTuple):
    """A task under way; its name as it is in the file."""

    parent: int
    name: bytes
    stack: Frames


class Region(NamedTuple):
    """A region that a G is in; its name as it is in the file."""

    task: int
    name: bytes
    stack: Frames


class Gone(NamedTuple):
    """A G that was destroyed: where it ran last, and its start function."""

    m: int
    p: int
    g: int
    start: Frames


class Origins:
    """What the states do not keep: where Gs, tasks and regions come from. ``note`` every event, in order."""

    def __init__(self) -> None:
        self.starts: dict[int, Frames] = {}
        self.tasks: dict[int, Task] = {}
        self.regions: dict[int, list[Region]] = {}
        self.gone: Gone | None = None

    def note(self, event: Event) -> None:
        name = event.name
        if name in ("GoCreate", "GoCreateBlocked"):
            if stack := event.stack("new_stack"):
                self.starts[event.arg("new_g")] = stack
        elif name == "GoStatusStack":
            if stack := event.stack():
                self.starts[event.arg("g")] = stack
        elif name in ("GoDestroy", "GoDestroySyscall"):
            self.regions.pop(event.g, None)
            self.gone = Gone(event.m, event.p, event.g, self.starts.pop(event.g, ()))
        elif name == "UserTaskBegin":
            self.tasks[event.arg("task")] = Task(event.arg("parent"), _text(event), event.stack())
        elif name == "UserTaskEnd":
            self.tasks.pop(event.arg("task"), None)
        elif name == "UserRegionBegin":
            region = Region(event.arg("task"), _text(event), event.stack())
            self.regions.setdefault(event.g, []).append(region)
        elif name == "UserRegionEnd" and (inside := self.regions.get(event.g)):
            inside.pop()


def _text(event: Event) -> bytes:
    return event.tables.strings.get(event.arg("name"), b"")


class _Said:
    """What a generation says itself: when it tells a G's status and when something first happens to one (ns: readers
    order by these; an event comes no sooner than those before it of its M), which Gs, Ps and Ms it names."""

    def __init__(self, generation: Generation) -> None:
        self.statuses: dict[int, int] = {}
        self.acts: dict[int, int] = {}
        self.created: set[int] = set()
        self.ps: set[int] = set()
        self.ms: set[int] = set(generation.batches)
        for batches in generation.batches.values():
            latest = 0
            for batch in batches:
                latest = self._note(batch, generation, latest)

    def _note(self, batch: Batch, generation: Generation, latest: int) -> int:
        """Notes the events of a batch; the latest time of its M up to its end, given that of the batches before."""
        time = generation.to_ns(batch.time)
        for event in read_events(batch, generation.header):
            name, args = event.spec.name, event.args
            time += generation.to_ns(args[0]) if event.spec.timed else 0
            latest = max(latest, time)
            if name in ("GoStatus", "GoStatusStack"):
                self.statuses[args[1]] = latest
            elif name in ("GoStart", "GoUnblock", "GoSwitch", "GoSwitchDestroy"):
                self.acts[args[1]] = min(time, self.acts.get(args[1], time))
            elif name.startswith("GoCreate"):
                self.created.add(args[1])
            elif name.startswith("Proc") and len(args) > 1:
                self.ps.add(args[1])
        return latest

    def is_late(self, g: int) -> bool:
        """Its status comes no sooner than what happens to it: that waits for it, if nobody has told it before."""
        return g in self.statuses and self.statuses[g] >= self.acts.get(g, self.statuses[g] + 1)


class _Added:
    """Table entries that the head needs beyond those that the generation has."""

    def __init__(self, generation: Generation) -> None:
        tables = generation.tables
        self.new_strings: list[RawEvent] = []
        self.new_stacks: list[RawEvent] = []
        self._strings = {text: number for number, text in reversed(tables.strings.items())}
        self._free_strings = _free(tables.strings)
        self._frames: dict[int, tuple[int, ...]] = {}  # by PC: Go shows one frame for each
        self._stacks: dict[tuple[tuple[int, ...], ...], int] = {}
        for number, frames in tables.stacks.items():
            self._stacks.setdefault(frames, number)
            for frame in frames:
                self._frames.setdefault(frame[0], frame)
        self._free_stacks = _free(tables.stacks)

    def string(self, data: bytes) -> int:
        """The id of a text in this generation."""
        number = self._strings.get(data)
        if number is None:
            number = self._strings[data] = next(self._free_strings)
            self.new_strings.append(RawEvent(spec.BY_NAME["String"], (number,), text=data))
        return number

    def stack(self, frames: Frames) -> int:
        """The id of a stack in this generation; 0 for none."""
        if not frames:
            return 0
        raw = tuple(self._frame(frame) for frame in frames)
        number = self._stacks.get(raw)
        if number is None:
            number = self._stacks[raw] = next(self._free_stacks)
            self.new_stacks.append(RawEvent(spec.BY_NAME["Stack"], (number, len(raw)), frames=raw))
        return number

    def _frame(self, frame: Frame) -> tuple[int, ...]:
        function, file = (text.encode("utf-8", "replace") for text in (frame.function, frame.file))
        made = (frame.pc, self.string(function), self.string(file), frame.line)
        return self._frames.setdefault(frame.pc, made)


class _Line(NamedTuple):
    """One event of the head, without its time."""

    m: int
    name: str
    args: tuple[int, ...]


def add_head(state: State, origins: Origins, generation: Generation, batches: list[Batch]) -> list[Batch]:
    """The batches of ``generation`` with its head, given the states at its border: after all events before it.

    Readers take the earliest batch for the generation's time, but look for it anew behind one at 0: where there is one,
    a table without entries comes last, with the head's time.
    """
    head = _make_head(state, origins, generation)
    if head and any(batch.time == 0 for batch in batches):
        empty = encode_event(RawEvent(spec.BY_NAME["Strings"], ()))
        return [*head, *batches, Batch(generation.gen, spec.NONE, head[0].time, empty)]
    return [*head, *batches]


def _make_head(state: State, origins: Origins, generation: Generation) -> list[Batch]:
    header, added, said = generation.header, _Added(generation), _Said(generation)
    lines = [*_at_work(state, origins, header, added), *_waiting(state, origins, said, header, added)]
    lines += _tasks(state, origins, said, generation, added)
    begin = max(1, generation.min_time - len(lines))
    return [*_batches(lines, generation.gen, begin), *_tables(added, generation.gen, begin)]


def _at_work(state: State, origins: Origins, header: Header, added: _Added) -> Iterator[_Line]:
    """Ms that have a P, with their Gs and the regions of these."""
    for m in state.ms.values():
        p, g = state.ps.get(m.p), state.gs.get(m.g)
        if p is not None and p.status in (ProcStatus.RUNNING, ProcStatus.SYSCALL):
            yield _Line(m.id, "ProcStatus", (m.p, p.status))
        if g is None or g.status not in (GoStatus.RUNNING, GoStatus.SYSCALL):
            continue
        yield _status(m.id, m.g, m.id, GoStatus(g.status), origins, header, added)
        if g.status != GoStatus.RUNNING or p is None:
            continue
        for region in origins.regions.get(m.g, ()) if g.regions else ():
            args = (region.task, added.string(region.name), added.stack(region.stack))
            yield _Line(m.id, "UserRegionBegin", args)


def _waiting(state: State, origins: Origins, said: _Said, header: Header, added: _Added) -> Iterator[_Line]:
    """Gs that nobody runs, with their names, which the generation may leave out where it says their status itself."""
    for number, g in state.gs.items():
        if g.status in (GoStatus.RUNNABLE, GoStatus.WAITING) and not said.is_late(number):
            yield _status(spec.NONE, number, spec.NONE, GoStatus(g.status), origins, header, added)


def _status(m: int, g: int, where: int, status: GoStatus, origins: Origins, header: Header, added: _Added) -> _Line:
    start = origins.starts.get(g)
    if start and header.status_stack:
        return _Line(m, "GoStatusStack", (g, where, status, added.stack(start)))
    return _Line(m, "GoStatus", (g, where, status))


def _tasks(state: State, origins: Origins, said: _Said, generation: Generation, added: _Added) -> Iterator[_Line]:
    if not origins.tasks:
        return
    m, p, g, start = _spare(state, origins.gone, said, generation)
    yield _Line(m, "ProcStatus", (p, ProcStatus.IDLE))
    yield _Line(m, "ProcStart", (p, 1))
    yield _Line(m, "GoCreate", (g, added.stack(start), 0))
    yield _Line(m, "GoStart", (g, 1))
    for number, task in origins.tasks.items():
        yield _Line(m, "UserTaskBegin", (number, task.parent, added.string(task.name), added.stack(task.stack)))
    yield _Line(m, "GoDestroy", ())
    yield _Line(m, "ProcStop", ())


def _spare(state: State, gone: Gone | None, said: _Said, generation: Generation) -> Gone:
    """An M without P and G, an idle P and a G that is dead.

    A P that is made up must not be told of by a later generation, nor a G be created by one, and those are not known
    here: their numbers are high, and drawn from the generation, so that only a file that was made for it has them.
    """
    if gone is not None and gone.m in state.ms and gone.p in state.ps and gone.g not in state.gs:
        m = state.ms[gone.m]
        if m.p == m.g == spec.NONE and state.ps[gone.p].status == ProcStatus.IDLE:
            return gone
    drawn = _NEW + zlib.crc32(repr((generation.gen, generation.min_time, generation.tables.strings)).encode())
    free_m, free_p = next(_free(state.ms.keys() | said.ms)), next(_free(state.ps.keys() | said.ps, drawn))
    free_g = next(_free(state.gs.keys() | said.created, drawn))
    return Gone(free_m, free_p, gone.g if gone and gone.g not in state.gs else free_g, ())


def _free(used: Container[int], first: int = 1) -> Iterator[int]:
    return (number for number in itertools.count(first) if number not in used)


def _batches(lines: Iterable[_Line], gen: int, time: int) -> Iterator[Batch]:
    """The lines as batches, in their order, one unit of time apart."""
    m, begin, last, data = spec.NONE, time, time, bytearray()
    for line in lines:
        if data and (line.m != m or len(data) > _BATCH_BYTES):
            yield Batch(gen, m, begin, bytes(data))
            data.clear()
        if not data:
            m, begin, last = line.m, time, time
        data += encode_event(RawEvent(spec.BY_NAME[line.name], (time - last, *line.args)))
        last = time
        time += 1
    if data:
        yield Batch(gen, m, begin, bytes(data))


def _tables(added: _Added, gen: int, time: int) -> Iterator[Batch]:
    for mark, events in (("Stacks", added.new_stacks), ("Strings", added.new_strings)):
        first = encode_event(RawEvent(spec.BY_NAME[mark], ()))
        data = bytearray(first)
        for event in events:
            more = encode_event(event)
            if len(data) + len(more) > spec.MAX_BATCH_SIZE:
                yield Batch(gen, spec.NONE, time, bytes(data))
                data[:] = first
            data += more
        if len(data) > len(first):
            yield Batch(gen, spec.NONE, time, bytes(data))
