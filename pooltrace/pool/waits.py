"""Waits: the event and the condition of the stock results, so that a thread that waits for one is seen in the trace;
and what wakes a thread that sleeps in a selector.

A wait is a GoBlock, and exactly one GoUnblock, by the waker or, if that never came, by the waiter itself. Knows neither
pools nor results.

A signal's handler may raise anywhere in Python code, also between the taking of a lock by a method and the `with` that
would give it back, and whoever sets an event next would wait for ever. So events and rooms have no lock (a waiter is in
the list before it looks at the flag, whoever sets the flag looks at the list afterwards), and a condition is itself a
lock of C's.
"""

from __future__ import annotations

import _thread
import contextlib
import itertools
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from pooltrace.errors import MisuseError
from pooltrace.tracer import emit


class _Waiter:
    """One wait of a thread, which is woken once."""

    __slots__ = ("_lock", "_ticket")

    def __init__(self, ticket: emit.Ticket | None = None) -> None:
        self._ticket = ticket
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> bool:
        """Whether it was woken in that time."""
        if timeout is None:
            return self._lock.acquire()
        return self._lock.acquire(True, timeout) if timeout > 0 else self._lock.acquire(False)

    def wake(self) -> None:
        """Any thread, and again."""
        emit.go_unblock(self._ticket, None)
        with contextlib.suppress(RuntimeError):  # it was woken before
            self._lock.release()


class _Flag:
    def __init__(self) -> None:
        self._flag = False
        self._waiters: deque[_Waiter] = deque()  # each adds itself, and takes itself away

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        self._flag = True
        for waiter in self._listed():
            waiter.wake()

    def _listed(self) -> tuple[_Waiter, ...]:
        while True:
            try:
                return tuple(self._waiters)
            except RuntimeError:  # it has changed: a collection, and with it another thread, came in between
                continue

    def _wait(self, waiter: _Waiter, timeout: float | None) -> None:
        try:
            self._waiters.append(waiter)
            if not self._flag:
                waiter.wait(timeout)
        finally:
            if waiter in self._waiters:  # else it did not come that far
                self._waiters.remove(waiter)


class Room(_Flag):
    """Like threading.Event."""

    def clear(self) -> None:
        self._flag = False

    def wait(self) -> None:
        while not self._flag:
            self._wait(_Waiter(), None)


class Event(_Flag):
    """Like threading.Event. `reason` is what the trace says of a thread that waits for it.

    `before` is called by `set` before anybody is woken; `thread` is the one that would set it, which therefore must not
    wait for it.
    """

    def __init__(
        self, reason: str, before: Callable[[], object] | None = None, thread: threading.Thread | None = None
    ) -> None:
        super().__init__()
        self._reason = reason
        self._before = before
        self._thread = thread

    def set(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            before()
        self._thread = None
        super().set()

    def wait(self, timeout: float | None = None) -> bool:
        if self._flag:
            return True
        if timeout is None and self._thread is threading.current_thread():
            raise MisuseError(
                "a callback waits for a result of its own pool, which cannot come before the callback returns"
            )
        ticket: emit.Ticket | None = None
        try:
            emit.enter()
            if not self._flag:
                ticket = emit.go_block(self._reason, emit.stack(1)) if emit.enabled() else None
                self._wait(_Waiter(ticket), timeout)
            return self._flag
        finally:
            _over(ticket)


def _over(ticket: emit.Ticket | None) -> None:
    """A wait is, whatever it was ended by."""
    try:
        emit.go_resume(ticket)
    finally:
        emit.leave()


class Condition(_thread.RLock):  # type: ignore[misc]  # it is one that can be derived from
    """A threading.Condition whose waits are seen in the trace. Waiters are woken in the order in which they came."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self._reason = reason
        self._waiters: deque[_Waiter] = deque()  # under the lock

    def wait(self, timeout: float | None = None) -> bool:
        lock = cast(Any, self)
        if not lock._is_owned():
            raise RuntimeError("cannot wait on un-acquired lock")
        ticket: emit.Ticket | None = None
        state = None
        try:
            emit.enter()
            ticket = emit.go_block(self._reason, emit.stack(1)) if emit.enabled() else None
            waiter = _Waiter(ticket)
            try:
                self._waiters.append(waiter)
                state = lock._release_save()
                return waiter.wait(timeout)
            finally:
                try:
                    if state is not None:  # first of all, before a handler runs that raises
                        lock._acquire_restore(state)
                    elif not lock._is_owned():
                        lock.acquire()
                finally:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)
        finally:
            _over(ticket)

    def notify(self, n: int = 1) -> None:
        for _ in range(min(n, len(self._waiters))):
            self._waiters.popleft().wake()

    def notify_all(self) -> None:
        self.notify(len(self._waiters))


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
