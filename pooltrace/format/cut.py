"""A piece of a trace, from one generation's border to another's, that stands alone: with names, jobs and units.

Two passes over the file: the first reads only where generations begin, the second puts the events before the piece into
order, for its head (see head.py), and copies the piece. Memory is that of the largest generation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from pooltrace.errors import BadTraceError
from pooltrace.format import rules, spec
from pooltrace.format.cursor import decode
from pooltrace.format.generation import Misreads, read_generations
from pooltrace.format.head import Origins, add_head
from pooltrace.format.order import Ordering
from pooltrace.format.raw import Batch, BatchReader, CutTraceError, encode_batch, open_trace, read_batches
from pooltrace.format.spec import Header


class NoSuchPieceError(BadTraceError):
    """The trace has nothing in the time that was asked for."""


@dataclass(frozen=True)
class Border:
    """Where a generation begins: its number, and ns since the trace began."""

    gen: int
    start: int


@dataclass(frozen=True)
class Borders:
    """All generations that are whole, and when the last event of the last one is (ns since the trace began).

    ``fault``: why there are no more, if the file goes on or is cut off.
    """

    header: Header
    generations: tuple[Border, ...]
    end: int
    fault: BadTraceError | None


@dataclass(frozen=True)
class Piece:
    """The generations at positions ``first`` to ``last`` (inclusive) of ``borders``."""

    borders: Borders
    first: int
    last: int


def read_borders(path: str | os.PathLike[str]) -> Borders:
    """Where the generations of a file begin.

    Raises OSError, and BadTraceError if not even the first generation is whole.
    """
    found: list[Border] = []
    fault: BadTraceError | None = None
    with open_trace(path) as file:
        header, batches = read_batches(file)
        begin, last = 0, None
        try:
            for last in read_generations(batches, Misreads()):
                start = last.to_ns(last.min_time)
                begin = begin if found else start
                found.append(Border(last.gen, start - begin))
        except BadTraceError as error:
            if not found:
                raise
            fault = error
        end = found[-1].start if found else 0
        if last is not None:
            rows = rules.RULES_OF[header.minor]
            times = (time for of_m in last.batches.values() for time, _, _ in decode(of_m, rows, last))
            end = max(end, max(times, default=begin) - begin)
    return Borders(header, tuple(found), end, fault)


def choose(borders: Borders, begin: int | None, end: int | None) -> Piece:
    """The generations that have a part of the time from ``begin`` to ``end`` (ns since the trace began; None: all).

    Raises NoSuchPieceError if there is none.
    """
    starts = [border.start for border in borders.generations]
    first = max(i for i, start in enumerate(starts) if start <= (begin or 0))
    last = max((i for i, start in enumerate(starts) if end is None or start < end), default=-1)
    if last < first or (begin is not None and (begin > borders.end or (end is not None and end <= begin))):
        raise NoSuchPieceError("nothing of the trace is in that time")
    return Piece(borders, first, last)


def read_piece(path: str | os.PathLike[str], piece: Piece) -> Iterator[bytes]:
    """The piece as a file of its own, in pieces. Raises OSError, BadTraceError for what is broken before its end."""
    with open_trace(path) as file:
        header, reader = read_batches(file)
        yield header.magic
        tee = _Tee(reader)
        ordering, origins = Ordering(header, Misreads()), Origins()
        for i, generation in enumerate(read_generations(tee, ordering.misreads)):
            batches = tee.take(generation.gen)
            if i < piece.first:
                ordering.sync(generation)
                for event in ordering.events(generation):
                    origins.note(event)
                continue
            if i == piece.first and i > 0:
                batches = add_head(ordering.state, origins, generation, batches)
            for batch in batches:
                yield encode_batch(batch)
            if header.end_of_generation:
                yield encode_batch(Batch(0, spec.NONE, 0, b"", end=True))
            if i == piece.last:
                return
    raise CutTraceError("the file has changed while it was read")


class _Tee(BatchReader):
    """Keeps the batches that pass, until they are taken."""

    def __init__(self, reader: BatchReader) -> None:
        self._reader = reader
        self._kept: list[Batch] = []
        self.header = reader.header

    @property
    def offset(self) -> int:  # type: ignore[override]
        return self._reader.offset

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._reader:
            if not batch.end:
                self._kept.append(batch)
            yield batch

    def take(self, gen: int) -> list[Batch]:
        """The batches of that generation."""
        mine = [batch for batch in self._kept if batch.gen == gen]
        self._kept = [batch for batch in self._kept if batch.gen != gen]
        return mine
