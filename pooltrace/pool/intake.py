"""Where the stock API layer hands work over: calls become jobs and units.

The stock classes put tasks into the pool's task queue; that is ours, and turns them into units. What becomes of the
results that they made is in results.py.
"""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from pooltrace.errors import MisuseError
from pooltrace.pool import _channel, jobs, otel
from pooltrace.pool._channel import Answer
from pooltrace.pool.jobs import Job, Tasks, Unit, Waiting
from pooltrace.pool.results import Direct, abort, end_iterator, end_job, outcome
from pooltrace.pool.serialize import Serializer
from pooltrace.pool.waits import Room
from pooltrace.tracer import annotate, emit

if TYPE_CHECKING:
    from pooltrace.pool.engine import Engine
    from pooltrace.pool.slots import Slot

_NO_KEYWORDS: dict[str, Any] = {}  # never written to
SetLength = Callable[[int], None]
_STACK = emit.frame("pooltrace.pool.intake", __file__, 0)  # the stack of what is our own in a submission


class TaskQueue:
    """Stands in for the stock pool's task queue: `put` is where a call's tasks arrive, in the caller's thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put(self, item: tuple[Iterable[Any], SetLength | None]) -> None:
        tasks, set_length = item
        engine = self._engine
        if os.getpid() != engine.pid:
            raise MisuseError("this pool belongs to the process that made it; a forked process must make its own")
        if isinstance(tasks, Tasks):
            if set_length is not None:
                self._imap(tasks, set_length)
            else:
                self._map(tasks)
            return
        for job_id, index, function, args, kwds in tasks:
            job = self._begin(job_id, _channel.APPLY, function, "apply", single=True)
            self._submit(job, [Unit(job, index, (args, kwds), emit.new_g())], _callers_stack())
        if set_length is not None:
            raise MisuseError("this kind of task list is not known")

    def apply(self, slot: Slot, function: object, args: Any, kwds: Any) -> Direct:
        """One unit, sent to that worker, and its answer awaited, by the calling thread itself; by the dispatcher if
        the worker is not idle any more, or cannot bring the answer.

        Whatever is raised here (Ctrl-C at any point), nothing waits for the result afterwards.
        """
        engine = self._engine
        result = Direct(engine)
        unit: Unit | None = None
        try:
            result.register()
            job = self._begin(result._job, _channel.APPLY, function, "apply", single=True)
            unit = Unit(job, 0, (args, kwds), emit.new_g())
            stack = _callers_stack()
            if stack is not None:
                unit.submit(stack)
            blob = _pack(unit, engine.serializer)
            answer = _call(slot, unit, blob, engine.waker(), stack)
            if answer is False:
                unit.sent = True  # by others
                engine.inbox.append(unit)
                engine.wake()
            elif answer is not None and answer.unit is unit:
                slot.was_called(answer)
                result._set(0, outcome(engine.serializer.family, answer, Exception))
            if engine.fault is not None:
                self._fail_late(job)
        except BaseException as error:
            if unit is not None and not unit.sent:
                unit.cancel()
            abort(result, engine.cache, error, False)
            raise
        return result

    def qsize(self) -> int:
        """How many units wait in the parent (the stock pool's counts calls): a measure for who submits."""
        return self._engine.queued()

    def empty(self) -> bool:
        """Nothing waits in the parent."""
        return self._engine.queued() == 0

    def _begin(self, job_id: int, kind: int, function: object, call: str, *, single: bool = False) -> Job:
        job = Job(job_id, kind, function, single)
        job.carrier, otel_id = otel.carrier()
        self._engine.jobs[job_id] = job
        if emit.enabled():
            emit.enter()
            name = f"{call}({job.name.rpartition('.')[2]})"
            emit.task_begin(job.task, annotate.current(), name, _callers_stack())
            if otel_id:
                emit.log(job.task, "otel trace id", otel_id)
            emit.leave()
        if job_id not in self._engine.cache:  # the pool ended meanwhile, and has failed the result
            end_job(self._engine, job_id)
        return job

    def _submit(self, job: Job, units: list[Waiting], stack: emit.Stack | None) -> None:
        engine = self._engine
        if stack is not None:
            emit.enter()
            for unit in units:
                rest: Waiting | None = unit
                while (piece := rest) is not None:
                    rest = piece.submit(stack)
                    engine.inbox.append(piece)
                    engine.wake()
            emit.leave()
        else:
            engine.inbox.extend(units)
            engine.wake()
        if engine.fault is not None:
            self._fail_late(job)

    def _fail_late(self, job: Job) -> None:
        """No job can succeed any more, and those that waited have been told."""
        engine = self._engine
        assert engine.fault is not None
        engine.cancel_inbox()
        result = engine.cache.get(job.id)
        if result is not None:
            abort(result, engine.cache, engine.fault, True)

    def _map(self, tasks: Tasks) -> None:
        result = self._engine.cache.get(tasks.job_id)
        if result is None:
            return  # of nothing: it was ready when it was made
        kind, batches = jobs.kind_of(tasks.function), tasks.batches()
        if kind is None or batches is None:
            raise MisuseError("this kind of task list is not known")
        function, items, size = batches
        job = self._begin(tasks.job_id, kind, function, "map" if kind == _channel.MAP else "starmap")
        job.chunk = size
        try:
            self._submit(job, jobs.finite_units(job, items, size, result._number_left), _callers_stack())
        except BaseException as error:  # Ctrl-C while the user's iterable was consumed: nobody will bring the rest
            abort(result, self._engine.cache, error, False)
            raise

    def _imap(self, tasks: Tasks, set_length: SetLength) -> None:
        kind, batches = jobs.kind_of(tasks.function), tasks.batches()
        chunked = kind is not None and batches is not None
        function: object = batches[0] if chunked and batches else tasks.function
        result = set_length.__self__  # type: ignore[attr-defined]
        call = "imap_unordered" if "Unordered" in type(result).__name__ else "imap"
        job = self._begin(tasks.job_id, kind if chunked and kind else _channel.APPLY, function, call)
        job.chunk = batches[2] if chunked and batches else 1
        job.room = Room()
        if (size := tasks.buffersize) is not None:
            engine = self._engine
            job.may_feed = lambda fed: fed - result.taken() < size or engine.state == "CLOSE"
            result.room = job.room
        feeder = threading.Thread(
            target=contextvars.copy_context().run,  # the user's iterator runs in it
            args=(self._feed, job, tasks.iterable, chunked, set_length, _callers_stack()),
            name="pooltrace feeder",
            daemon=True,
        )
        try:
            feeder.start()
        except BaseException as error:  # no more threads: nobody will bring a result
            abort(result, self._engine.cache, error, False)
            raise

    def _feed(
        self, job: Job, items: Iterable[Any], chunked: bool, set_length: SetLength, stack: emit.Stack | None
    ) -> None:
        """The feeder's thread: consumes the user's iterator, which may block, never far ahead of the workers.

        What it yields is pickled before it is asked for more: it may use the same object again.
        """
        index, free = -1, 0
        try:
            iterator = iter(items)
            while (free > 0 and not job.over) or job.has_room():
                free = free - 1 if free > 0 else job.free() - 1
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                index += 1
                if chunked:  # it is the stock generator's (function, items)
                    unit, ready = Unit(job, index, item[1], emit.new_g()), False
                else:
                    unit, ready = Unit(job, index, ((item,), _NO_KEYWORDS), emit.new_g()), jobs.is_small_constant(item)
                self._feed_one(job, unit, stack, ready)
                if not ready:
                    free = 0
                del item, unit
            if job.over:
                return
        except BaseException as error:
            if job.over:
                return
            index += 1
            unit = Unit(job, index, None, emit.new_g())
            unit.error = error
            self._feed_one(job, unit, None, True)
            del unit
        set_length(index + 1)
        if self._engine.fault is not None:
            end_iterator(set_length.__self__)  # type: ignore[attr-defined]

    def _feed_one(self, job: Job, unit: Unit, stack: emit.Stack | None, ready: bool) -> None:
        engine = self._engine
        traced = emit.enabled() and (emit.enter() or True)
        if not ready:
            if traced:
                emit.region_begin(emit.PHASE, 0, "pickle", _STACK)
            try:
                unit.pack(engine.serializer)
            except BaseException as error:
                unit.error = error
            if traced:
                emit.region_end()
        job.fed += 1
        job.fed_bytes += unit.size
        if traced:
            unit.submit(stack or emit.stack(0))
        engine.inbox.append(unit)
        engine.wake()
        if engine.fault is not None:
            self._fail_late(job)
        if traced:
            emit.leave()


def _pack(unit: Unit, serializer: Serializer) -> bytes:
    """Pickles the arguments of a call, and its function, which it returns. Raises what that raises."""
    emit.region_begin(emit.PHASE, 0, "pickle", _STACK)
    try:
        unit.packed = serializer.dumps(unit.payload())
        blob: bytes = unit.job.blob(serializer)
        return blob
    finally:
        emit.region_end()


def _call(slot: Slot, unit: Unit, blob: bytes, waker: int, stack: emit.Stack | None) -> Answer | Literal[False] | None:
    """See Slot.call. `stack`: who waits for it, if that is to be seen."""
    ticket = emit.go_block("waiting for a result", stack) if stack is not None else None
    try:
        return slot.call(unit, blob, waker)
    finally:
        emit.go_resume(ticket)


_OURS = (
    "pooltrace.pool",
    "multiprocessing.pool",
    "multiprocess.pool",
    "multiprocessing.context",
    "multiprocess.context",
)


def _callers_stack() -> emit.Stack | None:
    """The stack of the user's call, its innermost frame being the pool's method; None when no trace is on."""
    if not emit.enabled():
        return None
    skip = 0
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_back.f_globals.get("__name__", "")).startswith(_OURS):
        frame = frame.f_back
        skip += 1
    return emit.stack(skip + 1)
