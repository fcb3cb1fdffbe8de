"""The engine against the stock pools: the figures of bench.py that compare whole pools.

Each figure is the median over rounds of (ours / the peer's), the two taking turns in one process, each on two workers
that live throughout; a trace is on all the time, which only ours records. What is measured is in the docstrings below.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

Work = Callable[[Any], object]


class Race(NamedTuple):
    """A figure: its name, at most what, the samples; a ratio unless it has a unit."""

    name: str
    bound: float
    samples: list[float]
    unit: str = ""


def noop(_: object) -> None:
    """A unit that is nothing but its own cost."""


def same(x: object) -> object:
    """Sends back what it gets."""
    return x


def with_data(_: object, data: bytes) -> int:
    """For a partial that has the data."""
    return len(data)


def seconds(work: Work, pool: Any) -> float:
    start = time.perf_counter()
    work(pool)
    return time.perf_counter() - start


@contextmanager
def two_pools(peer: Any, ours: Any) -> Iterator[tuple[Any, Any]]:
    """Both with two workers, warm; and a trace."""
    import pooltrace

    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(pooltrace.trace(Path(directory) / "a.trace"))
        pools = stack.enter_context(peer(2)), stack.enter_context(ours(2))
        for pool in pools:
            pool.map(noop, range(100), chunksize=1)
        yield pools


def race(pools: tuple[Any, Any], rounds: int, theirs: Work, ours: Work | None = None, memory: int = 0) -> list[float]:
    """Ratios of neighbours, in turns. `memory`: bytes that are got and given back before each, see `large`."""
    ratios = []
    work = {0: theirs, 1: ours or theirs}
    for turn in range(rounds):
        took = {}
        for number in ((0, 1), (1, 0))[turn % 2]:
            get_and_give_back(memory)
            took[number] = seconds(work[number], pools[number])
        ratios.append(took[1] / took[0])
    return ratios


def get_and_give_back(memory: int) -> None:
    memory = min(memory, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE") // 2)
    if memory:
        there = mmap.mmap(-1, memory)
        ctypes.memset((ctypes.c_char * memory).from_buffer(there), 1, memory)


def short_units(quick: bool) -> Iterable[Race]:
    """No-op units of one item: by map, by imap_unordered, by apply one after the other."""
    import pooltrace

    rounds, count = (5, 10_000) if quick else (9, 50_000)
    std = multiprocessing.Pool
    with two_pools(std, pooltrace.StdPool) as pools:
        mapped = race(pools, rounds, lambda pool: pool.map(noop, range(count), chunksize=1))
        yield Race("map, chunksize 1 / multiprocessing.Pool", 0.2, mapped)
        few = count // 5
        unordered = race(pools, rounds, lambda pool: sum(1 for _ in pool.imap_unordered(noop, range(few))))
        yield Race("imap_unordered / multiprocessing.Pool", 0.25, unordered)
        applied = race(pools, rounds, lambda pool: [pool.apply(noop, (1,)) for _ in range(count // 50)])
        yield Race("apply / multiprocessing.Pool", 0.45, applied)


def short_units_dill(quick: bool) -> Iterable[Race]:
    """The same map, of a function of __main__, against multiprocess, which pickles in Python."""
    import multiprocess

    import pooltrace

    rounds, count = (3, 2_000) if quick else (5, 50_000)
    with two_pools(multiprocess.Pool, pooltrace.Pool) as pools:
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec("def noop(_): pass", namespace)
        function = namespace["noop"]
        yield Race(
            "map, chunksize 1, __main__ / multiprocess.Pool",
            0.03,
            race(pools, rounds, lambda pool: pool.map(function, range(count), chunksize=1)),
        )


def items(quick: bool) -> Iterable[Race]:
    """Chunks as map makes them, each item in the trace. (Memory as for `large`: of the file's pages, and the lists.)"""
    import pooltrace

    rounds, count = (5, 100_000) if quick else (7, 1_000_000)
    with two_pools(multiprocessing.Pool, pooltrace.StdPool) as pools:
        yield Race(
            f"map of {count:,}, default chunks / multiprocessing.Pool",
            1.05,
            race(pools, rounds, lambda pool: pool.map(noop, range(count)), memory=256 << 20),
        )


def large(quick: bool) -> Iterable[Race]:
    """16 arrays of 64 MiB there and back (``--quick``: 8 MiB); and a closure of 100 KiB over 20,000 items in chunks of
    ten, which the peer gets as a partial.

    On a virtual machine memory that was free for some seconds may be the host's again, and to get it back takes longer
    than all that is measured here. So as much as is needed is got and given back before each run, of both.
    """
    import numpy

    import pooltrace

    rounds, size = (3, 8 << 20) if quick else (5, 64 << 20)
    with two_pools(multiprocessing.Pool, pooltrace.StdPool) as pools:
        arrays = [numpy.full(size // 8, number, dtype=float) for number in range(16)]
        yield Race(
            f"16 arrays of {size >> 20} MiB both ways / multiprocessing.Pool",
            0.2,
            race(pools, rounds, lambda pool: pool.map(same, arrays, chunksize=1), memory=4 * 16 * size),
        )
        data, count = bytes(100 << 10), 2_000 if quick else 20_000
        partial = functools.partial(with_data, data=data)
        yield Race(
            "closure of 100 KiB / multiprocessing.Pool with a partial",
            0.1,
            race(
                pools,
                rounds,
                lambda pool: pool.map(partial, range(count), chunksize=10),
                lambda pool: pool.map(lambda _: len(data), range(count), chunksize=10),
            ),
        )


def long_first(quick: bool) -> Iterable[Race]:
    """One unit of 2 s, then 2,000 of 1 ms, that sleep or spin: what passes / the ideal, which is half of what all
    units took by their own clocks, or the long one."""
    import pooltrace

    rounds = 1 if quick else 7
    with tempfile.TemporaryDirectory() as directory, pooltrace.trace(Path(directory) / "a.trace"):
        with pooltrace.StdPool(2) as pool:
            pool.map(noop, range(100), chunksize=1)
            for how, bound in (("sleep", 1.05), ("spin", 1.10)):
                ratios = []
                for _ in range(rounds):
                    work = [(how, 2.0), *itertools.repeat((how, 0.001), 2000)]
                    start = time.perf_counter()
                    took = list(pool.imap_unordered(timed, work))
                    passed = time.perf_counter() - start
                    ratios.append(passed / max(sum(took) / 2, max(took)))
                yield Race(f"2 s, then 2,000 of 1 ms ({how}) / ideal", bound, ratios)


def timed(work: tuple[str, float]) -> float:
    """How long that took."""
    how, wanted = work
    start = time.perf_counter()
    if how == "sleep":
        time.sleep(wanted)
    else:
        while time.perf_counter() - start < wanted:
            pass
    return time.perf_counter() - start


def spin(_: object) -> None:
    """100 us."""
    end = time.perf_counter_ns() + 100_000
    while time.perf_counter_ns() < end:
        pass


def tracing(quick: bool) -> Iterable[Race]:
    """The same pool with a trace on / off."""
    import pooltrace

    rounds = 5 if quick else 25
    with tempfile.TemporaryDirectory() as directory, pooltrace.StdPool(2) as pool:

        def turn(on: bool, function: Callable[[object], None], count: int) -> float:
            if on:
                pooltrace.start(Path(directory) / "a.trace")
            took = seconds(lambda pool: pool.map(function, range(count), chunksize=1), pool)
            if on:
                pooltrace.stop()
            return took

        for name, function, count, bound in (
            ("no-op units", noop, 20_000, 1.35),
            ("units of 100 us", spin, 4_000, 1.03),
        ):
            turn(False, function, count)
            ratios = []
            for number in range(rounds):
                order = (False, True) if number % 2 else (True, False)
                both = {on: turn(on, function, count) for on in order}
                ratios.append(both[True] / both[False])
            yield Race(f"tracing on / off, {name}", bound, ratios)


def inside(quick: bool) -> Iterable[Race]:
    """What looking into units costs: how long a loop in Python takes in a worker with CPU samples / without; and, per
    no-op unit, with figures less without."""
    import pooltrace

    rounds = 5 if quick else 25
    with (
        tempfile.TemporaryDirectory() as directory,
        pooltrace.StdPool(2) as pool,
        pooltrace.StdPool(2, detail="none") as bare,
    ):

        def turn(pool: Any, count: int) -> float:
            with pooltrace.trace(Path(directory) / "a.trace", cpu_rate=0):
                return seconds(lambda pool: pool.map(noop, range(count), chunksize=1), pool)

        def loop(rate: int) -> float:
            with pooltrace.trace(Path(directory) / "a.trace", cpu_rate=rate):
                return float(bare.apply(count_up, (5_000_000,)))

        loop(0)
        ratios = []
        for number in range(4 * rounds):
            both = {rate: loop(rate) for rate in ((0, 100) if number % 2 else (100, 0))}
            ratios.append(both[100] / both[0])
        differences, count = [], 20_000
        for number in range(rounds):
            pools = [("none", bare), ("unit", pool)][:: 1 if number % 2 else -1]
            took = {detail: turn(pool, count) for detail, pool in pools}
            differences.append((took["unit"] - took["none"]) / count * 1e6)
        yield Race("CPU samples on / off, a loop in Python", 1.01, ratios)
        yield Race("figures of a no-op unit, less without", 0.8, differences, "us")


def count_up(times: int) -> float:
    """Seconds that it took."""
    begin = time.perf_counter()
    for _ in range(times):
        pass
    return time.perf_counter() - begin


def held(quick: bool) -> Iterable[Race]:
    """300 no-op units, then one of 1.5 s: from the end of the 300th until its result is there."""
    import pooltrace

    with tempfile.TemporaryDirectory() as directory, pooltrace.trace(Path(directory) / "a.trace"):
        with pooltrace.StdPool(1) as pool:
            late = []
            for _ in range(1 if quick else 5):
                results = pool.imap(ended, [*itertools.repeat(0.0, 300), 1.5])
                last = [next(results) for _ in range(300)][-1]
                late.append((time.monotonic() - last) * 1e3)
                next(results)
            yield Race("the last short result before a long unit", 20.0, late, "ms")


def flat(quick: bool) -> Iterable[Race]:
    """Results of an endless generator's units, taken as they come: growth of the parent's resident memory from the
    first tenth of them on, the largest of ten."""
    import pooltrace

    count = (10_000 if quick else 100_000) * 10
    page = resource.getpagesize()
    with tempfile.TemporaryDirectory() as directory, pooltrace.trace(Path(directory) / "a.trace"):
        with pooltrace.StdPool(2) as pool:
            results = pool.imap_unordered(noop, itertools.count())
            resident = []
            for number in range(1, count + 1):
                next(results)
                if number % (count // 10) == 0:
                    resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)
    yield Race(f"{count:,} units of an endless generator", 4.0, [(max(resident) - resident[0]) / (1 << 20)], "MiB")


def ended(seconds: float) -> float:
    """When it ended, by a clock that is the same in all processes."""
    if seconds:
        time.sleep(seconds)
    return time.monotonic()


POOLS: dict[str, Callable[[bool], Iterable[Race]]] = {
    "short": short_units,
    "dill": short_units_dill,
    "items": items,
    "large": large,
    "long": long_first,
    "held": held,
    "flat": flat,
    "tracing": tracing,
    "inside": inside,
}
