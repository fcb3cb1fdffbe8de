"""A trace from start to stop.

The invariants of the tracer, each with what breaks without it, and where it is kept.  M: a process's or thread's
stream; P: a slot; G: a unit or a call (DESIGN: "Words").

The advance (core/coord.c, core/writer.c)
 1. Only the coordinator advances, one advance at a time; n+2 does not begin before n is gathered, written and read.
    Else a buffer would be written over: generation n+2 uses that of n.
 2. The generation in force is stored before any word is moved.  Else an effect could be older than its cause.
 3. One thread writes to a word.  An emit that is nested in another publishes first; the outer one is encoded anew.
 4. An M registers before it reads the generation, under the lock under which the coordinator lists the Ms after
    storing the new one.  Else an M could write into a generation that is not gathered from it.  A worker's threads
    register in the arena's table, with a fence in the lock's place.
Form (core/merge.c, core/generation.c)
 5. A generation begins with the statuses in which the streams ended, pauses of the collector that are open, ProcsChange
    and HeapGoal; what idles has its status from M -1 (another M's batch would bind it there).
 6. A G that was made or blocked in an older generation has its status before it is started or unblocked, once.
 7. Units that wait are not repeated in each generation: 100,000 of them would swamp the file.
 8. No time lies outside its generation: what is written for others has the time of the switch or of the last event.
    Statuses take times of their own, since Go's reader moves events that share one.
 9. Sequence numbers begin anew with each status.  A waker knows its number from the ticket of the wait.
10. Ids of G, task and P come from counters that never run back.  A closed slot's P serves again.
11. Table ids are per M and generation in streams; the merge gives new ones per generation.
Starting, waiting, ending
12. With no trace on, an M's word says what it does; the exchange that starts a trace returns it.  Nothing is begun in a
    worker from the question what may run there to the exchange (``begins``): else a G would run that has no name.
13. GoBlock is written before the waiter can be seen by a waker; of the two exactly one writes GoUnblock (the ticket).
14. The thread that starts the trace is in it by status; others, those of workers too, come in with enter() and go out
    with leave().  What a worker's thread says goes up the worker's pipe, its end last: else a later thread with the
    same id could stand before it in the file.
15. An end without a begin in this trace is dropped, by the merge.  The end of a region that is not the innermost first
    ends those in it; a later end of theirs does nothing.  A pause of the collector needs a running G: else it is only
    counted, and told with the next unit.
16. A dead worker's pipe is read to its end, then its buffer; then its stream is closed, with the unit that it had
    claimed even if it had not said that it began; then the slot is filled.  A unit that will never run is started and
    ended on the coordinator's M: else it would wait for ever.
Robustness
17. Nothing is dropped silently: losses are counted in the arena, told in the file (logs "events lost") and in the
    summary.  When the reader does not read, workers wait, as long as their patience for one trace lasts.  CPU samples
    beyond what their log holds are counted (a log "cpu samples lost").
18. Batches go to the sink as they come, and to the file itself: memory does not grow with the run, and a kill loses no
    more than the generation at hand.
19. A sink that fails ends the trace, never the job; the first error is raised by stop().
20. Workers have no thread of ours; a forked child has no tracer unless it becomes a worker.  A worker's threads
    go with it.
21. With no trace on, an event costs a load and a branch.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pooltrace.errors import InternalError, MisuseError
from pooltrace.tracer import _core, arena, machine, sampler
from pooltrace.tracer.sink import Sink, Writable

_log = logging.getLogger("pooltrace")
_HEADERS = {"1.22": 22, "1.23": 23, "1.25": 25, "1.26": 26}
_READ_WAIT = 100_000_000  # ns between looks for a signal
_LOOK = 0.2  # seconds between looks whether a reader is still there
_HOLD = 1.0  # seconds that a start waits for a launch that is under way
STALL = 30.0  # seconds without progress after which stop() gives the file up

Units = Callable[[], list[tuple[int, _core.Stack]]]


class _State:
    """What there is to know of the one trace; every field under ``lock`` unless it says otherwise."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.phase = "off"  # off, on, stopping
        self.reader: threading.Thread | None = None  # inside read_trace
        self.last_reader: threading.Thread | None = None  # that read last in this trace
        self.pump: threading.Thread | None = None  # of start(), until stop()
        self.own_reader: threading.Thread | None = None  # the same, until all was read: nobody else may read
        self.nested: Callable[[], None] | None = None  # see share()
        self.nested_on = False  # a start() without its stop(), while shared
        self.error: BaseException | None = None  # the first one of the sink
        self.progress = 0  # pieces that the sink has taken; pump only
        self.stuck = False  # stop() has given up waiting for the sink
        self.summary: dict[str, Any] | None = None
        self.sources: list[Units] = []
        self.missing = ""  # what this trace lacks
        self.cpu_rate = 0


_state = _State()


begins = _core.Gate()
"""What may begin in a worker passes here.  Get it by this name, a forked child has its own."""


def describe_units(source: Units) -> Callable[[], None]:
    """Registers who knows the start functions of what may run in a worker, for a trace that starts on a running pool.

    Returns a function that takes the registration back.
    """
    with _state.lock:
        _state.sources.append(source)

    def remove() -> None:
        with _state.lock, contextlib.suppress(ValueError):
            _state.sources.remove(source)

    return remove


def _check(header: str, period: float, patience: float, cpu_rate: int) -> int:
    if not (isinstance(cpu_rate, int) and 0 <= cpu_rate <= 1000):
        raise MisuseError(f"cpu_rate is a whole number of samples per second from 0 (none) to 1000, not {cpu_rate!r}")
    if not (isinstance(patience, (int, float)) and 0 <= patience <= 3600):
        raise MisuseError(f"patience is a number of seconds from 0 to 3600, not {patience!r}")
    if header not in _HEADERS:
        raise MisuseError(f"there is no header {header!r}: take one of {', '.join(_HEADERS)}")
    if not (isinstance(period, (int, float)) and math.isfinite(period) and 0 <= period <= 3600):
        raise MisuseError(f"period is a number of seconds from 0 to 3600, not {period!r}")
    return _HEADERS[header]


def start_trace(
    *,
    header: str = "1.26",
    period: float = 1.0,
    patience: float = 5.0,
    cpu_rate: int = 100,
    caller: _core.Stack | None = None,
) -> None:
    """Starts tracing; somebody must read with :func:`read_trace`.

    ``header`` is the format's version ("1.22", "1.23", "1.25", "1.26"), ``period`` the seconds between generations
    (0: one after the other), ``patience`` the seconds that a worker waits, in all, for a reader that does not read
    (after that its events are lost, and counted), ``cpu_rate`` how many CPU samples there are of each second that a
    thread computes (0: none), ``caller`` a frame by which viewers call the starting thread (default: its outermost
    one).  Raises MisuseError during a trace and in a worker, waits for one that is stopping, and OSError when the arena
    cannot be made.
    """
    number = _check(header, period, patience, cpu_rate)
    if _core.is_worker():
        raise MisuseError("a worker cannot start a trace: start it where its pool is made, what it does is in that one")
    with _state.lock:
        while _state.phase == "stopping":
            if _state.stuck:
                raise MisuseError("the file of the last trace still takes nothing: no other trace can start")
            _check_reader("it has not been read to its end")
            _state.lock.wait(_LOOK)
        if _state.phase == "on":
            raise MisuseError("a trace is on already: stop it first")
    if caller is None:
        caller = _core.frame(*_core.stack().frames[-1])
    arena.acquire(required=True)
    try:
        nested = begins.is_mine
        try:
            begins.close(_HOLD)
            with _state.lock:
                sources = list(_state.sources)
            units = [unit for source in sources for unit in source()]
            with _state.lock:
                if _state.phase != "off":
                    raise MisuseError("a trace is on already: stop it first")
                _state.missing, _state.cpu_rate = sampler.prepare(cpu_rate), cpu_rate
                _core.watch_collector(True)
                times = int(period * 1e9), int(patience * 1e9), 10**9 // cpu_rate if cpu_rate else 0
                _core.start(number, *times, machine.memory_limit(), caller, units)
                _state.phase = "on"
                _state.last_reader = None
                _state.error = None
                _state.summary = None
        finally:
            if not nested:
                begins.open()
    except BaseException:
        arena.release()
        raise
    if _state.missing:
        _log.warning("pooltrace: %s", _state.missing)


def read_trace() -> bytes | None:
    """The next bytes of the trace; blocks until there are some; None when all was read.

    Raises MisuseError for a second reader at the same time, and for a trace that :func:`start` writes to a file.
    """
    me = threading.current_thread()
    with _state.lock:
        if _state.phase == "off":
            return None
        if _state.own_reader not in (None, me):
            raise MisuseError("start() reads this trace itself, into its file; use start_trace() to read it yourself")
        if _state.reader is not None:
            raise MisuseError("the trace is being read by another thread")
        _state.reader = _state.last_reader = me
    data: bytes | None = b""
    try:
        while data == b"":
            data = _core.read(_READ_WAIT)
    finally:
        with _state.lock:
            _state.reader = None
            if data is None:
                _finish()
    return data


def _finish() -> None:
    """All was read: under the state's lock."""
    if _state.phase == "off":
        return
    _core.join()
    _state.summary = _core.summary()
    _state.summary["functions"].sort(key=lambda row: -row["total_ns"])
    _state.phase = "off"
    _state.own_reader = None
    _state.stuck = False
    arena.release()
    _state.lock.notify_all()


def stop_trace() -> None:
    """Ends the trace and waits until its reader has read all of it.

    When the reader is the calling thread itself, it reads the rest afterwards.  Raises MisuseError when no trace is
    on, or when nobody has ever read it or its reader is gone (what was not read is thrown away then).
    """
    _request_stop()
    with _state.lock:
        if _state.last_reader is None:
            _throw_away()
            raise MisuseError("nobody has read this trace: call read_trace() in another thread until it returns None")
        if _state.last_reader is threading.current_thread() and _state.reader is None:
            return
        while _state.phase == "stopping":
            _check_reader("its last part is lost")
            _state.lock.wait(_LOOK)


def _request_stop() -> None:
    with _state.lock:
        if _state.phase != "on":
            raise MisuseError("no trace is on")
        _state.phase = "stopping"
        lost = "" if _state.missing or not _state.cpu_rate else sampler.missed()
        _state.missing = _state.missing or lost
    _core.stop()
    _core.watch_collector(False)
    if lost:
        _log.warning("pooltrace: %s", lost)


def missing() -> str:
    """What the trace that is on, or ended last, lacks, and why; "" if nothing."""
    return _state.missing


def _check_reader(what: str) -> None:
    """While a trace is stopping: MisuseError if nobody will read the rest of it.  Under the state's lock."""
    reader = _state.last_reader
    if reader is None or _state.reader is not None:
        return
    if reader is threading.current_thread():
        raise MisuseError(f"a trace has been stopped, and {what}: call read_trace() until it returns None")
    if not reader.is_alive():
        _throw_away()
        raise MisuseError(f"the thread that read the trace has ended, and {what}: let it call read_trace() until None")


def _throw_away() -> None:
    while _core.read(0) is not None:
        pass
    _finish()


def _pump(sink: Sink, begun: threading.Event) -> None:
    """The reader of start(): from the queue to the sink; the first error ends the file, not the job.

    ``begun`` is set once something was written, or when nothing will be.
    """
    try:
        while (data := _read_patiently()) is not None:
            _core.sample_again()  # once a generation, at least
            with _state.lock:
                failed = _state.error is not None
            if failed:
                continue
            try:
                sink.write(data)
                _state.progress += 1
                begun.set()
            except BaseException as error:
                _failed(error, quietly=sink.opened and not sink.begun)
        try:
            sink.close()
        except BaseException as error:
            _failed(error)
    finally:
        begun.set()


def _read_patiently() -> bytes | None:
    """As read_trace; without memory the piece stays where it is, and is asked for again."""
    while True:
        try:
            return read_trace()
        except MemoryError:
            time.sleep(_LOOK)


def _failed(error: BaseException, *, quietly: bool = False) -> None:
    with _state.lock:
        first = _state.error is None
        _state.error = _state.error or error
    if first:
        if not quietly:  # else start() raises it
            _log.error("pooltrace: the trace ends here, it cannot be written: %s", error)
        _core.stop()  # detached: nobody records any more


def start(
    target: str | os.PathLike[str] | Writable,
    *,
    header: str = "1.26",
    period: float = 1.0,
    patience: float = 5.0,
    cpu_rate: int = 100,
    caller: _core.Stack | None = None,
) -> None:
    """Starts a trace into a file (an lz4 frame when its name ends in ``.lz4``) or an object with ``write``.

    As Go's runtime/trace.Start.  ``header``, ``period``, ``patience``, ``cpu_rate`` and ``caller`` as in
    :func:`start_trace`.  Raises MisuseError during a trace and in a worker, and OSError when the arena cannot be made,
    or the file cannot be opened or written to: its first bytes are in it when this returns.  A file that was there
    before keeps its contents until the trace is on.
    """
    _check(header, period, patience, cpu_rate)
    with _state.lock:
        nested = _state.nested
        if _state.nested_on or (_state.phase == "on" and nested is None):
            raise MisuseError("a trace is on already: stop it first")
        _state.nested_on = nested is not None
    if nested is not None:
        nested()
        return
    sink = Sink(target)
    try:
        start_trace(header=header, period=period, patience=patience, cpu_rate=cpu_rate, caller=caller)
    except BaseException:
        with contextlib.suppress(Exception):
            sink.close()
        raise
    begun = threading.Event()
    pump = threading.Thread(target=_pump, args=(sink, begun), name="pooltrace-reader", daemon=True)
    with _state.lock:
        _state.pump = _state.own_reader = _state.last_reader = pump
    try:
        pump.start()
    except BaseException:  # no more threads
        with _state.lock:
            _state.pump = _state.own_reader = _state.last_reader = None
        with contextlib.suppress(MisuseError):
            stop_trace()
        with contextlib.suppress(Exception):
            sink.close()
        raise
    atexit.register(_stop_at_exit)
    if sink.opened:
        try:
            begun.wait()
        except BaseException:  # a signal's
            _stop_at_exit()
            raise
        if not sink.begun:
            stop()


def share(nested: Callable[[], None] | None) -> None:
    """For who traces the whole of a program that may do so itself: from now on start() only calls ``nested``, and
    stop() does nothing.  With None they are what they were: so before the one true stop()."""
    with _state.lock:
        _state.nested = nested
        _state.nested_on = False


def stop() -> None:
    """Ends the trace of :func:`start`: when this returns, the file is whole.

    Raises MisuseError when no such trace is on, the first error that writing met, if there was one, and TimeoutError
    when the file has taken nothing for half a minute.
    """
    with _state.lock:
        if _state.nested is not None:
            if not _state.nested_on:
                raise MisuseError("no trace is on")
            _state.nested_on = False
            return
        pump = _state.pump
        if pump is None:
            raise MisuseError("no trace is on")
        _state.pump = None
    atexit.unregister(_stop_at_exit)
    try:
        if _state.phase == "on":  # else it has ended already, with an error
            _request_stop()
    except BaseException:  # a signal's, maybe before the core was told: the pump ends with the trace
        _core.stop()
        raise
    finally:
        _await(pump)
    if _state.error is not None:
        raise _state.error
    if _state.summary and _state.summary["failed"]:
        raise InternalError("the trace is cut off: there was no memory for its tables")


def _await(pump: threading.Thread) -> None:
    """Waits for the last piece to be written, as long as there is any progress.  Raises TimeoutError."""
    seen, since = _state.progress, time.monotonic()
    while pump.is_alive():
        pump.join(_LOOK)
        if _state.progress != seen:
            seen, since = _state.progress, time.monotonic()
        elif time.monotonic() - since > STALL:
            _state.stuck = True
            raise TimeoutError(f"the trace's file has taken nothing for {STALL:g} s: it is not complete")
    _state.stuck = False


def _stop_at_exit() -> None:
    try:
        stop()
    except MisuseError:
        pass
    except Exception as error:
        _log.error("pooltrace: the trace is not complete: %s", error)


@contextlib.contextmanager
def trace(
    target: str | os.PathLike[str] | Writable,
    *,
    header: str = "1.26",
    period: float = 1.0,
    patience: float = 5.0,
    cpu_rate: int = 100,
) -> Iterator[None]:
    """``with trace(path):`` is start() and stop() with the same arguments.  The child of a fork inside has no trace."""
    start(target, header=header, period=period, patience=patience, cpu_rate=cpu_rate)
    pid = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == pid:
            stop()


def advance(timeout: float = 10.0) -> bool:
    """Asks for one advance now and waits for it, at most timeout seconds; False if there was none."""
    return _core.advance(int(timeout * 1e9))


def generation() -> int:
    """The generation in force, 0 when no trace is on."""
    return _core.generation()


def summary() -> dict[str, Any] | None:
    """Figures of the trace that ended last, counted while it was merged; None when there was none.

    Times in ns.  Keys: wall_ns, units, units_cancelled (that never ran), items, jobs, workers_lost, generations,
    events, bytes, lost_events, cpu_samples, failed, functions (name, count, total_ns, median_ns, p99_ns, max_ns; the
    largest total first) and slots (p, life_ns, start_ns, items_ns, unpickle_ns, pickle_ns, send_ns, unit_ns, idle_ns).
    start_ns is from the making of a slot's processes until they are ready: no unit, and an initializer is in functions,
    but no item.  Quantiles are right within 2 %.
    """
    return _state.summary


def _after_fork_in_child() -> None:
    global _state, begins
    _state = _State()
    begins = _core.Gate()
    _core.watch_collector(False)
    atexit.unregister(_stop_at_exit)


os.register_at_fork(after_in_child=_after_fork_in_child)
