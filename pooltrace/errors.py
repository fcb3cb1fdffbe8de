"""What can go wrong, split by whose fault it is.

Knows nothing of tracing, pools or files: it only names the faults, so that the write side and the read side can share
them.
"""

from __future__ import annotations

import signal as _signal


class PooltraceError(Exception):
    """Base of every error that pooltrace raises by itself."""


class BadTraceError(PooltraceError):
    """The trace is at fault: it is no trace, is cut off, or breaks a rule of the format.

    ``event``, ``m`` and ``gen`` say where, as far as that is known.
    """

    def __init__(self, message: str, *, event: str | None = None, m: int | None = None, gen: int | None = None) -> None:
        super().__init__(message)
        self.event = event
        self.m = m
        self.gen = gen


class MisuseError(PooltraceError, RuntimeError):
    """The caller is at fault: a second trace, a stop without a trace, an option that does not exist."""


class InternalError(PooltraceError):
    """We are at fault: a rule of our own was found broken."""


class PoolBrokenError(PooltraceError, RuntimeError):
    """No job of this pool can succeed any more, say because its initializer fails in every worker."""


class PoolTerminatedError(PooltraceError, RuntimeError):
    """The pool was terminated before this result was in."""


class TaskExitError(PooltraceError, RuntimeError):
    """A task raised SystemExit in its worker; raised as it is, it would end the parent."""


class WorkerLostError(PooltraceError, RuntimeError):
    """A worker process died while it ran a unit of work.

    ``pid`` is the process; ``signal`` the signal number that killed it, else None; ``exitcode`` what it exited with,
    else None.
    """

    def __init__(self, message: str, *, pid: int, signal: int | None = None, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid
        self.signal = signal
        self.exitcode = exitcode

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_worker_lost, (type(self), str(self), self.pid, self.signal, self.exitcode)


class TaskTimeoutError(WorkerLostError):
    """A unit of work took longer than the pool's ``task_timeout``: its worker was killed."""


def _rebuild_worker_lost(
    kind: type[WorkerLostError], message: str, pid: int, signal: int | None, exitcode: int | None
) -> WorkerLostError:
    return kind(message, pid=pid, signal=signal, exitcode=exitcode)


def describe_exit(pid: int, exitcode: int | None) -> str:
    """One phrase for how a process ended, from multiprocessing's exit code (negative: a signal)."""
    if exitcode is None:
        return f"pid {pid} ended in an unknown way"
    if exitcode >= 0:
        return f"pid {pid} exited with status {exitcode}"
    try:
        name = _signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"pid {pid} was killed by {name}"
