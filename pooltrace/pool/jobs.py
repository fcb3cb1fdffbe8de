"""Jobs and units: what the engine knows of one call of map, apply or imap, and of each piece of it.

Knows nothing of workers and channels. A job lives until its last result is in; its arguments go as soon as they are
answered.
"""

from __future__ import annotations

import inspect
import itertools
import marshal
import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pooltrace.pool import _channel
from pooltrace.pool.serialize import Serializer, describe
from pooltrace.pool.waits import Room
from pooltrace.tracer import emit

NUMBERS = (bool, int, float, type(None))
CONSTANT = (*NUMBERS, str, bytes)
CONSTANT_SIZE = 1024  # characters, bytes
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60

Outcome = tuple[bool, Any]  # success, and the value or the exception: what the stock results' _set takes
AHEAD = 1024  # units of an imap that may wait in the parent; its iterator is not consumed further than that,
PIECE = 1024  # units that are submitted at a time
AHEAD_BYTES = 16 << 20  # nor while so much of them, pickled, waits there


class Job:
    """One call of the pool's. `kind` says how a unit's payload is applied: APPLY, MAP, STARMAP; `single`: one unit."""

    __slots__ = (
        "__weakref__",
        "_blob",
        "_start",
        "carrier",
        "chunk",
        "fed",
        "fed_bytes",
        "file",
        "function",
        "id",
        "kind",
        "line",
        "may_feed",
        "name",
        "over",
        "room",
        "sent",
        "sent_bytes",
        "single",
        "task",
        "unit_ns",
    )

    def __init__(self, id: int, kind: int, function: object, single: bool = False) -> None:
        self.id = id
        self.kind = kind
        self.single = single
        self.chunk = 1  # items of a unit
        self.function: object = function
        self.name, self.file, self.line = describe(function)
        self.task = emit.new_task()
        self.carrier: dict[str, str] | None = None  # the OpenTelemetry context of its submission
        self.fed = self.fed_bytes = 0  # units that the feeder has submitted; feeder's thread only
        self.sent = self.sent_bytes = 0  # units that are no longer queued; dispatcher's thread only
        self.room: Room | None = None  # the feeder waits for it when it is too far ahead,
        self.may_feed: Callable[[int], bool] | None = None  # or, with so many units fed, of who takes the results
        self.unit_ns = 0  # how long a unit takes, from the last ones; 0: not known yet. Dispatcher's thread only
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
            about = marshal.dumps((self.name, self.file, self.line, self.task, self.carrier))
            self._blob = len(about).to_bytes(4, "little") + about + serializer.dumps_function(self.function)
        return self._blob

    def took(self, ns: int) -> None:
        """One more unit has taken so long. Dispatcher's thread."""
        known = self.unit_ns
        self.unit_ns = known + (ns - known) // 8 if known else max(1, ns)

    def is_full(self) -> bool:
        """The feeder is as far ahead as it may be."""
        units, size = self.fed - self.sent, self.fed_bytes - self.sent_bytes
        if units >= AHEAD or (units > 0 and size >= AHEAD_BYTES):
            return True
        return self.may_feed is not None and not self.may_feed(self.fed)

    def has_room(self) -> bool:
        """Waits until the feeder is not too far ahead; False: the job is over. Feeder's thread."""
        room = self.room
        assert room is not None
        while self.is_full() and not self.over:
            room.clear()
            if self.is_full() and not self.over:
                room.wait()
        return not self.over

    def free(self) -> int:
        """How many units may be fed, if they have no size, before it has to be asked again. Feeder's thread."""
        return 1 if self.may_feed is not None else max(1, AHEAD - (self.fed - self.sent))

    def unqueued(self, count: int, size: int) -> None:
        """So many units, of so many bytes, wait no longer. Dispatcher's thread."""
        self.sent += count
        self.sent_bytes += size
        if self.room is not None and not self.room.is_set():
            units, left = self.fed - self.sent, self.fed_bytes - self.sent_bytes
            if units <= AHEAD // 2 and (left <= AHEAD_BYTES // 2 or units == 0):
                self.room.set()

    def requeued(self, size: int) -> None:
        """A unit waits again. Dispatcher's thread."""
        self.sent -= 1
        self.sent_bytes -= size

    def end(self) -> None:
        """Nothing more will be sent: lets the function go, and the feeder, if one waits."""
        self.over = True
        self.function = self._blob = None
        if self.room is not None:
            self.room.set()


def is_small_constant(value: Any) -> bool:
    """Nobody can change it, and it counts for nothing."""
    kind = type(value)
    if kind is int:
        return int(value).bit_length() < 64
    return kind in NUMBERS or (kind in (str, bytes) and len(value) <= CONSTANT_SIZE)


def short(value: object) -> str:
    """What a value looks like, in one line of at most some 60 characters. Never raises."""
    try:
        text = " ".join(_SHORT.repr(value).split())
    except BaseException:
        return f"<{type(value).__name__} object>"
    return text if len(text) <= 60 else text[:57] + "..."


About = tuple[str, str, int, int, dict[str, str] | None]  # name, file, line, task, carrier


def read_blob(blob: memoryview) -> tuple[About, memoryview]:
    """The parts of `Job.blob`, in the worker."""
    at = 4 + int.from_bytes(blob[:4], "little")
    about: About = marshal.loads(blob[4:at])
    return about, blob[at:]


class Unit(_channel.Unit):
    """One piece of a job: Unit(job, index, what, g). What it applies the function to is kept until its answer is in: it
    may be sent again. Its fields are in core/unit.c."""

    __slots__ = ()

    def describe(self) -> str:
        """Which of its job's items it has, and the first one, or the first argument: for an error. Never raises."""
        try:
            return self._describe()
        except Exception:  # the user's own sequence
            return ""

    def _describe(self) -> str:
        first = self._first()
        first = first if len(first) else self.first or ()
        if self.job.single:
            return f" (first argument: {short(first[0])})" if first else ""
        begin, end = self.span or (self.index * self.job.chunk, self.index * self.job.chunk + self.items)
        if end - begin == 1:
            return f" (item {begin}: {short(first[0])})" if first else f" (item {begin})"
        which = f"items {begin} to {end - 1}"
        return f" ({which}, the first: {short(first[0])})" if first else f" ({which})"

    def _first(self) -> Sequence[Any]:
        """Of the arguments, or of the items; empty: there is none, or it is not kept."""
        what = self.what
        if what is None:
            return ()
        if self.span is not None:
            return what[self.span[0] : self.span[0] + 1]  # type: ignore[no-any-return]
        row = what[0] if self.job.kind == _channel.APPLY else what
        return row[:1] if type(row) in (tuple, list) else ()

    def pack(self, serializer: Serializer) -> None:
        """Pickles now, buffers too: who made the arguments may change them next. Raises what pickling raises."""
        payload, buffers = serializer.dumps(self.payload())
        self.size = len(payload)
        if buffers:
            buffers = [memoryview(bytes(buffer)) for buffer in buffers]
            self.size += sum(buffer.nbytes for buffer in buffers)
        self.packed = payload, buffers
        if self.job.kind != _channel.APPLY:
            self.items = len(self.what)
        first = self._first()
        if first and type(first[0]) in CONSTANT:
            self.first = first
        self.what = None

    def submit(self, stack: emit.Stack | None) -> None:
        """Tells the trace that it exists. What is to be submitted after it: nothing."""
        if self.error is None:
            self.generation = emit.go_create(self.g, self.job.start, stack)

    def retry(self) -> None:
        """It was lost with its worker, and runs again: to the trace that is another one."""
        self.losses += 1
        self.g = emit.new_g()
        self.generation = 0
        if emit.enabled():
            self.submit(None)

    def cancel(self) -> None:
        """It will never run: ends it in the trace, if that knows of it. By whoever took it out of its queue."""
        if self.generation:
            emit.go_cancel(self.g, self.generation, self.job.start)
            self.generation = 0

    # -- as what waits in the engine's queue, like a row of them

    @property
    def left(self) -> int:
        return 1

    def take(self) -> Unit:
        return self


class Row(_channel.Row):
    """Units of one job that wait, in a row: Row(Unit, job, items, size, index, left, g). Each is made when it is handed
    out. Of one thread at a time."""

    __slots__ = ()

    def submit(self, stack: emit.Stack | None) -> Row | None:
        """Tells the trace that its units exist. What is to be submitted after it: the rest of a long row, which need
        not wait for it, and units that come into another generation."""
        self.generation, made = emit.go_create_row(self.g, min(self.left, PIECE), self.job.start, stack)
        if made == self.left:
            return None
        rest = Row(Unit, self.job, self.items, self.size, self.index + made, self.left - made, self.g + made)
        self.left = made
        return rest

    def cancel(self) -> None:
        """None of them will run."""
        while self.left:
            self.take().cancel()


Waiting = Unit | Row


class Tasks:
    """What stands in for the stock class's task generator: the engine reads its parts instead of running it."""

    __slots__ = ("buffersize", "function", "iterable", "job_id")

    def __init__(
        self, job_id: int, function: Callable[..., Any], iterable: Iterable[Any], buffersize: int | None = None
    ) -> None:
        self.job_id = job_id
        self.buffersize = buffersize
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
        return {"mapstar": _channel.MAP, "starmapstar": _channel.STARMAP}.get(getattr(mapper, "__name__", ""))
    return None


def finite_units(job: Job, items: Iterable[Any], size: int, count: int) -> list[Waiting]:
    """The units of a map whose result expects `count`. An error of the iterable stands for all that are missing."""
    error: BaseException | None = None
    row: Sequence[Any]
    if isinstance(items, range) or type(items) is tuple:
        row = items
    else:
        # a list may be changed by the caller while units wait; anything else may be longer or shorter than it said, or
        # have items of its own (a tuple's subclass)
        row, error = _consume(items, count * size)
    whole = min(count, -(-len(row) // size) if error is None else len(row) // size)
    found: list[Waiting] = []
    if whole:
        found.append(Row(Unit, job, row, min(size, len(row)), 0, whole, emit.new_g(whole)))
    missing = count - whole
    if missing > 0:
        last = Unit(job, whole, None, emit.new_g())
        last.error = error or ValueError(
            f"the iterable ended early: {missing} of {count} chunks that its length promised are missing"
        )
        last.weight = missing
        found.append(last)
    return found


def _consume(items: Iterable[Any], most: int) -> tuple[tuple[Any, ...], BaseException | None]:
    """The items, and what the iterable raised instead of the rest."""
    found: list[Any] = []
    try:
        found.extend(itertools.islice(items, most))
    except Exception as error:
        return tuple(found), error
    return tuple(found), None
