"""Cuts a trace and holds the piece against the whole: the same events at the same times, and a head that names them."""

from __future__ import annotations

import os
import random
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path

import gotool

from pooltrace.format import cut, order
from pooltrace.format.order import Event

SEED = int(os.environ.get("POOLTRACE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)


def write_piece(path: str | os.PathLike[str], to: Path, first: int, last: int) -> Path:
    """The generations at these positions, as a file."""
    piece = cut.Piece(cut.read_borders(path), first, last)
    to.write_bytes(b"".join(cut.read_piece(path, piece)))
    return to


def told(event: Event) -> tuple[object, ...]:
    """All that an event says. What a status says of its M is news in the first generation of a file only."""
    context = (event.m,) if "Status" in event.name else (event.m, event.p, event.g)
    return (event.gen, event.time, *context, event.name, tuple(event.values().items()))


def between(
    path: str | os.PathLike[str], first: int, last: int
) -> tuple[int, Iterator[tuple[int, tuple[object, ...]]]]:
    """The time from which the generations at these positions have events; the M of each of these, and what it says."""
    with order.open_trace(path) as file:
        for i, (generation, _, events) in enumerate(order.TraceReader(file).generations()):
            if i == first:
                begin = generation.to_ns(generation.min_time)
                break
            for _ in events:
                pass

    def events_from() -> Iterator[tuple[int, tuple[object, ...]]]:
        with order.open_trace(path) as file:
            for i, (_, _, events) in enumerate(order.TraceReader(file).generations()):
                for event in events:
                    if first <= i <= last:
                        yield event.m, told(event)
                if i == last:
                    return

    return begin, events_from()


def agree(path: str | os.PathLike[str], piece: Path, first: int, last: int) -> None:
    """Asserts that both readers accept the piece, and that behind its head each M says what it says in the whole.

    (Between Ms, events of one time may come in another order.)
    """
    order.check(piece)
    gotool.compare(piece)
    begin, whole = between(path, first, last)
    wanted: dict[int, deque[tuple[object, ...]]] = defaultdict(deque)
    for m, want in whole:
        wanted[m].append(want)
    for event in order.read_events(piece):
        if first and event.time < begin:
            continue  # the head
        assert wanted[event.m], f"the piece has {told(event)}, where the whole has nothing more of that M"
        want = wanted[event.m].popleft()
        assert told(event) == want, f"the piece has\n  {told(event)}\nwhere the whole has\n  {want}"
    assert not any(wanted.values()), "the piece ends early"


def cut_somewhere(path: str | os.PathLike[str], directory: Path) -> None:
    """Cuts at a random border, or two, and compares; nothing for a trace of one generation."""
    count = len(cut.read_borders(path).generations)
    if count < 2:
        return
    dice = random.Random(f"{SEED} {count}")
    first = dice.randrange(1, count)
    last = dice.choice([count - 1, dice.randrange(first, count)])
    print(f"{path}: cut at generations {first} to {last} of {count} (POOLTRACE_SEED={SEED})")
    agree(path, write_piece(path, directory / "piece.trace", first, last), first, last)
