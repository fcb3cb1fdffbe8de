"""A drop-in process pool that records what it does the way Go's execution tracer records a Go program."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if "t" in getattr(sys, "abiflags", ""):
    raise ImportError("pooltrace needs a CPython with the GIL: this is a free-threaded build")

from pooltrace._version import __version__
from pooltrace.errors import (
    BadTraceError,
    MisuseError,
    PoolBrokenError,
    PoolTerminatedError,
    PooltraceError,
    TaskExitError,
    TaskTimeoutError,
    WorkerLostError,
)
from pooltrace.tracer.annotate import is_enabled, log, region, task
from pooltrace.tracer.loghandler import LogHandler
from pooltrace.tracer.session import read_trace, start, start_trace, stop, stop_trace, summary, trace

if TYPE_CHECKING:
    from pooltrace.pool.pool import Pool, StdPool

__all__ = [
    "BadTraceError",
    "LogHandler",
    "MisuseError",
    "Pool",
    "PoolBrokenError",
    "PoolTerminatedError",
    "PooltraceError",
    "StdPool",
    "TaskExitError",
    "TaskTimeoutError",
    "WorkerLostError",
    "__version__",
    "is_enabled",
    "log",
    "read_trace",
    "region",
    "start",
    "start_trace",
    "stop",
    "stop_trace",
    "summary",
    "task",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in ("Pool", "StdPool"):  # only then: `import pooltrace` stays light
        from pooltrace.pool import pool

        return getattr(pool, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
