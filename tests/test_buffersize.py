"""`buffersize=`: an iterator is consumed only as far as its results are taken, and nothing waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import jobs
import pytest
from faults import Fifos, identity, square
from test_pool import FACES

from pooltrace.pool.jobs import is_small_constant
from pooltrace.pool.pool import StdPool
from pooltrace.pool.results import deliver
from pooltrace.pool.waits import Room

CALLS = ("imap", "imap_unordered")
SMALL = (None, True, 5, (1 << 63) - 1, 2.5, "a", "x" * 1024, b"x" * 1024)
OTHER = (1 << 63, -(1 << 2000), "x" * 1025, b"x" * 1025, 1j, (1,), [], {}, type("Number", (int,), {})(5))


def test_only_what_is_small_and_cannot_change_is_left_for_later() -> None:
    """Anything else is packed by the feeder: it counts as what it is, and its owner may change it afterwards."""
    for items, expected in ((SMALL, True), (OTHER, False)):
        assert [is_small_constant(item) for item in items] == [expected] * len(items)


class Source:
    """An iterator that counts what was taken from it; endless unless it is told."""

    def __init__(self, end: int = 10**9) -> None:
        self.given = 0
        self.end = end
        self.news = threading.Condition()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self.news:
            if self.given == self.end:
                raise StopIteration
            self.given += 1
            self.news.notify_all()
            return self.given - 1

    def wait_for(self, count: int) -> None:
        with self.news:
            self.news.wait_for(lambda: self.given >= count)


def settled(pool: Any, source: Source, count: int) -> bool:
    """The source has given so many, their results are there, and no more is taken from it."""
    source.wait_for(count)
    assert pool.apply(square, (3,)) == 9
    return source.given == count


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("face", FACES)
def test_no_more_is_consumed_than_results_are_taken(face: Any, call: str) -> None:
    source = Source()
    with face(2) as pool:
        results = getattr(pool, call)(square, source, buffersize=5)
        for taken in range(20):
            assert settled(pool, source, taken + 5)
            assert next(results) in {number * number for number in range(taken + 5)}
        assert settled(pool, source, 25)


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 50])
@pytest.mark.parametrize("call", CALLS)
def test_all_results_come(call: str, size: int, chunk: int) -> None:
    with StdPool(2) as pool:
        results = getattr(pool, call)(square, Source(100), chunk, buffersize=size)
        assert sorted(results) == [number * number for number in range(100)]
        assert not pool._cache


def test_of_chunks_so_many_are_consumed() -> None:
    source = Source()
    with StdPool(1) as pool:
        results = pool.imap(square, source, 4, buffersize=2)
        assert settled(pool, source, 8)
        assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]  # of the second chunk
        assert settled(pool, source, 16)


def test_a_long_first_unit_does_not_let_the_others_pile_up(fifos: Fifos) -> None:
    """Ordered results wait for it."""
    source = Source()
    with StdPool(2) as pool:
        results = pool.imap(wait_for_first, (fifos.names() if n == 0 else n for n in source), buffersize=10)
        fifos.wait()
        assert settled(pool, source, 10)
        fifos.open()
        assert [next(results) for _ in range(30)] == [None, *range(1, 30)]


def wait_for_first(item: Any) -> Any:
    return jobs.wait_between(*item) if isinstance(item, tuple) else identity(item)


@pytest.mark.parametrize("call", CALLS)
def test_close_and_join_do_not_wait_for_who_takes_nothing(call: str) -> None:
    with StdPool(2) as pool:
        source = Source(100)
        results = getattr(pool, call)(square, source, buffersize=3)
        assert settled(pool, source, 3)
        pool.close()
        pool.join()
        assert sorted(results) == [number * number for number in range(100)]


@pytest.mark.parametrize("call", CALLS)
def test_terminate_ends_a_feeder_that_waits(call: str) -> None:
    with StdPool(2) as pool:
        source = Source()
        getattr(pool, call)(square, source, buffersize=3)
        assert settled(pool, source, 3)
        feeders = [thread for thread in threading.enumerate() if thread.name == "pooltrace feeder"]
    for feeder in feeders:
        feeder.join()
    assert source.given == 3


def test_errors_count_as_results() -> None:
    source = Source()
    with StdPool(1) as pool:
        results = pool.imap(fail_odd, source, buffersize=2)
        for taken in range(10):
            assert settled(pool, source, taken + 2)
            if taken % 2:
                with pytest.raises(LookupError):
                    next(results)
            else:
                assert next(results) == taken


def fail_odd(number: int) -> int:
    if number % 2:
        raise LookupError(number)
    return number


def test_an_iterator_that_raises_when_it_is_asked_again() -> None:
    def two() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("no third")

    with StdPool(1) as pool:
        results = pool.imap(square, two(), buffersize=1)
        assert [next(results), next(results)] == [1, 4]
        with pytest.raises(LookupError, match="no third"):
            next(results)
        with pytest.raises(StopIteration):
            next(results)


@pytest.mark.parametrize(
    ("size", "error", "text"),
    [
        ("5", TypeError, "buffersize must be an integer or None"),
        (2.0, TypeError, "buffersize must be an integer or None"),
        (0, ValueError, "buffersize must be None or > 0"),
        (-1, ValueError, "buffersize must be None or > 0"),
    ],
)
def test_what_makes_no_sense_is_told(size: Any, error: type[Exception], text: str) -> None:
    with StdPool(1) as pool:
        for call in CALLS:
            source = Source()
            run: Callable[..., Any] = getattr(pool, call)
            with pytest.raises(error, match=text):
                run(square, source, buffersize=size)
            assert source.given == 0
        assert list(pool.imap(square, range(3))) == [0, 1, 4]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_result_that_is_taken_before_it_is_counted(call: str, count: int) -> None:
    """Whoever brings results makes room once more when they are counted: the feeder may have looked in between."""
    with StdPool(1) as pool:
        results = getattr(pool, call)(square, Source(0), buffersize=1)
        results._cond, results.room = threading.Condition(), Room()
        results._length = None
        deliver(results, [(index, (True, index)) for index in range(count)])
        assert results.room.is_set()
        assert results.taken() == 0
        results._length = count


def test_room_that_is_made_again_is_room() -> None:
    """As by a signal's handler that closes the pool while its own thread makes room."""
    room = Room()
    thread = threading.Thread(target=room.wait)
    thread.start()
    while not room._waiters:
        pass
    room.set()
    room.set()
    thread.join()
    assert room.is_set()
    room.wait()
    room.clear()
    assert not room.is_set()
