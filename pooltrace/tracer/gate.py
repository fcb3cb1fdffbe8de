"""The gate through which everything passes that begins in a worker: a process, a unit.

Many pass at a time, and may take their time (a launch pickles what the user gave it).  A start of a trace closes the
gate from its question what runs to its switch, so that it knows the name of each G that runs then; it waits for those
who are inside, but not for ever.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Gate:
    """``with gate:`` passes; ``with gate.closed(patience):`` holds up all other threads that want to."""

    def __init__(self) -> None:
        self._cond = threading.Condition()  # a signal's handler may come back here: its lock is one for that
        self._inside = 0
        self._closed_by: int | None = None

    def __enter__(self) -> None:
        with self._cond:
            while self._closed_by not in (None, threading.get_ident()):
                self._cond.wait()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._cond:
            self._inside -= 1
            if self._closed_by is not None:
                self._cond.notify_all()

    @contextlib.contextmanager
    def closed(self, patience: float) -> Iterator[None]:
        """Closes it, and waits at most ``patience`` seconds until nobody is inside.  Within itself it does nothing."""
        me = threading.get_ident()
        if self._closed_by == me:
            yield
            return
        try:
            with self._cond:
                while self._closed_by is not None:
                    self._cond.wait()
                self._closed_by = me
                self._cond.wait_for(lambda: self._inside == 0, patience)
            yield
        finally:
            with self._cond:
                if self._closed_by == me:
                    self._closed_by = None
                    self._cond.notify_all()
