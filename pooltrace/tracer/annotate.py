"""What users say of their own work: tasks, regions and logs, as in Go's runtime/trace, in any process and thread.

With no trace on each costs a call, a load and a branch (the context managers' base is in core/annotation.c), and a
wrong argument is an error all the same.  A thread is in the trace while it is in one of these.

The current task is that of the context (contextvars: so asyncio's tasks inherit it and keep apart); where that has
none, in a worker, the job whose unit runs there.  Knows nothing of pools: a worker says in ``unit`` what it runs.
"""

from __future__ import annotations

import builtins
import functools
import os
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar
from threading import get_ident
from types import FunctionType
from typing import Any, TypeVar

from pooltrace.tracer import _core, emit

_F = TypeVar("_F", bound=Callable[..., Any])
_Where = tuple[str, str, int]  # function, file, line

is_enabled = enabled = emit.enabled
"""is_enabled(): a trace is on, so that what is costly to say is worth it."""


class _Unit:
    """What a worker's main thread runs."""

    __slots__ = ("task", "thread")

    def __init__(self) -> None:
        self.task = 0  # its job; main thread only. Stays when the unit has ended
        self.thread = 0  # the main thread, 0 where there are no units


class _Task:
    """A task of the user's, from its begin until nobody's context has it any more."""

    __slots__ = ("job", "number", "over", "parent", "process", "trace")

    def __init__(self, number: int, trace: int, job: int, parent: _Task | None) -> None:
        self.number = number
        self.trace = trace  # in which it began
        self.process = _process  # where
        self.job = job  # in whose unit
        self.parent = parent  # what was current in the same context
        self.over = False


unit = _Unit()
_process = object()  # this one: a forked child counts its traces as its parent did
_current: ContextVar[_Task | None] = ContextVar("pooltrace task", default=None)


def current() -> int:
    """The task to which belongs what is said here; 0: none."""
    found = _current.get()
    if found is None or (found.job != unit.task and unit.thread == get_ident()):
        return unit.task  # an older unit has left its task open: what it was is no business of this one
    return found.number


def _living(found: _Task | None) -> _Task | None:
    while found is not None and found.over:
        found = found.parent
    return found


class task(_core.Annotation):
    """``with task(name):`` is a task: what is said inside belongs to it, here and in coroutines that begin inside.

    Its parent is the current task; in a unit of a pool that is the job, and the jobs that are submitted inside have
    this one as their parent.  Names are cut to 1 KiB.  Raises TypeError for a name that is no str.
    """

    __slots__ = ()

    def _begin(self) -> None:
        stack = emit.stack(1)
        emit.enter()
        made = emit.user_task_begin(current(), self._name, stack)
        if made is None:
            emit.leave()
            return
        parent = _current.get()
        if parent is not None:
            parent.parent = _living(parent.parent)  # no chain of what is over, however long tasks beget tasks
        begun = _Task(*made, unit.task, parent)
        self._begun.append((get_ident(), begun))  # from here on what a signal's handler raises ends it
        _current.set(begun)

    def _end(self) -> None:
        me, now, begun = get_ident(), _current.get(), self._begun
        entry = begun[-1]
        if entry[1] is not now:
            if self._unheard and all(one[1] is not now for one in begun):
                self._unheard -= 1  # who leaves came in when there was no trace
                return
            # that of this context, if there is one; else the last one of this thread; else the last one
            entry = max(begun, key=lambda entry: (entry[1] is now, entry[0] == me, entry[1].number))
        thread: int = entry[0]
        ended: _Task = entry[1]
        if now is ended:
            _current.set(_living(ended.parent))  # first: whatever a signal's handler raises then, it is not current
        ended.over = True
        begun.remove(entry)
        if ended.process is not _process:
            return
        if thread != me:
            emit.enter()
        emit.user_task_end(ended.number, ended.trace, emit.stack(1))
        emit.leave()


class region(_core.Annotation):
    """``with region(name):`` is a stretch of this thread's or coroutine's time, in the current task.

    Also decorates: a function's region is a call of it; an ``async def`` function's goes from the call to the end, what
    it awaits included; a generator has one for each step, from where it is resumed to its next ``yield``, so that what
    its consumer does meanwhile is not in it.  Coroutines may interleave theirs.  A region belongs to the thread in
    which it began: it does not end in another one.  Names are cut to 1 KiB.  Raises TypeError for a name that is no
    str, and for what it cannot decorate.
    """

    __slots__ = ()

    def _begin(self) -> None:
        handle = _open(self._name, emit.stack(1))
        self._begun.append((get_ident(), id(sys._getframe(1)), handle))

    def _end(self) -> None:
        me, frame, begun = get_ident(), id(sys._getframe(1)), self._begun
        entry = begun[-1]
        if entry[0] != me or entry[1] != frame:
            # coroutines may share this object: that of this frame, if there is one; else the last one of this thread
            mine = [entry for entry in begun if entry[0] == me]
            exact = [entry for entry in mine if entry[1] == frame]
            if not exact and self._unheard:
                self._unheard -= 1  # who leaves came in when there was no trace
                return
            if not mine:
                return
            entry = (exact or mine)[-1]
        begun.remove(entry)
        _close(entry[2])

    def __call__(self, function: _F) -> _F:
        if isinstance(function, (staticmethod, classmethod)):
            return type(function)(self(function.__func__))
        if isinstance(function, type) or not callable(function):
            raise TypeError(f"region({self._name!r}) decorates functions, not {function!r}")
        return _decorated(str(self._name), function)  # type: ignore[return-value]


def log(category: str, message: object) -> None:
    """One line of the current task's log, at this time.

    ``message``: what is no str is made one, if a trace is on.  Both are cut to 1 KiB.  Raises TypeError for a category
    that is no str.
    """
    if not isinstance(category, str):
        raise TypeError(f"log() takes a category, which is a str, not {type(category).__name__}")
    if enabled():
        write_log(category, message if isinstance(message, str) else _text(message))


def write_log(category: str, message: str) -> None:
    """As ``log``, when a trace is on."""
    emit.enter()
    try:
        emit.log(current(), category, message)
    finally:
        emit.leave()


def _text(message: object) -> str:
    try:
        return str(message)
    except Exception:  # the program is right without a trace, so it is with one
        return f"<{type(message).__name__} object whose str() fails>"


def _open(name: str, stack: _core.Stack) -> int:
    emit.enter()
    try:
        return emit.region_begin(emit.REGION, current(), name, stack)
    except BaseException:
        emit.leave()
        raise


def _close(handle: int) -> None:
    try:
        emit.region_end(handle)
    finally:
        emit.leave()


# Decorated functions.  A wrapper has what it needs in its closure, and the globals of the function: whoever pickles it
# by value (dill, cloudpickle) takes a function's globals along, which must be the program's, not ours.


class _Call:
    """One call, or step, of a decorated function, while a trace is on."""

    __slots__ = ("handle", "name", "thread", "where")

    def __init__(self, name: str, where: _Where) -> None:
        self.name = name
        self.where = where
        self.thread = 0

    def __enter__(self) -> None:
        if enabled():
            self.handle = _open(self.name, emit.frame(*self.where))
            self.thread = get_ident()

    def __exit__(self, *details: object) -> None:
        if self.thread == get_ident():
            _close(self.handle)


def _where(function: object) -> _Where:
    """The function itself is the stack of its regions: Go's pages tell them apart by their innermost frame."""
    import inspect

    code = getattr(inspect.unwrap(function), "__code__", None)  # type: ignore[arg-type]
    name = f"{getattr(function, '__module__', None)}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    return name, getattr(code, "co_filename", ""), getattr(code, "co_firstlineno", 0)


def _decorated(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    import inspect  # only then: `import pooltrace` stays light

    where = _where(function)
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    for kind in (function, getattr(function, "__call__", None)):  # noqa: B004
        if inspect.iscoroutinefunction(kind) or flags & inspect.CO_ITERABLE_COROUTINE:
            return _of_coroutine(name, where, function)
        if inspect.isasyncgenfunction(kind):
            return _of_async_generator(name, where, function)
        if inspect.isgeneratorfunction(kind):
            return _of_generator(name, where, function)
    return _of_function(name, where, function)


def _dress(wrapper: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    home = getattr(function, "__globals__", None)
    if home is None:
        home = vars(sys.modules.get(getattr(function, "__module__", None) or "", builtins))
    made = FunctionType(wrapper.__code__, home, wrapper.__name__, None, wrapper.__closure__)
    return functools.wraps(function)(made)


def _of_function(name: str, where: _Where, function: Callable[..., Any]) -> Callable[..., Any]:
    call, is_on = _Call, enabled

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not is_on():
            return function(*args, **kwargs)
        with call(name, where):
            return function(*args, **kwargs)

    return _dress(wrapper, function)


def _of_coroutine(name: str, where: _Where, function: Callable[..., Any]) -> Callable[..., Any]:
    call = _Call

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        with call(name, where):
            return await function(*args, **kwargs)

    return _dress(wrapper, function)


def _of_generator(name: str, where: _Where, function: Callable[..., Any]) -> Callable[..., Any]:
    call = _Call

    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        # as `yield from` (PEP 380), with a region around each step
        generator = function(*args, **kwargs)
        step: Callable[[Any], Any] = generator.send
        sent: Any = None
        while True:
            try:
                with call(name, where):
                    item = step(sent)
            except StopIteration as end:
                return end.value
            try:
                sent = yield item
                step = generator.send
            except GeneratorExit:
                with call(name, where):
                    generator.close()
                raise
            except BaseException as error:
                sent, step = error, generator.throw
            del item

    return _dress(wrapper, function)


def _of_async_generator(name: str, where: _Where, function: Callable[..., Any]) -> Callable[..., Any]:
    call = _Call

    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        generator = function(*args, **kwargs)
        step: Callable[[Any], Any] = generator.asend
        sent: Any = None
        while True:
            try:
                with call(name, where):
                    item = await step(sent)
            except StopAsyncIteration:
                return
            try:
                sent = yield item
                step = generator.asend
            except GeneratorExit:
                with call(name, where):
                    await generator.aclose()
                raise
            except BaseException as error:
                sent, step = error, generator.athrow
            del item

    return _dress(wrapper, function)


_core.sample_skip(_close.__code__.co_filename)  # a sample that is taken here is of who has called us


def _after_fork_in_child() -> None:
    global _current, _process
    _process = object()
    _current = ContextVar("pooltrace task", default=None)  # what its parent was in is not what it is in
    unit.task = unit.thread = 0


os.register_at_fork(after_in_child=_after_fork_in_child)
