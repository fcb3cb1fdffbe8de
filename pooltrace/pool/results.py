"""Where answers become the stock API layer's results.

The stock classes create a result, which puts itself into the pool's cache. The cache is ours: it makes the result's
waits and callbacks visible, and sees the job's end. Knows the stock results' private attributes (the same in CPython
3.10 to 3.13 and in multiprocess); nothing of workers.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from pooltrace.pool import _channel
from pooltrace.pool._channel import Answer
from pooltrace.pool.jobs import Outcome
from pooltrace.pool.serialize import Serializer
from pooltrace.pool.waits import Condition, Event, Room
from pooltrace.tracer import emit

if TYPE_CHECKING:
    from pooltrace.pool.engine import Engine


class Result(Protocol):
    """What is used of the stock results."""

    _job: int

    def _set(self, i: int, obj: Outcome) -> None: ...


class Cache(dict[int, Any]):
    """The results that wait for answers. The stock code deletes one when its last answer is in: its job is over."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._given_up: dict[int, object] = {}  # any thread: single operations

    def give_up(self, job_id: int) -> bool:
        """Whether it is for the caller, and for nobody else, to fail this result."""
        token = object()
        return self._given_up.setdefault(job_id, token) is token and job_id in self

    def __setitem__(self, job_id: int, result: Any) -> None:
        engine = self._engine
        if hasattr(result, "_event"):
            result._event = Event("waiting for a result", lambda: end_job(engine, job_id), engine.thread)
            result._callback = _guarded(result._callback)
            result._error_callback = _guarded(result._error_callback)
        else:
            result._cond = Condition("waiting for the next result")
            result.__class__ = _iterator_of(type(result))
        super().__setitem__(job_id, result)

    def __delitem__(self, job_id: int) -> None:
        if self.pop(job_id, None) is not None:
            self._given_up.pop(job_id, None)
            end_job(self._engine, job_id)
            if not self and self._engine.state != "RUN":
                self._engine.wake()  # it may end now


def end_job(engine: Engine, job_id: int) -> None:
    """By whichever thread brought the last answer; the second call does nothing."""
    job = engine.jobs.pop(job_id, None)
    if job is None:
        return
    job.end()
    if emit.enabled():
        emit.enter()
        emit.task_end(job.task)
        emit.leave()


def _guarded(callback: Callable[[Any], object] | None) -> Callable[[Any], None] | None:
    """A user's callback; what it raises is reported, and does not keep its result from becoming ready."""
    if callback is None:
        return None

    def run(value: Any) -> None:
        emit.region_begin(emit.PHASE, 0, "callback", None)
        try:
            callback(value)
        except BaseException as error:
            _report(error)
        finally:
            emit.region_end()

    return run


def _report(error: BaseException) -> None:
    """Shows an error that nobody can catch. Never raises, whatever the program's hooks do."""
    try:
        args = (type(error), error, error.__traceback__, threading.current_thread())
        threading.excepthook(threading.ExceptHookArgs(args))
    except BaseException:
        try:
            sys.__excepthook__(type(error), error, error.__traceback__)
        except BaseException:
            pass  # not even standard error is there


def outcome(family: str, answer: Answer, kind: type[BaseException] = BaseException) -> Outcome:
    """What an answer says of its unit; one that cannot be unpickled is an error of that unit. What is raised then and
    is not of that kind is raised here: by a signal's handler, say."""
    if answer.outcome is not None:
        found: Outcome = answer.outcome
        return found
    success = not answer.flags & _channel.FAILED
    try:
        return success, Serializer.loads(answer.payload, answer.buffers)
    except kind as error:
        unit = answer.unit
        what = "result" if success else "exception"
        size = len(answer.payload or b"") + sum(len(buffer) for buffer in answer.buffers)
        return False, encoding_error(family, error, f"<{what} of {unit.job.name}, {size} bytes>")


def load_error(answer: Answer) -> BaseException:
    """The exception that a worker met at its start."""
    try:
        error = Serializer.loads(answer.payload, answer.buffers)
        return error if isinstance(error, BaseException) else RuntimeError(repr(error))
    except BaseException as failure:
        return failure


def encoding_error(family: str, error: BaseException, value: str) -> Exception:
    wrapped = importlib.import_module(family + ".pool").MaybeEncodingError(error, value)
    assert isinstance(wrapped, Exception)
    wrapped.__cause__ = error
    return wrapped


def deliver(result: Any, answers: list[tuple[int, Outcome]]) -> None:
    """Sets answers, each with its unit's index."""
    iterator = isinstance(result, Iterator)
    if len(answers) > 1 and not iterator:
        answers = _fill_in(result, answers)
    if len(answers) > 1 and iterator:
        result.set_all(answers)
    else:
        for index, outcome in answers:
            try:
                result._set(index, outcome)
            except Exception as error:
                _report(error)
    if iterator and result.room is not None:
        result.room.set()  # one may have been taken before it was counted


def _fill_in(result: Any, answers: list[tuple[int, Outcome]]) -> list[tuple[int, Outcome]]:
    """Puts what came into a map's result, as its `_set` would; returns what is left for that: the last one, after which
    the map may be done, and what is no success."""
    if not result._success:
        return answers
    left = []
    size, value = result._chunksize, result._value
    for answer in itertools.islice(answers, len(answers) - 1):
        index, (success, items) = answer
        if success:
            value[index * size : (index + 1) * size] = items
            result._number_left -= 1
        else:
            left.append(answer)
    return [*left, answers[-1]]


def abort(result: Any, cache: Cache, error: BaseException, callbacks: bool) -> None:
    """Fails a result that nobody can bring any more, whatever it still waits for. Once per result."""
    if not cache.give_up(result._job):
        return
    if hasattr(result, "_event"):
        if not callbacks and not isinstance(result, Direct):
            result._callback = result._error_callback = None
        left = getattr(result, "_number_left", 1)
        deliver(result, [(index, (False, error)) for index in range(max(1, left))])
        return
    with result._cond:
        result._items.append((False, error))
        result._index += 1
    end_iterator(result)
    del cache[result._job]


def end_iterator(result: Any) -> None:
    """What the iterator has is all that it will have."""
    with result._cond:
        result._length = result._index
        result._pool = None
        result._cond.notify_all()


class Iterator:
    """What the stock iterators are made into: what is there is taken without a lock, what comes together is set under
    one."""

    _items: deque[Outcome]
    _index: int
    _length: int | None
    _unsorted: dict[int, Outcome]
    _cond: Condition
    _cache: Cache
    _job: int
    _pool: object
    unordered: bool
    timeout_error: type[Exception]
    room: Room | None = None  # to be set when something was taken; with a `buffersize`

    def next(self, timeout: float | None = None) -> Any:
        try:
            success, value = self._items.popleft()
        except IndexError:
            return self._wait(timeout)
        if self.room is not None:
            self.room.set()
        if success:
            return value
        raise value

    __next__ = next

    def _wait(self, timeout: float | None) -> Any:
        """The stock way; but without a timeout there is none, if another thread is quicker."""
        while True:
            if self.room is not None:
                self.room.set()
            try:
                return super().next(timeout)  # type: ignore[misc]
            except self.timeout_error:
                if timeout is not None:
                    raise
            finally:
                if self.room is not None:
                    self.room.set()

    def taken(self) -> int:
        """How many results were taken; any thread."""
        return self._index - len(self._items)

    def set_all(self, answers: list[tuple[int, Outcome]]) -> None:
        """As `_set` for each."""
        with self._cond:
            count = len(answers)
            if self.unordered:
                self._items.extend([outcome for _, outcome in answers])
                self._index += count
            else:
                count = self._sort_in(answers)
            self._cond.notify(count)
            if self._index == self._length:
                del self._cache[self._job]
                self._pool = None

    def _sort_in(self, answers: list[tuple[int, Outcome]]) -> int:
        """How many more there are in a row."""
        before, items, unsorted = self._index, self._items, self._unsorted
        for index, outcome in answers:
            if index != self._index:
                unsorted[index] = outcome
                continue
            items.append(outcome)
            self._index += 1
            while self._index in unsorted:
                items.append(unsorted.pop(self._index))
                self._index += 1
        return self._index - before


_iterators: dict[type, type] = {}


def _iterator_of(stock: type) -> type:
    """The stock class, with the ways of ours."""
    made = _iterators.get(stock)
    if made is None:
        more = {
            "__module__": stock.__module__,
            "unordered": "Unordered" in stock.__name__,
            "timeout_error": importlib.import_module(stock.__module__).TimeoutError,
        }
        made = _iterators[stock] = type(stock.__name__, (Iterator, stock), more)
    return made


class Direct:
    """The result of a call that brings it itself, as a rule; a stock result has locks that it would not need."""

    def __init__(self, engine: Engine) -> None:
        self._job = next(engine.job_ids)
        self._engine = engine
        self._event: Event | None = None  # made when somebody else has to bring it
        self._outcome: Outcome | None = None

    def register(self) -> None:
        """From here on it waits for an answer."""
        dict.__setitem__(self._engine.cache, self._job, self)

    def _set(self, i: int, outcome: Outcome) -> None:
        self._outcome = self._outcome or outcome
        del self._engine.cache[self._job]
        if self._event is not None:
            self._event.set()

    def get(self) -> Any:
        """Waits for it. Raises what the call has raised."""
        if self._outcome is None:
            event = self._event = Event("waiting for a result", None, self._engine.thread)
            if self._outcome is None:
                event.wait()
        assert self._outcome is not None
        success, value = self._outcome
        if success:
            return value
        try:
            raise value
        finally:
            del self, value  # its traceback has this frame
