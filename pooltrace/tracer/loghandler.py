"""The program's own log records, as logs of the trace."""

from __future__ import annotations

import logging
import threading

from pooltrace.tracer import _core, annotate


class _Busy(threading.local):
    now = False


_busy = _Busy()


class LogHandler(logging.Handler):
    """Puts records into the trace, as logs of the current task; does nothing, not even format, when none is on.

    A log's key is the level and the logger's name: Go's viewer writes ``[WARNING app.db] message`` on the timeline, and
    its task pages search the messages only, so what one looks at first stands in front, and the keys stay few (they are
    kept once per part of a trace).  The message is as the handler's formatter makes it, a traceback included, cut to
    1 KiB.  What goes wrong here goes to ``handleError``.  A record that is logged while one is being formatted, in the
    same thread, is left out.
    """

    def handle(self, record: logging.LogRecord) -> bool:
        """As logging's, without its lock: the tracer needs none."""
        if not annotate.enabled() or _busy.now:
            return False
        try:
            _busy.now = True
            kept: bool | logging.LogRecord = self.filter(record)
            if kept:
                self.emit(kept if isinstance(kept, logging.LogRecord) else record)
            return bool(kept)
        except Exception:
            self.handleError(record)
            return False
        finally:
            _busy.now = False

    def emit(self, record: logging.LogRecord) -> None:
        """Writes it, if a trace is on."""
        try:
            if annotate.enabled():
                annotate.write_log(f"{record.levelname} {record.name}", self.format(record))
        except Exception:
            self.handleError(record)


_core.sample_skip(LogHandler.emit.__code__.co_filename)
