"""The next event of each M: batches decoded one event at a time, and the heap of cursors that Go's reader keeps.

Knows nothing of the rules but which event types have one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from pooltrace.errors import BadTraceError
from pooltrace.format import rules, spec
from pooltrace.format.generation import Generation
from pooltrace.format.raw import Batch
from pooltrace.format.rules import Rule

_EXACT: Final = 1 << 53
"""Times below this are exact in Go's floating point arithmetic, if the frequency is 1e9."""

_NUMBERS: Final = re.compile(rb"[\x80-\xff]*[\x00-\x7f]")


class _Numbers(dict[bytes, int]):
    """LEB128 forms to numbers; the short ones are kept."""

    def __missing__(self, form: bytes) -> int:
        value = 0
        for i, byte in enumerate(form):
            value |= (byte & 0x7F) << 7 * i
        if len(form) > spec.MAX_VARINT_SIZE or value >> 64:
            raise OverflowError
        if len(form) <= 3 and len(self) < 1 << 17:
            self[form] = value
        return value


_NUMBER: Final = _Numbers().__getitem__


def decode(
    batches: list[Batch], rows: dict[bytes, Rule], generation: Generation
) -> Iterator[tuple[int, Rule, tuple[int, ...]]]:
    """The events of one M in one generation: time in ns, rule, arguments behind the time."""
    ns = 1.0 / (generation.tables.frequency / 1e9)
    for batch in batches:
        forms = _NUMBERS.findall(batch.data)
        try:
            numbers = tuple(map(_NUMBER, forms))
        except OverflowError:
            raise _bad_batch(batch, "a number does not fit into 64 bits", None) from None
        exact = ns == 1.0 and batch.time < _EXACT
        time = batch.time if exact else int(float(batch.time) * ns)
        i = 0
        end = len(forms)
        while i < end:
            rule = rows.get(forms[i])
            if rule is None:
                raise _bad_batch(batch, f"event type {numbers[i]} has no place in a batch of events", None)
            after = i + 1 + len(rule.spec.args)
            if after > end:
                raise _bad_batch(batch, "the batch ends in the middle of it", rule.spec.name)
            time += numbers[i + 1] if exact else int(float(numbers[i + 1]) * ns)
            yield time, rule, numbers[i + 2 : after]
            i = after
        if time >> 63:
            raise _bad_batch(batch, "its times do not fit into 63 bits", None)
        if batch.data and batch.data[-1] > 0x7F:
            raise _bad_batch(batch, "the batch ends in the middle of an event", None)


def _bad_batch(batch: Batch, why: str, event: str | None) -> BadTraceError:
    what = f", {event}" if event else ""
    return BadTraceError(
        f"generation {batch.gen}, M {batch.m}{what} (batch at offset {batch.offset}): {why}",
        event=event,
        m=batch.m,
        gen=batch.gen,
    )


class Cursor:
    """The next event of one M, and all that come after."""

    __slots__ = ("args", "events", "m", "rule", "time")

    def __init__(self, m: int, events: Iterator[tuple[int, Rule, tuple[int, ...]]]) -> None:
        self.m = m
        self.events = events
        self.time = 0
        self.rule = rules.RULES["ProcStop"]
        self.args: tuple[int, ...] = ()

    def step(self) -> bool:
        """Goes to the next event; False when there is none."""
        event = next(self.events, None)
        if event is None:
            return False
        self.time, self.rule, self.args = event
        return True


def sift_up(heap: list[Cursor], i: int) -> int:
    while i > 0 and heap[(i - 1) // 2].time > heap[i].time:
        parent = (i - 1) // 2
        heap[parent], heap[i] = heap[i], heap[parent]
        i = parent
    return i


def settle(heap: list[Cursor], i: int) -> None:
    """Puts a cursor whose time has changed into its place."""
    if i and sift_up(heap, i) != i:
        return
    cursor, size = heap[i], len(heap)
    time = cursor.time
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1].time < heap[child].time:
            child += 1
        if heap[child].time >= time:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = cursor


def remove(heap: list[Cursor], i: int) -> None:
    """Takes one out.

    As Go does it, since the order of ties depends on it: up to the root whatever its time, then the last in its place.
    """
    while i > 0:
        parent = (i - 1) // 2
        heap[parent], heap[i] = heap[i], heap[parent]
        i = parent
    heap[0] = heap[-1]
    heap.pop()
    if heap:
        settle(heap, 0)
