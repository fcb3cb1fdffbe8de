"""One generation: its batches collected, its tables read and checked. No order yet, no state between generations.

The rules are those of Go's ``internal/trace/generation.go``: what Go refuses is refused here. More than that, refused
here as well: events that the header does not know, a frequency of 0, experimental batches, a table or clock batch that
ends before an argument (Go takes it for the end of the file), a frame without its strings whose PC another frame has,
a file that ends behind its header or, in 1.26, within a generation of tables alone. What Go accepts but shows wrongly
goes to ``misreads``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, NoReturn

from pooltrace.errors import BadTraceError
from pooltrace.format import spec
from pooltrace.format.raw import Batch, BatchReader, CutTraceError, RawEvent, read_events, signed
from pooltrace.format.spec import Header

_STRINGS: Final = spec.BY_NAME["Strings"].number
_STACKS: Final = spec.BY_NAME["Stacks"].number
_SAMPLES: Final = spec.BY_NAME["CPUSamples"].number
_TABLE_EVENT: Final = {_STRINGS: "String", _STACKS: "Stack", _SAMPLES: "CPUSample"}


class Frame(NamedTuple):
    """One frame of a stack, innermost first."""

    pc: int
    function: str
    file: str
    line: int


class Snapshot(NamedTuple):
    """The clocks at one moment: of the trace (its own units), monotonic (ns), wall clock (s, ns)."""

    time: int
    mono: int
    sec: int
    nsec: int


class Sample(NamedTuple):
    """One CPU sample. ``time`` in ns; ``args`` as in the file, behind the time."""

    time: int
    m: int
    p: int
    g: int
    args: tuple[int, ...]


class Tables:
    """What the events of one generation refer to. Id 0 is 'none': the empty string, the empty stack."""

    __slots__ = ("_resolved", "frequency", "gen", "snapshot", "stacks", "strings")

    def __init__(self, gen: int) -> None:
        self.gen = gen
        self.strings: dict[int, bytes] = {0: b""}
        self.stacks: dict[int, tuple[tuple[int, ...], ...]] = {0: ()}
        self.frequency = 0
        self.snapshot: Snapshot | None = None
        self._resolved: dict[int, tuple[Frame, ...]] = {}

    def string(self, number: int) -> str:
        """The text of a string id; bytes that are not UTF-8 become replacement characters."""
        return self.strings[number].decode("utf-8", "replace")

    def stack(self, number: int) -> tuple[Frame, ...]:
        """The frames of a stack id, innermost first."""
        frames = self._resolved.get(number)
        if frames is None:
            frames = tuple(
                Frame(pc, self.string(func), self.string(file), line) for pc, func, file, line in self.stacks[number]
            )
            self._resolved[number] = frames
        return frames


class Misreads:
    """What Go accepts but shows wrongly: the first case and how many there are."""

    __slots__ = ("count", "first")

    def __init__(self) -> None:
        self.count = 0
        self.first: BadTraceError | None = None

    def add(self, why: str, *, event: str, gen: int, m: int | None = None) -> None:
        self.count += 1
        if self.first is None:
            self.first = BadTraceError(why, event=event, m=m, gen=gen)


class Generation:
    """The batches of one generation. ``add`` them all, then ``close``."""

    def __init__(self, gen: int, header: Header, misreads: Misreads) -> None:
        self.gen = gen
        self.header = header
        self.misreads = misreads
        self.tables = Tables(gen)
        self.batches: dict[int, list[Batch]] = {}  # per M, as they came; the Ms in the order of their first batch
        self.samples: list[Sample] = []
        self.min_time = 0  # as Go has it: a first batch at 0 does not count
        self._frames: dict[int, tuple[int, ...]] = {}

    def add(self, batch: Batch) -> None:
        if self.min_time == 0 or batch.time < self.min_time:
            self.min_time = batch.time
        if batch.mark in _TABLE_EVENT:
            self._add_table(batch, batch.mark)
        elif batch.mark == self.header.sync_mark:
            self._add_sync(batch)
        else:
            self.batches.setdefault(batch.m, []).append(batch)

    def to_ns(self, value: int) -> int:
        """Trace units to ns, by the arithmetic of Go's reader."""
        return int(float(value) * (1.0 / (self.tables.frequency / 1e9)))

    def close(self) -> None:
        """Checks what can only be known at the end of the generation."""
        tables = self.tables
        if not tables.frequency:
            self._refuse("has no Frequency event", "Frequency")
        if self.header.clock_snapshot and tables.snapshot is None:
            self._refuse("has no ClockSnapshot event", "ClockSnapshot")
        for number, frames in tables.stacks.items():
            for frame in frames:
                for part, string in zip(("function", "file"), frame[1:3]):
                    if string not in tables.strings:
                        self._refuse(
                            f"stack {number}: string {string}, the {part} of a frame, is not in the table",
                            "Stack",
                        )
        if self.to_ns(self.min_time) >> 63:
            self._refuse("begins at a time that does not fit into 63 bits", "EventBatch")
        if any(self.to_ns(sample.time) >> 63 for sample in self.samples):
            self._refuse("has a batch of samples: its times do not fit into 63 bits", "CPUSample")
        self.samples = sorted((s._replace(time=self.to_ns(s.time)) for s in self.samples), key=lambda s: s.time)

    def _refuse(self, why: str, event: str, m: int | None = None) -> NoReturn:
        raise BadTraceError(f"generation {self.gen} {why}", event=event, m=m, gen=self.gen)

    def _add_table(self, batch: Batch, mark: int) -> None:
        events = read_events(batch, self.header)
        next(events)
        want = _TABLE_EVENT[mark]
        for event in events:
            if event.spec.name != want:
                self._refuse(f"has a {event.spec.name} in a batch of {want} events", event.spec.name, batch.m)
            if mark == _STRINGS:
                self._add_string(event)
            elif mark == _STACKS:
                self._add_stack(event)
            else:
                time, m, p, g, _ = event.args
                self.samples.append(Sample(time, signed(m), signed(p), signed(g) or spec.NONE, event.args[1:]))

    def _add_string(self, event: RawEvent) -> None:
        if event.args[0] in self.tables.strings:
            self._refuse(f"has two strings with the id {event.args[0]} (0 is taken)", "String")
        self.tables.strings[event.args[0]] = event.text

    def _add_stack(self, event: RawEvent) -> None:
        if event.args[0] in self.tables.stacks:
            self._refuse(f"has two stacks with the id {event.args[0]} (0 is taken)", "Stack")
        self.tables.stacks[event.args[0]] = event.frames
        for frame in event.frames:
            if self._frames.setdefault(frame[0], frame) != frame:
                why = f"generation {self.gen}: two frames share the PC {frame[0]:#x}; Go shows the first for both"
                self.misreads.add(why, event="Stack", gen=self.gen)

    def _add_sync(self, batch: Batch) -> None:
        tables = self.tables
        for i, event in enumerate(read_events(batch, self.header)):
            if event.spec.name == "Frequency":
                if tables.frequency:
                    self._refuse("has two Frequency events", "Frequency", batch.m)
                if not event.args[0]:
                    self._refuse("has a frequency of 0", "Frequency", batch.m)
                tables.frequency = event.args[0]
            elif event.spec.name == "ClockSnapshot" and self.header.clock_snapshot:
                if tables.snapshot is not None:
                    self._refuse("has two ClockSnapshot events", "ClockSnapshot", batch.m)
                delta, mono, sec, nsec = event.args
                tables.snapshot = Snapshot(batch.time + delta, mono, sec, nsec)
            elif i or event.spec.name != "Sync":
                self._refuse(f"has a {event.spec.name} in its sync batch", event.spec.name, batch.m)


def read_generations(batches: BatchReader, misreads: Misreads) -> Iterator[Generation]:
    """The whole generations of a trace, one after the other. What Go would show wrongly is noted in ``misreads``.

    Raises BadTraceError at the first that is broken, and CutTraceError at the end if the last is not whole; those
    before were given.
    """
    read = _read_marked if batches.header.end_of_generation else _read_unmarked
    return read(batches, misreads)


def _read_marked(batches: BatchReader, misreads: Misreads) -> Iterator[Generation]:
    """1.26: each generation ends with its own event. Its number may be any other than 0: they wrap."""
    gen: Generation | None = None
    whole = 0
    for batch in batches:
        if batch.end:
            if gen is None:
                raise BadTraceError(
                    f"EndOfGeneration at offset {batch.offset} without a generation before it", event="EndOfGeneration"
                )
            gen.close()
            yield gen
            gen, whole = None, whole + 1
            continue
        if batch.gen == 0:
            raise _zero(batch)
        if gen is None:
            gen = Generation(batch.gen, batches.header, misreads)
        if batch.gen != gen.gen:
            raise BadTraceError(
                f"generation {gen.gen} is mixed with {batch.gen}, or has no end (batch at offset {batch.offset})",
                event="EventBatch",
                m=batch.m,
                gen=gen.gen,
            )
        gen.add(batch)
    if gen is not None:
        raise CutTraceError(
            f"cut off in generation {gen.gen}, before its EndOfGeneration", offset=batches.offset, gen=gen.gen
        )
    if not whole:
        raise CutTraceError("cut off behind the header: no generation", offset=batches.offset)


def _read_unmarked(batches: BatchReader, misreads: Misreads) -> Iterator[Generation]:
    """Before 1.26: a generation ends where the next begins, and that must be one higher."""
    gen: Generation | None = None
    try:
        for batch in batches:
            if batch.gen == 0:
                raise _zero(batch)
            if gen is not None and batch.gen == gen.gen + 1:
                gen.close()
                yield gen
                gen = None
            if gen is None:
                gen = Generation(batch.gen, batches.header, misreads)
            if batch.gen != gen.gen:
                raise BadTraceError(
                    f"generation {batch.gen} after {gen.gen}: out of order (batch at offset {batch.offset})",
                    event="EventBatch",
                    m=batch.m,
                    gen=batch.gen,
                )
            gen.add(batch)
    except CutTraceError as error:
        if gen is not None and error.gen == gen.gen + 1:
            gen.close()
            yield gen
        raise
    if gen is None:
        raise CutTraceError("cut off behind the header: no generation, so no Frequency event", offset=batches.offset)
    if not gen.tables.frequency:
        raise CutTraceError(
            f"cut off in generation {gen.gen}: no Frequency event so far", offset=batches.offset, gen=gen.gen
        )
    if not gen.batches:
        raise CutTraceError(f"cut off in generation {gen.gen}: no event so far", offset=batches.offset, gen=gen.gen)
    gen.close()
    yield gen


def _zero(batch: Batch) -> BadTraceError:
    return BadTraceError(f"batch at offset {batch.offset} has generation 0", event="EventBatch", m=batch.m, gen=0)
