"""Jobs and units: what the engine knows of one call of map, apply or imap, and of each piece of it.

Knows nothing of workers and channels. A job lives until its last result is in; its arguments go as soon as they are
answered.
"""

from __future__ import annotations

import inspect
import marshal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pooltrace.pool import frames
from pooltrace.pool.serialize import Serializer, describe
from pooltrace.tracer import emit

Outcome = tuple[bool, Any]  # success, and the value or the exception: what the stock results' _set takes
AHEAD = 64  # units of an imap that may wait in the parent; its iterator is not consumed further than that


class Job:
    """One call of the pool's. `kind` says how a unit's payload is applied: APPLY, MAP or STARMAP."""

    __slots__ = (
        "__weakref__",
        "_blob",
        "_start",
        "fed",
        "file",
        "function",
        "id",
        "kind",
        "line",
        "name",
        "over",
        "room",
        "sent",
        "task",
    )

    def __init__(self, id: int, kind: int, function: object) -> None:
        self.id = id
        self.kind = kind
        self.function: object = function
        self.name, self.file, self.line = describe(function)
        self.task = emit.new_task()
        self.fed = 0  # units that the feeder has submitted; feeder's thread only
        self.sent = 0  # units that are no longer queued; dispatcher's thread only
        self.room = threading.Event()  # the feeder waits for it when it is too far ahead
        self.over = False  # its last result is in, or it was given up
        self._blob: bytes | None = None
        self._start: emit.Stack | None = None

    @property
    def start(self) -> emit.Stack:
        """The start function of the job's units, as a stack of one frame."""
        if self._start is None:
            self._start = emit.frame(self.name, self.file, self.line)
        return self._start

    def blob(self, serializer: Serializer) -> bytes:
        """The function section of a frame, made once: what the worker has to know beforehand, then the function."""
        if self._blob is None:
            about = marshal.dumps((self.name, self.file, self.line, self.task))
            self._blob = len(about).to_bytes(4, "little") + about + serializer.dumps_function(self.function)
        return self._blob

    def end(self) -> None:
        """Nothing more will be sent: lets the function go, and the feeder, if one waits."""
        self.over = True
        self.function = self._blob = None
        self.room.set()


def read_blob(blob: memoryview) -> tuple[tuple[str, str, int, int], memoryview]:
    """The parts of `Job.blob`, in the worker."""
    at = 4 + int.from_bytes(blob[:4], "little")
    about: tuple[str, str, int, int] = marshal.loads(blob[4:at])
    return about, blob[at:]


class Unit:
    """One piece of a job. What it applies the function to is kept until its answer is in: it may be sent again."""

    __slots__ = ("error", "g", "generation", "index", "job", "sends", "span", "weight", "what")

    def __init__(self, job: Job, index: int, what: Any, span: tuple[int, int] | None = None) -> None:
        self.g = emit.new_g()
        self.generation = 0
        self.job = job
        self.index = index
        self.what = what  # (args, kwds), a chunk's items, or with `span` the sequence that they are a slice of
        self.span = span
        self.error: BaseException | None = None  # known before it runs: the user's iterator raised it
        self.weight = 1  # how many units of the result an error stands for
        self.sends = 0

    def cancel(self) -> None:
        """It will never run: ends it in the trace, if that knows of it. Dispatcher's thread."""
        if self.generation:
            emit.go_cancel(self.g, self.generation, self.job.start)
            self.generation = 0

    def payload(self) -> Any:
        return self.what if self.span is None else tuple(self.what[self.span[0] : self.span[1]])


class Tasks:
    """What stands in for the stock class's task generator: the engine reads its parts instead of running it."""

    __slots__ = ("function", "iterable", "job_id")

    def __init__(self, job_id: int, function: Callable[..., Any], iterable: Iterable[Any]) -> None:
        self.job_id = job_id
        self.function = function
        self.iterable = iterable

    def batches(self) -> tuple[object, Iterable[Any], int] | None:
        """(function, items, chunk size) of the stock class's `_get_tasks`, which has not begun to run."""
        if not inspect.isgenerator(self.iterable) or inspect.getgeneratorstate(self.iterable) != inspect.GEN_CREATED:
            return None
        found = inspect.getgeneratorlocals(self.iterable)
        try:
            return found["func"], found["it"], found["size"]
        except KeyError:
            return None


def kind_of(mapper: object) -> int | None:
    """MAP or STARMAP for the stock pools' own helpers, None for anything else."""
    module = getattr(mapper, "__module__", None)
    if module in ("multiprocessing.pool", "multiprocess.pool"):
        return {"mapstar": frames.MAP, "starmapstar": frames.STARMAP}.get(getattr(mapper, "__name__", ""))
    return None


def finite_units(job: Job, items: Iterable[Any], size: int, count: int) -> Iterator[Unit]:
    """The units of a map whose result expects `count`. An error of the iterable stands for all that are missing."""
    if type(items) in (list, tuple, range):
        for index in range(count):
            yield Unit(job, index, items, (index * size, (index + 1) * size))
        return
    index = -1
    error: BaseException | None = None
    try:
        chunk: list[Any] = []
        for item in items:
            chunk.append(item)
            if len(chunk) == size:
                index += 1
                yield Unit(job, index, tuple(chunk))
                chunk = []
        if chunk:
            index += 1
            yield Unit(job, index, tuple(chunk))
    except Exception as raised:
        error = raised
    missing = count - index - 1
    if missing <= 0:
        return
    last = Unit(job, index + 1, None)
    last.error = error or ValueError(
        f"the iterable ended early: {missing} of {count} chunks that its length promised are missing"
    )
    last.weight = missing
    yield last
