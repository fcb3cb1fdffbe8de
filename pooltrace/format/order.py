"""The order of events: one sequence out of the batches of all Ms, by the rules, and by time where these leave a choice.

The algorithm is that of Go's ``internal/trace/reader.go``, so that the sequence is the same, ties included:

1. The batches of a generation are grouped by M; each M has a cursor at its next event.
2. The cursors stand in a heap by time. The first is advanced if the rules let it.
3. If it has to wait, the others are tried in the order of their times; the first that may go on does. If none may, the
   trace is broken.
4. CPU samples come in between by their time.

Times. Go's reader shows each event later than the one before: an event whose time is not later is moved to 1 ns after
it. A run of events of the same time is thus spread over as many ns, which is normal, however long the run. But an event
that stands in the order behind one that was *written* with a later time is shown at a time that was not its own. Here
it is a misread if it is more than ``LATE_NS`` behind the latest time written so far. Misreads are no errors of the
format: Go accepts the file. They are noted on the way, and ``check`` raises MisreadError for the first of them when it
has seen the whole file. The others are: a G id that is created twice, two frames that share a PC, generations that are
not in sequence (before 1.26 these are errors), a batch header long before the events (it moves the origin of Go's time
axis), an STW range that has another name where it ends.

Only ``read_events`` and ``check`` open files; all else here is given batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import BinaryIO, Final, NamedTuple

from pooltrace.errors import BadTraceError
from pooltrace.format import rules, spec
from pooltrace.format.cursor import Cursor, decode, remove, settle, sift_up
from pooltrace.format.generation import Frame, Generation, Misreads, Tables, read_generations
from pooltrace.format.raw import CutTraceError, open_trace, read_batches, signed
from pooltrace.format.spec import Arg, EventSpec, GoStatus, Header, ProcStatus
from pooltrace.format.states import Broken, State

LATE_NS: Final = 1_000
"""How far an event's time may be behind the latest time written before it."""
_ORIGIN_NS: Final = 1_000_000_000
"""How long before the first events of a trace a batch header may be."""
_NEW: Final = tuple.__new__
_time_of: Final = attrgetter("time")
_SAMPLE: Final = spec.BY_NAME["CPUSample"]


class MisreadError(BadTraceError):
    """Go reads the trace, but shows something that was not written. ``count`` is how often."""

    def __init__(self, first: BadTraceError, count: int) -> None:
        more = f" (and {count - 1} more like this)" if count > 1 else ""
        super().__init__(f"misread: {first}{more}", event=first.event, m=first.m, gen=first.gen)
        self.count = count


class Event(NamedTuple):
    """One event in its order.

    ``time`` is as written (ns), ``shown`` as Go shows it. ``m``, ``p`` and ``g`` are the context in which it happened,
    before it changed anything; -1 for none. ``args`` are the numbers behind the time, as in ``spec.args[1:]``.
    """

    gen: int
    time: int
    m: int
    p: int
    g: int
    spec: EventSpec
    args: tuple[int, ...]
    tables: Tables
    shown: int

    @property
    def name(self) -> str:
        return self.spec.name

    def arg(self, name: str) -> int:
        """An argument's number; Ms, Ps and Gs are signed."""
        i = self.spec.args.index(name) - 1
        value = self.args[i]
        return signed(value) if self.spec.types[i + 1] in (Arg.M, Arg.P, Arg.G) else value

    def string(self, name: str) -> str:
        """The text of a string argument."""
        return self.tables.string(self.arg(name))

    def stack(self, name: str = "stack") -> tuple[Frame, ...]:
        """The frames of a stack argument, innermost first."""
        return self.tables.stack(self.arg(name))

    def values(self) -> dict[str, object]:
        """All arguments by name: texts, stacks as tuples of frames, states by name, else numbers."""
        out: dict[str, object] = {}
        for name, kind in zip(self.spec.args[1:], self.spec.types[1:]):
            value = self.arg(name)
            if kind is Arg.STRING:
                out[name] = self.tables.string(value)
            elif kind is Arg.STACK:
                out[name] = self.tables.stack(value)
            elif kind is Arg.GSTATUS:
                out[name] = GoStatus(value).name.lower()
            elif kind is Arg.PSTATUS:
                out[name] = ProcStatus(value).name.lower()
            else:
                out[name] = value
        return out


# --- the machine ----------------------------------------------------------------------------------


class Ordering:
    """Puts the events of one generation after the other into order. No I/O."""

    def __init__(self, header: Header, misreads: Misreads) -> None:
        self.state = State(misreads)
        self.misreads = misreads
        self.max_shift = 0  # the most ns that Go moves an event, by ties or otherwise
        self._rows = rules.RULES_OF[header.minor]
        self._gen = 0
        self._shown = 0
        self._latest = 0

    def sync(self, generation: Generation) -> int:
        """Begins a generation. Returns when Go shows its Sync event: at the time of the earliest batch header."""
        gen = generation.gen
        last, self._gen = self._gen, gen
        if last and gen != last + 1 and not (gen == spec.FIRST_GENERATION_AFTER_WRAP and gen < last):
            self.misreads.add(f"generation {gen} follows {last}: not in sequence", event="EventBatch", gen=gen)
        self.state.begin(generation.tables)
        time = generation.to_ns(generation.min_time)
        starts = [batches[0].time for batches in generation.batches.values()]
        early = generation.to_ns(min(starts)) - time if starts else 0
        if not last and early > _ORIGIN_NS:
            why = f"generation {gen}: a batch header is {early} ns before the first event: Go's time axis begins there"
            self.misreads.add(why, event="EventBatch", gen=gen)
        return self._time(time, spec.NONE, "Sync")

    def events(self, generation: Generation) -> Iterator[Event]:
        """The events of a generation, in order; call ``sync`` before.

        Raises BadTraceError where the trace is broken.
        """
        frontier: list[Cursor] = []
        for number, batches in generation.batches.items():
            cursor = Cursor(number, decode(batches, self._rows, generation))
            if cursor.step():
                frontier.append(cursor)
                sift_up(frontier, len(frontier) - 1)
        tables = generation.tables
        samples = iter(generation.samples)
        sample = next(samples, None)
        state, emit = self.state, self._emit
        while frontier or sample is not None:
            if sample is not None and (not frontier or sample.time < frontier[0].time):
                yield emit(tables, sample.time, sample.m, sample.p, sample.g, _SAMPLE, sample.args)
                sample = next(samples, None)
                continue
            for i in range(len(frontier)):
                if i == 1:
                    frontier.sort(key=_time_of)
                cursor = frontier[i]
                rule, args = cursor.rule, cursor.args
                m = state.ms.get(cursor.m) or state.m(cursor.m)
                p, g = m.p, m.g
                try:
                    instead = rules.advance(state, rule, m, args)
                except Broken as error:
                    raise self._broken(cursor, str(error)) from None
                if instead is not None:
                    break
            else:
                raise self._stuck(frontier)
            time = cursor.time
            if not cursor.step():
                remove(frontier, i)
            else:
                settle(frontier, i)
            if instead:
                for shown in instead:
                    yield emit(tables, time, *shown)
            else:
                yield emit(tables, time, cursor.m, p, g, rule.spec, args)

    def _emit(self, tables: Tables, time: int, m: int, p: int, g: int, row: EventSpec, args: tuple[int, ...]) -> Event:
        """Checks the table ids of an event whose turn has come, and gives it its times."""
        for i in row.strings:
            if args[i - 1] not in tables.strings:
                raise self._refused(time, m, row, f"string {args[i - 1]} is not in the table")
        for i in row.stacks:
            if args[i - 1] not in tables.stacks:
                raise self._refused(time, m, row, f"stack {args[i - 1]} is not in the table")
        shown = self._time(time, m, row.name)
        return _NEW(Event, (self._gen, time, m, p, g, row, args, tables, shown))

    def _time(self, time: int, m: int, event: str) -> int:
        """The time at which Go shows what was written at this time; notes what is too late."""
        if time > self._shown:
            self._shown = self._latest = time
            return time
        self._shown += 1
        if time > self._latest:
            self._latest = time
        elif self._latest - time > LATE_NS:
            late = self._latest - time
            where = f"generation {self._gen}, M {m}, {event} at {time} ns"
            why = f"{where}: an event that goes before it has a time {late} ns later"
            self.misreads.add(why, event=event, gen=self._gen, m=m)
        if self._shown - time > self.max_shift:
            self.max_shift = self._shown - time
        return self._shown

    def _stuck(self, frontier: list[Cursor]) -> BadTraceError:
        first = frontier[0]
        why = rules.why_not(self.state, first.rule, self.state.m(first.m), first.args)
        others = f"; {len(frontier) - 1} other Ms wait as well" if len(frontier) > 1 else ""
        return self._broken(first, f"its turn never comes: {why}{others}")

    def _broken(self, cursor: Cursor, why: str) -> BadTraceError:
        return self._refused(cursor.time, cursor.m, cursor.rule.spec, why)

    def _refused(self, time: int, m: int, row: EventSpec, why: str) -> BadTraceError:
        return BadTraceError(
            f"generation {self._gen}, M {m}, {row.name} at {time} ns: {why}", event=row.name, m=m, gen=self._gen
        )


# --- files ----------------------------------------------------------------------------------------


@dataclass
class Summary:
    """Counts of a trace.

    ``events`` are those written, without tables; ``max_shift`` is the most ns that Go moves one.
    """

    header: str
    generations: int = 0
    events: int = 0
    by_name: dict[str, int] = field(default_factory=dict)
    ms: set[int] = field(default_factory=set)
    ps: set[int] = field(default_factory=set)
    gs: int = 0
    tasks: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    max_shift: int = 0
    bytes: int = 0


class TraceReader:
    """Reads a whole trace from a binary file: ``generations``, each with its events. Holds one generation at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self.header, self._batches = read_batches(file)
        self.misreads = Misreads()
        self.ordering = Ordering(self.header, self.misreads)
        self.summary = Summary(self.header.name)

    def generations(self) -> Iterator[tuple[Generation, int, Iterator[Event]]]:
        """Each generation, the time at which Go shows its Sync event, and its events: take all before the next."""
        for generation in read_generations(self._batches, self.misreads):
            sync = self.ordering.sync(generation)
            yield generation, sync, self.ordering.events(generation)
            self.summary.generations += 1

    def events(self) -> Iterator[Event]:
        """All events.

        Raises BadTraceError where the trace is broken, CutTraceError behind the last whole generation.
        """
        for _, _, events in self.generations():
            yield from events

    def finish(self) -> Summary:
        """Takes all events and counts them. Raises BadTraceError, MisreadError."""
        summary, state = self.summary, self.ordering.state
        counts: dict[EventSpec, int] = {}
        try:
            for event in self.events():
                counts[event.spec] = counts.get(event.spec, 0) + 1
                if summary.first_ns is None:
                    summary.first_ns = event.time
                summary.last_ns = event.time
        except CutTraceError as error:
            kept = sum(count for row, count in counts.items() if not row.implied)
            words = [
                f"{n} {what}{'' if n == 1 else 's'}"
                for n, what in ((summary.generations, "generation"), (kept, "event"))
            ]
            text = f"{error}; whole before that: {' with '.join(words)}"
            raise CutTraceError(text, offset=error.offset, gen=error.gen) from None
        finally:
            summary.by_name = {row.name: count for row, count in counts.items() if not row.implied}
            summary.events = sum(summary.by_name.values())
            summary.ms, summary.ps = set(state.ms), set(state.ps)
            summary.gs, summary.tasks = state.created, state.tasks_begun
            summary.max_shift, summary.bytes = self.ordering.max_shift, self._batches.offset
        self.verdict()
        return summary

    def verdict(self) -> None:
        """After all events: raises MisreadError if Go shows some of them wrongly."""
        if self.misreads.first is not None:
            raise MisreadError(self.misreads.first, self.misreads.count)


def read_events(path: str | os.PathLike[str]) -> Iterator[Event]:
    """The events of a file, in order. Raises OSError, BadTraceError."""
    with open_trace(path) as file:
        yield from TraceReader(file).events()


def check(path: str | os.PathLike[str]) -> Summary:
    """Reads a whole file.

    Raises OSError, BadTraceError for what Go refuses, MisreadError (one too) for what Go shows wrongly.
    """
    with open_trace(path) as file:
        return TraceReader(file).finish()
