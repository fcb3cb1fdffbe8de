"""The faces: Pool over multiprocess.pool.Pool and StdPool over multiprocessing.pool.Pool, with one engine under both.

A face inherits the API layer of its stock class (map, imap, apply_async ...) unchanged; what it replaces is what lies
under it: queues, handler threads, the worker's main. `Pool` is made when it is first asked for, since importing
multiprocess imports dill.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
import multiprocessing.pool
import multiprocessing.util
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pooltrace.pool.engine import CLOSE, RUN, TERMINATE, Engine
from pooltrace.pool.intake import TaskQueue
from pooltrace.pool.jobs import Tasks
from pooltrace.pool.slots import Plan, Process
from pooltrace.tracer import emit
from pooltrace.tracer.sampler import DETAILS

if TYPE_CHECKING:
    from pooltrace.pool.multi import Pool as Pool

# A subclass that overrides one of these works on the stock pool's insides, which ours does not have.
STOCK_INSIDES = {
    "_get_sentinels",
    "_get_worker_sentinels",
    "_guarded_task_generation",
    "_handle_results",
    "_handle_tasks",
    "_handle_workers",
    "_help_stuff_finish",
    "_join_exited_workers",
    "_maintain_pool",
    "_map_async",
    "_repopulate_pool",
    "_repopulate_pool_static",
    "_setup_queues",
    "_terminate_pool",
    "_wait_for_updates",
}


def __getattr__(name: str) -> Any:
    if name == "Pool":
        return importlib.import_module("pooltrace.pool.multi").Pool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Face:
    """What both faces share; mixed in before the stock class of a family."""

    _family: str
    _stock: type[Any]
    _wrap_exception: bool

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Face not in cls.__bases__ and STOCK_INSIDES & vars(cls).keys():
            cls.__bases__ = tuple(base._stock if issubclass(base, Face) else base for base in cls.__bases__)

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        detail: str = "unit",
    ) -> None:
        """As the stock pool's, and:

        `retries`: how often a unit (a call, an item, a chunk) that was lost with its worker runs again before it fails;
        `task_timeout`: seconds that a unit may take; then its worker is killed, and it fails with TaskTimeoutError: it
        is not tried again; `detail`: what a trace tells the cost of: "unit", "item" (CPU time and memory of each
        item of a chunk, too), or "none". Raises ValueError or TypeError for what makes no sense.
        """
        if (
            Face not in type(self).__mro__
        ):  # the stock ThreadPool calls its module's `Pool`, which patch.install made ours
            stock_init: Callable[..., None] = _stock_class(self).__init__
            return stock_init(self, processes, initializer, initargs, maxtasksperchild, context)
        self._pool: list[Process] = []
        self._state = "INIT"
        self._pid = os.getpid()
        family = importlib.import_module(self._family)
        self._ctx = context or family.get_context()
        self._maxtasksperchild = maxtasksperchild
        self._initializer = initializer
        self._initargs = initargs
        if processes is None:
            processes = getattr(os, "process_cpu_count", os.cpu_count)() or 1
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if not isinstance(retries, int) or retries < 0:
            raise ValueError(f"retries is how often a lost unit runs again, 0 or more, not {retries!r}")
        if task_timeout is not None and not (isinstance(task_timeout, (int, float)) and 0 < task_timeout < math.inf):
            raise ValueError(f"task_timeout is a number of seconds above 0, or None, not {task_timeout!r}")
        if detail not in DETAILS:
            raise ValueError(f"detail is one of {', '.join(DETAILS)}, not {detail!r}")
        self._processes = processes
        plan = Plan(
            family=self._family,
            make_process=self._process_maker(),
            initializer=initializer,
            initargs=initargs,
            max_tasks=maxtasksperchild,
            wrap=self._wrap_exception,
            retries=retries,
            task_timeout=task_timeout,
            detail=detail,
            start_method=str(getattr(self._ctx, "_name", "fork")),
        )
        util = importlib.import_module(self._family + ".util")
        with _traced():
            self._engine = Engine(plan, processes)
        try:
            self._pool = self._engine.processes
            self._cache = self._engine.cache
            self._taskqueue = TaskQueue(self._engine)
            self._terminate = util.Finalize(self, self._engine.terminate, exitpriority=15)
            self._state = RUN
        except BaseException:  # Ctrl-C just now
            self._engine.terminate()
            raise

    def _process_maker(self) -> Callable[..., Process]:
        """The class's `Process`; where it can be, without a reference to this object, which may be collected."""
        ctx = self._ctx
        if isinstance(inspect.getattr_static(type(self), "Process"), (staticmethod, classmethod)):
            make = type(self).Process  # type: ignore[attr-defined]
            return lambda **kwargs: make(ctx, **kwargs)
        pool = weakref.proxy(self)
        return lambda **kwargs: pool.Process(ctx, **kwargs)

    def __del__(
        self, _warn: Callable[..., None] = warnings.warn, _run: str = RUN, _getpid: Callable[[], int] = os.getpid
    ) -> None:
        if getattr(self, "_state", None) == _run and _getpid() == self._pid:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def _repopulate_pool(self) -> None:
        self._engine.wake()  # it keeps the slots filled by itself

    def _guarded_task_generation(self, result_job: int, func: Callable[..., Any], iterable: Iterable[Any]) -> Tasks:
        return Tasks(result_job, func, iterable, _call.buffersize)

    # -- the ends

    def close(self) -> None:
        if self._state == RUN:
            self._state = CLOSE
            self._engine.close()

    def terminate(self) -> None:
        self._state = TERMINATE
        with _traced():
            self._terminate()
            self._engine.terminate()  # again: the first one may have been by a callback, which cannot wait for it

    def join(self) -> None:
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        with _traced():
            self._engine.join()

    # -- the calls that the trace shows as a whole, rather than as a submission and a wait

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}) -> Any:
        """One unit; if a worker is idle, this thread sends it and awaits the answer, without the dispatcher."""
        with _traced():
            self._check_running()  # type: ignore[attr-defined]
            slot = self._engine.idle_slot() if type(self).apply_async is Face.apply_async else None
            if slot is None:
                return super().apply(func, args, kwds)  # type: ignore[misc]
            return self._taskqueue.apply(slot, func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> Any:
        with _traced():
            return super().apply_async(func, args, kwds, callback, error_callback)  # type: ignore[misc]

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        with _traced():
            return super().map(func, iterable, chunksize)  # type: ignore[misc,no-any-return]

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        with _traced():
            return super().starmap(func, iterable, chunksize)  # type: ignore[misc,no-any-return]

    def _map_async(self, *args: Any, **kwargs: Any) -> Any:
        with _traced():
            return super()._map_async(*args, **kwargs)  # type: ignore[misc]

    def imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> Any:
        """As the stock pool's. `buffersize`: of the iterable no more is consumed than so many units (items, or chunks)
        beyond those whose results were taken, as in CPython's `Executor.map`; None: there is no such limit. After
        `close()` the rest is consumed without waiting. Raises TypeError or ValueError for anything else."""
        with _traced(), _buffering(buffersize):
            return super().imap(func, iterable, chunksize)  # type: ignore[misc]

    def imap_unordered(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> Any:
        """As the stock pool's; `buffersize` as in `imap`."""
        with _traced(), _buffering(buffersize):
            return super().imap_unordered(func, iterable, chunksize)  # type: ignore[misc]


class _Call(threading.local):
    """What the stock code has no argument for, on its way through it."""

    buffersize: int | None = None


_call = _Call()


@contextlib.contextmanager
def _buffering(size: int | None) -> Iterator[None]:
    if size is not None and not isinstance(size, int):
        raise TypeError("buffersize must be an integer or None")
    if size is not None and size < 1:
        raise ValueError("buffersize must be None or > 0")
    _call.buffersize = size
    try:
        yield
    finally:
        _call.buffersize = None


class _traced:
    """The calling thread is in the trace while it is in here."""

    __slots__ = ()

    def __enter__(self) -> None:
        emit.enter()

    def __exit__(self, *exc: object) -> None:
        emit.leave()


def _stock_class(pool: object) -> type[Any]:
    """The stock Pool among the bases of one of its other subclasses."""
    for cls in type(pool).__mro__:
        if cls.__name__ == "Pool" and cls.__module__ in ("multiprocessing.pool", "multiprocess.pool"):
            return cls
    raise TypeError(f"{type(pool).__name__} is not a pool")


class StdPool(Face, multiprocessing.pool.Pool):  # type: ignore[misc]
    """multiprocessing.pool.Pool on pooltrace's engine: the same calls, arguments and results."""

    _family = "multiprocessing"
    _stock = multiprocessing.pool.Pool
