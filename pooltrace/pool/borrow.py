"""Borrowing: a call of `apply` for which a worker is idle writes to it and reads its answer itself.

The dispatcher would be two more switches of threads. What is lent is out of its hands until it comes back, which is
what `Lending` keeps straight; whatever goes wrong on the way (the worker dies, Ctrl-C) the slot comes back with the
unit still in flight, and the dispatcher goes on from there as with any other. Knows slots and results; no selectors.

1. Under `lock` a slot is lent, given back, or used by the dispatcher, which asks `slot.lent` first. Only an idle slot
   is lent, and only while the dispatcher does not listen to its channel: it would read the answer.
2. A borrower takes the lock only if nobody has it: it never waits for the dispatcher.
3. The death of a worker that is lent is left alone until it comes back.
"""

from __future__ import annotations

import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from pooltrace.pool import intake
from pooltrace.pool.jobs import Unit
from pooltrace.pool.serialize import Serializer
from pooltrace.pool.slots import Slot
from pooltrace.tracer import emit


class Lending:
    """What is lent. `came_back` is called after each return: the dispatcher may wait for it."""

    enabled = False  # off until a signal amid a call cannot leave the lock or the slot behind

    def __init__(self, came_back: Callable[[], None]) -> None:
        self.lock = threading.Lock()
        self.asked = False  # somebody has called `apply`: only then idle channels are not listened to
        self.returned: deque[Slot] = deque()  # with a unit in flight, or dead; the dispatcher takes them
        self._came_back = came_back
        self._by_thread: dict[int, Borrowed] = {}  # under lock

    def borrow(self, slots: list[Slot]) -> Borrowed | None:
        """An idle worker, or None if there is none at once."""
        if not self.enabled:
            return None
        if not self.asked:
            self.asked = True
            return None
        if not self.lock.acquire(blocking=False):
            return None
        try:
            for slot in slots:
                if not slot.lent and not slot.listening and slot.pidfd >= 0 and not slot.inflight and slot.is_open():
                    borrowed = Borrowed(self, slot)
                    self._by_thread[threading.get_ident()] = borrowed
                    slot.lent = True
                    return borrowed
        finally:
            self.lock.release()
        return None

    def recall(self) -> None:
        """What the calling thread has: a signal's handler ends the pool amid its call."""
        borrowed = self._by_thread.get(threading.get_ident())
        if borrowed is not None:
            borrowed.end()

    def give_back(self, slot: Slot) -> None:
        with self.lock:
            self._by_thread.pop(threading.get_ident(), None)
            slot.lent = False
            if slot.inflight or slot.died_lent:
                self.returned.append(slot)
        self._came_back()


class Borrowed:
    """A worker that is lent, until the end of the ``with``; or of this object, if Ctrl-C comes before the ``with``."""

    def __init__(self, lending: Lending, slot: Slot) -> None:
        self._lending = lending
        self._slot = slot
        self._mine = True

    def __enter__(self) -> Borrowed:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def __del__(self) -> None:
        self.end()

    def end(self) -> None:
        """Gives it back, once."""
        if self._mine:
            self._mine = False
            self._lending.give_back(self._slot)

    @property
    def is_ours(self) -> bool:
        """Nobody else has it, and no unit is on its way in it."""
        return self._mine and not self._slot.inflight

    def run(self, unit: Unit, result: Any, serializer: Serializer, stack: emit.Stack | None) -> None:
        """Sets the result, unless the worker cannot bring it: then the dispatcher will. `stack`: who waits for it."""
        slot = self._slot
        try:
            slot.post(unit, serializer)
        except BaseException as error:
            unit.cancel()
            intake.deliver(result, 0, (False, error), 1)
            return
        ticket = emit.go_block("waiting for a result", stack) if stack is not None else None
        try:
            outcome = self._wait(serializer.family)
        finally:
            emit.go_resume(ticket)
        if outcome is not None:
            intake.deliver(result, 0, outcome, 1)

    def _wait(self, family: str) -> tuple[bool, Any] | None:
        slot, poll = self._slot, self._slot.poll
        if poll is None:
            poll = slot.poll = select.poll()
            poll.register(slot.pidfd, select.POLLIN)
            poll.register(slot.channel, select.POLLIN)
        sent = True
        while True:
            waits, sent = not sent, slot.flush()
            if not sent or waits:
                poll.modify(slot.channel, select.POLLIN | (0 if sent else select.POLLOUT))
            if any(fd == slot.pidfd for fd, _ in poll.poll()) or not self._mine:
                return None
            answers = slot.receive()
            if answers:
                slot.answered_all(answers)
                return intake.outcome(family, answers[0])
            if slot.end is None or slot.end.ended:
                return None
