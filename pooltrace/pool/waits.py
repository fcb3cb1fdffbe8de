"""Waits: the event and the condition of the stock results, so that a thread that waits for one is seen in the trace;
and what wakes a thread that sleeps in a selector.

A wait is a GoBlock, written under the wait's own lock after the last check that it must wait, and exactly one
GoUnblock, by the waker under the same lock or, if that never came, by the waiter itself. Knows neither pools nor
results.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
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


class Room:
    """Like threading.Event; a signal's handler may set it while its own thread does."""

    def __init__(self) -> None:
        self._cond = threading.Condition()  # of an RLock
        self._flag = False  # under _cond

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        with self._cond:
            self._flag = True
            self._cond.notify_all()

    def clear(self) -> None:
        with self._cond:
            self._flag = False

    def wait(self) -> None:
        with self._cond:
            self._cond.wait_for(self.is_set)


class Waker:
    """Wakes a thread that waits for descriptors, `fileno()` among them; one byte for each sleep, whoever wakes it.

    Whoever changes something and then calls `wake` is sure that the thread looks at it: either it had not yet asked
    `may_sleep`, which says so, or it sleeps, which `wake` sees.
    """

    def __init__(self) -> None:
        self._theirs, self._ours = socket.socketpair()
        for end in (self._theirs, self._ours):
            end.setblocking(False)
        self._sleeps = itertools.count(1)
        self._sleep = 0  # sleeper: the number of its sleep; 0: it is awake
        self._told = 0  # any thread: the sleep that it was woken from last
        self._poked = False  # any thread: look again before you sleep

    def wake(self) -> None:
        """Any thread, and a signal's handler."""
        self._poked = True
        sleep = self._sleep
        if sleep and sleep != self._told:
            with contextlib.suppress(OSError):  # full: it is awake; closed: it is gone
                self._theirs.send(b".")
            self._told = sleep  # not before: a handler may raise in between; and it may be in another sleep by now

    def writer(self) -> int:
        """A descriptor: a byte to it is as good as `wake`."""
        return self._theirs.fileno()

    def fileno(self) -> int:
        """What tells that somebody has woken; then `drain`."""
        return self._ours.fileno()

    def drain(self) -> None:
        with contextlib.suppress(OSError):
            self._ours.recv(4096)

    def may_sleep(self) -> bool:
        """The sleeper is about to wait. `rise` afterwards, whatever the answer is."""
        self._sleep = next(self._sleeps)
        return not self._poked

    def rise(self) -> None:
        """The sleeper is awake, and looks at everything next."""
        self._sleep, self._poked = 0, False

    def close(self) -> None:
        self._theirs.close()
        self._ours.close()
