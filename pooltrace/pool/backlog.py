"""The backlog: units that wait in the parent, and which worker gets how many of them.

Of the dispatcher's thread. Knows slots by what they can take, and nothing of processes, channels or results.

Each worker gets one unit, then one that waits behind it; more only of units that are known to be short, so that a
worker always has about 2 ms of work, and never more than its share of what there is. So little waits behind a unit that
turns out to be long; what does is taken back for a worker that has nothing to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from pooltrace.pool.jobs import Row, Unit, Waiting
from pooltrace.pool.serialize import Serializer
from pooltrace.pool.slots import DEPTH, Slot


class Backlog:
    """`fail` is told of units that cannot be sent, and why."""

    def __init__(self, serializer: Serializer, fail: Callable[[Unit, BaseException], None]) -> None:
        self._serializer = serializer
        self._fail = fail
        self._rows: deque[Waiting] = deque()  # oldest first
        self._units = 0  # in all of them

    def __len__(self) -> int:
        return self._units

    def take_in(self, inbox: deque[Waiting]) -> None:
        """All that has come; other threads may add to the inbox meanwhile."""
        while inbox:
            row = inbox.popleft()
            self._rows.append(row)
            self._units += row.left

    def put_back(self, units: Iterable[Unit]) -> None:
        """Units that were sent, and have to be sent again: before all others, in this order."""
        for unit in reversed(list(units)):
            unit.job.requeued(unit.size)
            self._rows.appendleft(unit)
            self._units += 1

    def cancel(self) -> None:
        """None of them will run."""
        self._units = 0
        while self._rows:
            self._rows.popleft().cancel()

    def assign(self, slots: list[Slot]) -> list[Slot]:
        """Gives units to workers; returns those whose channels have to be flushed."""
        touched: dict[Slot, None] = {}
        self._hand_out(slots, touched)
        if not self._rows and self._take_back(slots):
            self._hand_out(slots, touched)
        return list(touched)

    def _hand_out(self, slots: list[Slot], touched: dict[Slot, None]) -> None:
        for depth in range(DEPTH):
            for slot in slots:
                while self._rows and slot.inflight == depth and slot.is_open() and self._give(slot, 1):
                    touched[slot] = None
        given = 1
        while self._rows and given:
            able = [slot for slot in slots if slot.is_open()]
            if not able:
                return
            share = -(-(self._units + sum(slot.inflight for slot in able)) // len(able))
            given = 0
            for slot in able:
                if not self._rows:
                    break
                wanted = min(slot.wants(self._rows[0].job), share - slot.inflight)
                if wanted > 0 and (some := self._give(slot, wanted)):
                    given += some
                    touched[slot] = None

    def _give(self, slot: Slot, most: int) -> int:
        """Packs that many units for it, if there are so many; returns how many there were."""
        rows, given = self._rows, 0
        while given < most and rows:
            first = rows[0]
            if first.job.over:
                self._drop(rows.popleft())
                continue
            if posted := self._give_at_once(slot, most - given):
                given += posted
                continue
            unit = first.take()
            self._units -= 1
            if unit is first:
                rows.popleft()
                unit.job.unqueued(1, unit.size)
            elif first.left == 0:
                rows.popleft()
            if unit.error is not None:
                self._fail(unit, unit.error)
                continue
            try:
                sent = slot.post(unit, self._serializer)
            except BaseException as error:
                self._fail(unit, error)
                unit.cancel()
                continue
            if not sent:
                self.put_back([unit])
                break
            given += 1
        return given

    def _give_at_once(self, slot: Slot, most: int) -> int:
        """The same of those that need nothing but to be packed; how many."""
        rows = self._rows
        first = rows[0]
        if isinstance(first, Row):
            posted = slot.post_row(first, most)
            if first.left == 0:
                rows.popleft()
        elif posted := slot.post_units(rows, most):
            first.job.unqueued(posted, sum([rows.popleft().size for _ in range(posted)]))
        self._units -= posted
        return posted

    def _drop(self, row: Waiting) -> None:
        """Its job is over."""
        self._units -= row.left
        if isinstance(row, Unit):
            row.job.unqueued(1, row.size)
        row.cancel()

    def _take_back(self, slots: list[Slot]) -> bool:
        """For workers with nothing to do, units that wait behind others: of whoever has the most, half of them."""
        hungry = sum(1 for slot in slots if slot.inflight == 0 and slot.is_open())
        for slot in sorted(slots, key=lambda slot: slot.inflight, reverse=True):
            if hungry <= 0 or slot.inflight < DEPTH:
                break
            units = slot.take_back(max(1, slot.inflight // 2))
            self.put_back(units)
            hungry -= len(units)
        return bool(self._rows)
