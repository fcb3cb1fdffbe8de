"""The CPU samples of a trace, each with the unit and item that it was taken in.

One sample stands for one tick of a clock that counts CPU time. Who wrote the trace tells its rate, once per generation:
a log of no task, whose key is RATE_KEY and whose value the ticks per second. Knows no profiles: what the samples add up
to is the business of those who read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from pooltrace.format import spec
from pooltrace.format.generation import Frame, Generation
from pooltrace.format.head import Frames, Origins
from pooltrace.format.order import Event, TraceReader

RATE_KEY: Final = "cpu samples per second"
"""The key of the log that tells the rate."""
DEFAULT_RATE: Final = 100.0
"""Ticks per second of a trace that does not tell."""
_RATE: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_SLOWEST: Final = 0.01
_SAMPLE: Final = spec.BY_NAME["CPUSample"]
_LOG: Final = spec.BY_NAME["UserLog"]
_ENDS: Final = frozenset(("GoDestroy", "GoDestroySyscall"))


class Sample(NamedTuple):
    """One tick. ``m``, ``p`` and ``g`` are -1 for none; ``frames`` is the stack, innermost first, and may be empty.

    ``unit`` is the start function of the G, as Go names it: the outermost frame of the stack that it was created with.
    None without a G, and for a G whose creation is not in the trace and that nothing names (before 1.23, nothing can).
    ``item`` is the name of the innermost user region that the G was in, an item or a phase of ours ("unpickle" and so
    on). Bytes of names that are not UTF-8 are replacement characters.
    """

    time_ns: int
    m: int
    p: int
    g: int
    frames: Frames
    unit: str | None
    item: str | None


class SampleReader:
    """Iterates over the samples of a binary file, once. Memory is that of the largest generation.

    The samples of a generation come when all of it was read, so that their units and their rate are known, whatever
    the order in which it tells them. What Go would misread is no matter here.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Reads the header. Raises NotATraceError, CutTraceError."""
        self.rate = DEFAULT_RATE
        """Ticks per second, in the generation of the sample at hand."""
        self.generations = 0
        """How many were read whole."""
        self.wall_ns: int | None = None
        """When the trace begins, in ns since the epoch; None before header 1.25, which has no wall clock."""
        self.duration_ns = 0
        """From the begin of the trace to the last event of the generations that were read."""
        self._reader = TraceReader(file)
        self._origins = Origins()
        self._begin = 0

    @property
    def period_ns(self) -> int:
        """CPU time that the sample at hand stands for."""
        return round(1e9 / self.rate)

    def __iter__(self) -> Iterator[Sample]:
        """Raises BadTraceError where the trace is broken or cut off, behind the samples of the generations before."""
        for generation, _, events in self._reader.generations():
            if not self.generations:
                self._begin = generation.to_ns(generation.min_time)
                self.wall_ns = _wall(generation, self._begin)
            samples = self._read(events)
            self.generations += 1
            yield from samples

    def _read(self, events: Iterator[Event]) -> list[Sample]:
        """The samples of one generation."""
        origins = self._origins
        regions, starts = origins.regions, origins.starts
        ended: dict[int, Frames] = {}  # of Gs that have ended in this generation: a late sample of theirs needs it
        samples: list[Sample] = []
        last = self._begin
        for event in events:
            last = max(last, event.time)
            row = event.spec
            if row is _SAMPLE:
                inside = regions.get(event.g)
                item = inside[-1].name.decode("utf-8", "replace") if inside else None
                samples.append(Sample(event.time, event.m, event.p, event.g, event.stack(), None, item))
                continue
            if row.name in _ENDS:
                ended[event.g] = starts.get(event.g, ())
            elif row is _LOG:
                self.rate = _rate(event) or self.rate
            origins.note(event)
        self.duration_ns = max(self.duration_ns, last - self._begin)
        return [sample._replace(unit=_name(starts.get(sample.g) or ended.get(sample.g))) for sample in samples]


def _name(start: tuple[Frame, ...] | None) -> str | None:
    return start[-1].function if start else None


def _rate(log: Event) -> float | None:
    """The rate that a log tells, if it is the one that does, and a rate that can be."""
    if log.arg("task") or log.string("key") != RATE_KEY:
        return None
    value = log.string("value")
    return float(value) if _RATE.fullmatch(value) and float(value) >= _SLOWEST else None


def _wall(generation: Generation, begin: int) -> int | None:
    """What the wall clock said at ``begin``, if the generation's snapshot tells and it is a time that can be."""
    snapshot = generation.tables.snapshot
    if snapshot is None:
        return None
    wall = snapshot.sec * 10**9 + snapshot.nsec - (generation.to_ns(snapshot.time) - begin)
    return wall if 0 < wall < 1 << 63 else None
