"""Waits: the event and the condition of the stock results, so that a thread that waits for one is seen in the trace.

A wait is a GoBlock, written under the wait's own lock after the last check that it must wait, and exactly one
GoUnblock, by the waker under the same lock or, if that never came, by the waiter itself. Knows neither pools nor
results.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from pooltrace.errors import MisuseError
from pooltrace.tracer import emit


class Event:
    """Like threading.Event. `reason` is what the trace says of a thread that waits for it.

    `before` is called by `set` before anybody is woken; `thread` is the one that would set it, which therefore must not
    wait for it.
    """

    def __init__(
        self, reason: str, before: Callable[[], object] | None = None, thread: threading.Thread | None = None
    ) -> None:
        self._reason = reason
        self._before = before
        self._thread = thread
        self._cond = threading.Condition(threading.Lock())
        self._flag = False  # under _cond
        self._tickets: list[emit.Ticket] = []  # under _cond

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            before()
        self._thread = None
        with self._cond:
            self._flag = True
            for ticket in self._tickets:
                emit.go_unblock(ticket, None)
            self._tickets.clear()
            self._cond.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        if self._flag:
            return True
        if timeout is None and self._thread is threading.current_thread():
            raise MisuseError(
                "a callback waits for a result of its own pool, which cannot come before the callback returns"
            )
        emit.enter()
        try:
            return self._wait(timeout)
        finally:
            emit.leave()

    def _wait(self, timeout: float | None) -> bool:
        ticket: emit.Ticket | None = None
        try:
            with self._cond:
                if not self._flag:
                    ticket = emit.go_block(self._reason, emit.stack(2)) if emit.enabled() else None
                    if ticket is not None:
                        self._tickets.append(ticket)
                    try:
                        self._cond.wait(timeout)
                    finally:
                        if ticket in self._tickets:
                            self._tickets.remove(ticket)
                return self._flag
        finally:
            emit.go_resume(ticket)


class Condition(threading.Condition):
    """A threading.Condition whose waits are seen in the trace. Waiters are woken in the order in which they came."""

    def __init__(self, reason: str) -> None:
        super().__init__(threading.Lock())
        self._reason = reason
        self._tickets: deque[emit.Ticket | None] = deque()  # under the lock

    def wait(self, timeout: float | None = None) -> bool:
        emit.enter()
        ticket = emit.go_block(self._reason, emit.stack(1)) if emit.enabled() else None
        self._tickets.append(ticket)
        try:
            return super().wait(timeout)
        finally:
            if ticket in self._tickets:
                self._tickets.remove(ticket)
            emit.go_resume(ticket)
            emit.leave()

    def notify(self, n: int = 1) -> None:
        for _ in range(min(n, len(self._tickets))):
            emit.go_unblock(self._tickets.popleft(), None)
        super().notify(n)
