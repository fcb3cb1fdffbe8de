"""What runs on the side while a trace is on: CPU samples, and the collector's pauses.

Here is only the getting ready, once per process: the handlers.  When samples are taken is in ``core/sampler.c``, and
that they are (with which period) is in the arena's header while a trace is on.
"""

from __future__ import annotations

import contextlib
import signal
import threading

from pooltrace.tracer import _core, machine

SIGNAL = signal.SIGURG
"""Ignored by default, so that no sample can end a process; SIGPROF and the interval timers stay the program's."""


def prepare(rate: int = 1) -> str:
    """Makes this process ready for samples; before a trace, or in a worker before its first unit.

    Returns what will be missing, "" if nothing: a handler that the program has for the signal stays, and there are no
    samples then (``rate`` 0: nobody asked for them).  Only the main thread may tell Python of a handler: called in
    another one, that is put off until Python next looks for signals there.
    """
    if not rate:
        return ""
    in_main = threading.current_thread() is threading.main_thread()
    found = signal.getsignal(SIGNAL)
    if found is _core.sample_tick and _core.sample_is_ours(SIGNAL):
        return ""
    if found not in (signal.SIG_DFL, signal.SIG_IGN, _core.sample_tick):
        return f"no CPU samples: the program handles {SIGNAL.name} itself"
    if in_main:
        signal.signal(SIGNAL, _core.sample_tick)
    else:
        _core.sample_later(prepare)
    _core.sample_install(SIGNAL, int(in_main))
    return ""


_MISSED = {
    _core.MISS_HANDLED: f"the program handles {SIGNAL.name} itself",
    _core.MISS_BLOCKED: f"the program blocks {SIGNAL.name}",
    _core.MISS_WAKEUP: "the program has a wakeup descriptor for signals, as asyncio does",
    _core.MISS_TIMERS: "there are no more timers (more than 1,023 threads, or see ulimit -i)",
}


def missed() -> str:
    """Why threads of parent and workers had no samples in the trace that is on, for a time at least; "" if none."""
    found = _core.sample_misses() | (0 if _core.sample_is_ours(SIGNAL) else _core.MISS_HANDLED)
    reasons = [reason for bit, reason in _MISSED.items() if found & bit]
    return f"some CPU samples are missing: {'; '.join(reasons)}" if reasons else ""


DETAILS = ("none", "unit", "item")
"""What figures are told of: nothing, each unit, and each item in it, too."""


def prepare_worker(detail: str) -> None:
    """The same in a worker, and what its figures are of: one of DETAILS."""
    prepare()
    source = "", "", 1
    with contextlib.suppress(OSError, ValueError):  # whatever there is in /proc and /sys
        source = machine.throttle_source()
    _core.figures_prepare(DETAILS.index(detail), *source)
