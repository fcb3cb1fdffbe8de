"""The faces: that they give what the stock classes give, for both families and all start methods."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.pool
import os
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import multiprocess
import multiprocess.pool
import numpy
import pytest
from faults import (
    METHODS,
    STATE,
    TwoArguments,
    add,
    getpid,
    identity,
    remember,
    remembered,
    size,
    square,
    touch,
    unless_three,
    wait_for_file,
)

from pooltrace.errors import MisuseError, PoolTerminatedError
from pooltrace.pool import jobs
from pooltrace.pool.pool import Pool, StdPool

FACES = (StdPool, Pool)


def context(face: type[Any], method: str) -> Any:
    return (multiprocessing if face is StdPool else multiprocess).get_context(method)


@pytest.fixture(
    params=[(face, method) for face in FACES for method in METHODS], ids=lambda p: f"{p[0].__name__}-{p[1]}"
)
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    face, method = request.param
    with face(2, context=context(face, method)) as made:
        yield made
    made.join()


@pytest.fixture(params=FACES, ids=lambda face: face.__name__)
def face(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_every_call_on_every_start_method(pool: Any) -> None:
    numbers = list(range(50))
    squares = [x * x for x in numbers]
    assert pool.apply(add, (1,), {"y": 2}) == 3
    assert pool.apply_async(add, (1, 2)).get() == 3
    assert pool.map(square, numbers) == squares
    assert pool.map(square, iter(numbers), chunksize=7) == squares
    assert pool.map(square, dict.fromkeys(numbers), chunksize=7) == squares
    assert pool.map_async(square, tuple(numbers), chunksize=1).get() == squares
    assert pool.starmap(add, zip(numbers, numbers)) == [2 * x for x in numbers]
    assert pool.starmap_async(add, [(x, 1) for x in numbers], chunksize=3).get() == [x + 1 for x in numbers]
    assert list(pool.imap(square, iter(numbers))) == squares
    assert list(pool.imap(square, numbers, chunksize=8)) == squares
    assert sorted(pool.imap_unordered(square, numbers)) == squares
    assert sorted(pool.imap_unordered(square, numbers, chunksize=8)) == squares
    assert pool.map(square, []) == []
    assert list(pool.imap(square, [])) == []
    with pytest.raises(LookupError, match="three") as caught:
        pool.starmap(unless_three, [("raised", x) for x in range(6)], 1)
    assert "raise LookupError" in str(caught.value.__cause__)


def test_types_are_the_stock_ones(face: Any) -> None:
    stock: Any = multiprocessing.pool if face is StdPool else multiprocess.pool
    with face(1) as pool:
        assert isinstance(pool, stock.Pool)
        assert isinstance(pool.apply_async(square, (1,)), stock.ApplyResult)
        assert isinstance(pool.map_async(square, [1]), stock.MapResult)
        assert isinstance(pool.imap(square, [1]), stock.IMapIterator)
        assert isinstance(pool.imap_unordered(square, [1]), stock.IMapUnorderedIterator)
        with pytest.raises(stock.TimeoutError):
            pool.apply_async(wait_for_file, ("/nowhere",)).get(timeout=0.01)
        with pytest.raises(NotImplementedError):
            pool.__reduce__()


def test_arguments_are_checked_as_by_the_stock(face: Any) -> None:
    for processes in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            face(processes)
    for most in (0, -1, 0.5, "12"):
        with pytest.raises(ValueError, match="positive int"):
            face(1, maxtasksperchild=most)
    with pytest.raises(TypeError, match="callable"):
        face(1, initializer=1)
    with face(1) as pool, pytest.raises(ValueError, match="Chunksize"):
        pool.imap(square, [1], chunksize=0)


def test_initializer_runs_once_in_each_worker(pool: Any) -> None:
    method = pool._ctx.get_start_method()
    with type(pool)(2, remember, (4, 5), context=context(type(pool), method)) as other:
        assert other.map(remembered, range(6), 1) == [[4, 5]] * 6
    assert STATE == []


def test_locks_pass_through_initargs(pool: Any) -> None:
    ctx = pool._ctx
    counter = ctx.Value("i", 0)
    with type(pool)(2, keep_counter, (counter,), context=ctx) as other:
        other.map(count, range(100), 5)
    assert counter.value == 100


KEPT: list[Any] = []


def keep_counter(counter: Any) -> None:
    KEPT.append(counter)


def count(_: object) -> None:
    with KEPT[0].get_lock():
        KEPT[0].value += 1


@pytest.mark.parametrize("method", METHODS)
def test_max_tasks_per_child(face: Any, method: str) -> None:
    """A worker runs that many tasks (chunks), not one more."""
    with face(2, maxtasksperchild=2, context=context(face, method)) as pool:
        pids = pool.map(getpid, range(12), 1)
        assert max(map(pids.count, pids)) == 2
        chunked = pool.map(getpid, range(12), 3)
        assert len(set(chunked)) >= 2


def test_close_waits_for_all_work(face: Any) -> None:
    pool = face(2, maxtasksperchild=1)
    results = [pool.apply_async(square, (x,)) for x in range(6)]
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.apply_async(square, (1,))
    pool.join()
    assert [result.get(0) for result in results] == [x * x for x in range(6)]


def test_join_of_a_running_pool_is_an_error(face: Any) -> None:
    with face(1) as pool, pytest.raises(ValueError, match="still running"):
        pool.join()
    with pytest.raises(ValueError, match="not running"), pool:
        pass


def test_callbacks(face: Any) -> None:
    got: list[Any] = []
    with face(1) as pool:
        pool.apply_async(square, (3,), callback=got.append).wait()
        pool.map_async(square, [1, 2], callback=got.append).wait()
        pool.apply_async(unless_three, ("raised", 3), error_callback=got.append).wait()
    assert got[:2] == [9, [1, 4]]
    assert isinstance(got[2], LookupError)


def test_a_callback_may_submit_and_must_not_wait(face: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_value))
    with face(1) as pool:
        inner: list[Any] = []
        pool.apply_async(square, (2,), callback=lambda x: inner.append(pool.apply_async(square, (x,)))).wait()
        assert inner[0].get() == 16
        pool.apply_async(square, (2,), callback=lambda x: pool.apply(square, (x,))).wait()
        pool.apply_async(square, (2,), callback=lambda x: 1 // 0).wait()
    assert [type(error) for error in seen] == [MisuseError, ZeroDivisionError]


def test_a_hook_that_raises_costs_no_result(face: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def hook(args: Any) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(threading, "excepthook", hook)
    with face(1) as pool:
        result = pool.apply_async(square, (2,), callback=lambda x: 1 // 0)
        assert result.get() == 4
        assert pool.apply(square, (3,)) == 9
    assert "ZeroDivisionError" in capsys.readouterr().err


class Odd:
    """A callable whose attributes cannot be had."""

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)

    def __call__(self, x: int) -> int:
        return x + 1

    def __reduce__(self) -> tuple[object, ...]:
        return Odd, ()


def test_a_callable_without_attributes(face: Any) -> None:
    with face(1) as pool:
        assert pool.apply(Odd(), (1,)) == 2
        pool.close()
        pool.join()


def test_functions_of_single_calls_are_not_kept(face: Any) -> None:
    """Nor more of the others than 8 MiB together: 40 large ones would be held for ever otherwise."""
    with face(1) as pool:
        for _ in range(40):
            assert pool.apply(Large().size) == 1 << 20
        assert pool.apply(count_large) <= 1
        for _ in range(20):
            assert pool.map(Large().size_of, [1]) == [1 << 20]
        assert pool.apply(count_large) <= 8
        first, second = Large(), Large()
        both = [pool.imap(one.size_of, range(30)) for one in (first, second)]
        assert [list(results) for results in both] == [[1 << 20] * 30] * 2


class Large:
    def __init__(self) -> None:
        self.data = bytes(1 << 20)

    def size(self) -> int:
        return len(self.data)

    def size_of(self, _: int) -> int:
        return len(self.data)


def count_large() -> int:
    """In the worker: how many functions of that size are kept."""
    gc.collect()
    return sum(
        type(one).__name__ == "_Worker" and sum(len(f.pickled) > 1 << 20 for f in one._functions.values())
        for one in gc.get_objects()
    )


def test_imap_does_not_run_ahead(face: Any) -> None:
    """An endless iterator is consumed as far as workers need it, and stays usable."""
    consumed: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            consumed.append(len(consumed))
            yield consumed[-1]

    with face(2) as pool:
        results = pool.imap(square, endless())
        assert [next(results) for _ in range(1000)] == [x * x for x in range(1000)]
        pool.terminate()
        ahead = len(consumed)
        assert ahead < 1_000_000
    pool.join()


def test_an_iterator_may_use_one_object_again(face: Any) -> None:
    """Each item is pickled before the next one is asked for, as by the stock; buffers too."""

    def reused() -> Iterator[tuple[dict[str, int], Any]]:
        item: dict[str, int] = {}
        array = numpy.zeros(10_000)
        for number in range(100):
            item["number"] = number
            array[:] = number
            yield item, array

    with face(2) as pool:
        for results in (pool.imap(first_and_last, reused()), pool.imap_unordered(first_and_last, reused(), 1)):
            assert sorted(results) == [(number, number, number) for number in range(100)]


class Tens(tuple[int, ...]):
    """Its items are not those that it has."""

    def __iter__(self) -> Iterator[int]:
        return (10 * item for item in super().__iter__())

    def __getitem__(self, key: Any) -> Any:
        raise KeyError(key)


def same_and_equal(a: object, b: object) -> tuple[bool, bool]:
    return a is b, a == b


def twice(text: str) -> list[str]:
    again = text * 2
    return [again, again]


def test_what_is_mapped_is_what_is_iterated_over(face: Any) -> None:
    with face(1) as pool:
        assert pool.map(square, Tens((1, 2, 3))) == [100, 400, 900]
        assert pool.starmap(pow, [(2, 3), [3, 2]], chunksize=1 << 40) == [8, 9]


def test_what_is_one_object_in_an_argument_or_a_result_is_one_afterwards(face: Any) -> None:
    with face(1) as pool:
        row = (float("nan"), "text")
        assert pool.apply(same_and_equal, (row, row)) == (True, True)
        assert pool.apply(same_and_equal, ("some text",) * 2) == (True, True)
        a, b = pool.apply(twice, ("some text",))
        assert a is b


def ends(array: Any) -> tuple[int, int, int]:
    return array.nbytes, int(array[0]), int(array[-1])


def sevens(count: int) -> Any:
    return numpy.full(count, 7, dtype="u1")


def test_arguments_and_results_of_any_size(face: Any) -> None:
    """$POOLTRACE_LARGE GiB; beyond 2 GiB there must be ten of memory."""
    count = int(float(os.environ.get("POOLTRACE_LARGE", "0.02")) * (1 << 30))
    with face(1) as pool:
        array = sevens(count)
        array[0] = 3
        assert pool.apply(ends, (array,)) == (count, 3, 7)
        assert pool.map(ends, [array]) == [(count, 3, 7)]
        assert pool.apply(len, (array.tobytes(),)) == count
        del array
        assert ends(pool.apply(sevens, (count,))) == (count, 7, 7)
        (result,) = pool.imap(sevens, [count])
        assert ends(result) == (count, 7, 7)


def first_and_last(item: tuple[dict[str, int], Any]) -> tuple[int, int, int]:
    return item[0]["number"], int(item[1][0]), int(item[1][-1])


def test_large_items_are_not_fed_far_ahead(face: Any, tmp_path: Any) -> None:
    """What waits in the parent is bounded by its size, too."""
    consumed: list[int] = []
    paths = [str(tmp_path / str(number)) for number in range(40)]

    def large() -> Iterator[tuple[str, bytes]]:
        for path in paths:
            consumed.append(len(consumed))
            yield path, bytes(jobs.AHEAD_BYTES // 4)

    with face(1) as pool:
        results = pool.imap(wait_and_measure, large())
        for answered, path in enumerate(paths, 1):
            touch(path)
            assert next(results) == jobs.AHEAD_BYTES // 4
            # that were answered, that wait, that are at the worker, that is in the feeder's hands
            assert len(consumed) <= answered + 4 + 2 + 1
        assert list(results) == []
        assert pool._taskqueue.empty()


def wait_and_measure(item: tuple[str, bytes]) -> int:
    wait_for_file(item[0])
    return len(item[1])


def test_a_list_may_change_while_it_is_mapped(face: Any, tmp_path: Any) -> None:
    path = str(tmp_path / "go")
    paths = [path] * 10
    with face(1) as pool:
        result = pool.map_async(wait_for_file, paths, 1)
        paths.clear()
        touch(path)
        assert result.get() == ["done"] * 10


class Endless:
    """Says how long it is, and goes on for ever."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize("size", [1, 3, 100])
def test_map_takes_no_more_than_was_promised(face: Any, size: int) -> None:
    with face(2) as pool:
        count = -(-10 // size) * size  # whole chunks, as by the stock
        assert pool.map(square, Endless(), size)[:10] == [x * x for x in range(10)]
        assert len(pool.map(square, Endless(), size)) <= count


def test_imap_of_an_iterator_that_raises(face: Any) -> None:
    def three() -> Iterator[int]:
        yield from range(3)
        raise TwoArguments(1, 2)

    with face(2) as pool:
        results = pool.imap(square, three())
        assert [next(results) for _ in range(3)] == [0, 1, 4]
        with pytest.raises(TwoArguments) as caught:
            next(results)
        assert caught.value.__cause__ is None
        with pytest.raises(StopIteration):
            next(results)
        with pytest.raises(TwoArguments):
            list(pool.imap_unordered(square, three(), 2))
        with pytest.raises(TypeError):
            next(pool.imap(square, 5))


class Liar:
    """Promises more items than it gives."""

    def __init__(self, error: bool) -> None:
        self.error = error

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[int]:
        yield from range(4)
        if self.error:
            raise LookupError("fifth")


def test_map_of_an_iterable_that_ends_early(face: Any) -> None:
    """The stock pool waits for ever for the rest; ours says so."""
    with face(2) as pool:
        with pytest.raises(LookupError, match="fifth"):
            pool.map(square, Liar(True), 1)
        with pytest.raises(ValueError, match="6 of 10"):
            pool.map(square, Liar(False), 1)
        assert pool.map(square, range(3)) == [0, 1, 4]


def test_nested_imap_runs_as_a_pipeline(face: Any) -> None:
    with face(2) as pool:
        assert list(pool.imap(square, pool.imap(square, range(200)))) == [x**4 for x in range(200)]


def test_a_unit_behind_a_long_one_is_not_held_up(face: Any, tmp_path: Any) -> None:
    """One unit waits for a file that the last unit makes: a pool that queues units behind it would never end."""
    path = str(tmp_path / "done")
    with face(2) as pool:
        first = pool.apply_async(wait_for_file, (path,))
        others = pool.map_async(square, range(20), 1)
        last = pool.apply_async(touch, (path,))
        assert others.get() == [x * x for x in range(20)]
        assert last.get() == path
        assert first.get() == "done"


def test_terminate_wakes_everybody(face: Any) -> None:
    """Threads in map, get and next: the stock leaves them waiting for ever."""
    errors: list[BaseException] = []
    pool = face(2)

    def expect(call: Any) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    results = pool.imap(wait_for_file, ["/nowhere"] * 5)
    calls = [
        lambda: pool.map(wait_for_file, ["/nowhere"] * 10, 1),
        pool.apply_async(wait_for_file, ("/nowhere",)).get,
        lambda: next(results),
    ]
    threads = [threading.Thread(target=expect, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    while len(pool._cache) < 3:
        os.sched_yield()
    pool.terminate()
    for thread in threads:
        thread.join()
    pool.join()
    assert [type(error) for error in errors] == [PoolTerminatedError] * 3
    with pytest.raises(StopIteration):
        next(results)


def test_arguments_and_results_are_not_kept(face: Any) -> None:
    class Thing:
        pass

    with face(1) as pool:
        things = [Referable(x) for x in range(5)]
        refs = [weakref.ref(thing) for thing in things]
        pool.map(size, things, 1)
        pool.map(identity, things)
        del things
        pool.apply(square, (1,))
        gc.collect()
        assert [ref() for ref in refs] == [None] * 5


class Referable:
    def __init__(self, x: int) -> None:
        self.x = x

    def __len__(self) -> int:
        return self.x


def test_an_unclosed_pool_warns_and_goes(face: Any) -> None:
    pool = face(1)
    process = pool._pool[0]
    thread = pool._engine.thread
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        del pool
    gc.collect()
    thread.join()
    assert not process.is_alive()


def test_repr_and_attributes(face: Any) -> None:
    with face(2) as pool:
        assert "state=RUN pool_size=2" in repr(pool)
        pool._repopulate_pool()
        assert len(pool._pool) == 2
        assert all(process.is_alive() for process in pool._pool)
        assert {process.pid for process in pool._pool} >= set(pool.map(getpid, range(4), 1))
        assert pool._pool[0].name.startswith(("ForkPoolWorker", "PoolWorker"))
    assert "state=TERMINATE" in repr(pool)


def test_a_subclass_with_its_own_process(face: Any) -> None:
    """The usual recipe for workers that may have children."""
    ctx = context(face, "fork")

    class NoDaemon(ctx.Process):  # type: ignore[name-defined,misc]
        @property
        def daemon(self) -> bool:
            return False

        @daemon.setter
        def daemon(self, value: bool) -> None:
            pass

    class NestablePool(face):  # type: ignore[misc]
        def Process(self, *args: Any, **kwds: Any) -> Any:
            process = super().Process(*args, **kwds)
            process.__class__ = NoDaemon
            return process

    with NestablePool(1, context=ctx) as pool:
        assert pool.apply(pool_in_worker, (face.__name__,)) == [0, 1, 4]


def pool_in_worker(name: str) -> list[int]:
    face = {"StdPool": StdPool, "Pool": Pool}[name]
    with warnings.catch_warnings(), face(1) as pool:
        result: list[int] = pool.map(square, range(3))
    pool.join()
    return result


def test_a_forked_process_cannot_use_its_parents_pool(face: Any) -> None:
    with face(1) as pool:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                pool.apply_async(square, (1,))
            except MisuseError:
                pool.terminate()
                pool.join()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert pool.apply(square, (3,)) == 9


def test_workers_that_had_started_are_ended_when_a_later_one_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a context of the user's own, whose processes need not know of times to wait."""
    started: list[str] = []

    class Process:
        name, pid, exitcode, sentinel, daemon = "Process-1", None, None, -1, False

        def start(self) -> None:
            if len(started) == 2:
                raise OSError("no more processes")
            started.append("started")

        def terminate(self) -> None:
            started.append("terminated")

        def join(self) -> None:
            started.append("joined")

        def is_alive(self) -> bool:
            return False

    own = multiprocessing.get_context("fork")
    monkeypatch.setattr(type(own), "Process", staticmethod(lambda *args, **kwargs: Process()))
    with pytest.raises(OSError, match="no more processes"):
        StdPool(4, context=own)
    assert started == ["started"] * 2 + ["terminated"] * 2 + ["joined"] * 2
