"""What the order of events is judged by: the states of all Ms, Ps and Gs, of tasks and the collector.

No rules, no I/O, no time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pooltrace.format import spec
from pooltrace.format.generation import Misreads, Tables
from pooltrace.format.spec import EventSpec

Args = tuple[int, ...]

_NONE: Final = spec.NONE


class Broken(Exception):
    """Why the event cannot happen, ever."""


class Shown(NamedTuple):
    """One event as it is shown: its context before it happened, and itself."""

    m: int
    p: int
    g: int
    spec: EventSpec
    args: Args


class M:
    """A thread: the P and G bound to it, -1 for none."""

    __slots__ = ("g", "id", "p")

    def __init__(self, number: int, g: int = _NONE, p: int = _NONE) -> None:
        self.id = number
        self.g = g
        self.p = p


class _Resource:
    """What Gs and Ps share.

    A status, the last sequence number with its generation, the ranges under way (event, kind as a string id, kind), and
    the M that had it last.
    """

    __slots__ = ("gen", "m", "ranges", "seq", "status")

    def __init__(self, status: int, gen: int) -> None:
        self.status = status
        self.gen = gen
        self.m = _NONE
        self.seq = 0
        self.ranges: list[tuple[str, int, bytes]] = []

    def follows(self, gen: int, seq: int) -> bool:
        return self.gen == gen and self.seq + 1 == seq

    def has_range(self, name: str, kind: int) -> bool:
        return any(r[0] == name and r[1] == kind for r in self.ranges)

    def begin_range(self, name: str, kind: int = 0, text: bytes = b"") -> None:
        if self.has_range(name, kind):
            raise Broken("such a range is under way already")
        self.ranges.append((name, kind, text))

    def active_range(self, name: str, first: bool) -> None:
        if first:
            self.begin_range(name)
        elif not self.has_range(name, 0):
            raise Broken("no such range is under way")

    def end_range(self, name: str) -> tuple[int, bytes]:
        for i, (begun, kind, text) in enumerate(self.ranges):
            if begun == name:
                self.ranges[i] = self.ranges[-1]
                self.ranges.pop()
                return kind, text
        raise Broken("no such range is under way")


class P(_Resource):
    """A P."""

    __slots__ = ()


class G(_Resource):
    """A G; ``regions`` are the user regions it is in, (task, name), outermost first."""

    __slots__ = ("regions",)

    def __init__(self, status: int, gen: int) -> None:
        super().__init__(status, gen)
        self.regions: list[tuple[int, bytes]] = []


class _SeenGs:
    """All G ids that were ever created, a bit each."""

    def __init__(self) -> None:
        self._bits: dict[int, int] = {}

    def add(self, g: int) -> bool:
        """Whether it was there before."""
        chunk, bit = g >> 9, 1 << (g & 511)
        bits = self._bits.get(chunk, 0)
        self._bits[chunk] = bits | bit
        return bool(bits & bit)


class State:
    """The states of everything, over all generations. Call ``begin`` for each generation."""

    def __init__(self, misreads: Misreads) -> None:
        self.misreads = misreads
        self.gen = 0
        self.first = True
        self.strings: dict[int, bytes] = {}
        self.ms: dict[int, M] = {}
        self.ps: dict[int, P] = {}
        self.gs: dict[int, G] = {}
        self.tasks: dict[int, bytes] = {}
        self.seen = _SeenGs()
        self.created = 0
        self.tasks_begun = 0
        self.gc_running: bool | None = None
        self.gc_seq = 0
        self._first_gen = 0
        self._nobody = M(_NONE)

    def begin(self, tables: Tables) -> None:
        """The events that follow are of this generation."""
        self.gen = tables.gen
        self._first_gen = self._first_gen or tables.gen
        self.first = tables.gen == self._first_gen
        self.strings = tables.strings

    def m(self, number: int) -> M:
        """The state of an M; that of 'no M' is never kept."""
        if number == _NONE:
            self._nobody.p = self._nobody.g = _NONE
            return self._nobody
        m = self.ms.get(number)
        if m is None:
            m = self.ms[number] = M(number)
        return m
