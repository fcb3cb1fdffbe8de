"""The engine against other pools, as far as they are installed: concurrent.futures, loky, mpire, billiard.

Each figure is the median over rounds of (ours / the peer's), the two taking turns in one process, each on two workers
that live throughout; a trace is on all the time, which only ours records. What is measured: no-op units one by one, and
128 blocks of 1 MiB that come back.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple

from bench_pool import Race, noop, race, same, two_pools


class Peer(NamedTuple):
    """How it is called, how one is made, and how it maps a function over items, one by one."""

    name: str
    make: Callable[[ExitStack], Any]
    map: Callable[..., object]


def _executor_map(pool: Any, function: Callable[[Any], Any], items: list[Any]) -> object:
    return list(pool.map(function, items, chunksize=1))


def _pool_map(pool: Any, function: Callable[[Any], Any], items: list[Any]) -> object:
    return pool.map(function, items, chunksize=1)


def _mpire_map(pool: Any, function: Callable[[Any], Any], items: list[Any]) -> object:
    return pool.map(function, items, chunk_size=1)


def _peers() -> Iterable[Peer]:
    yield Peer(
        "concurrent.futures",
        lambda stack: stack.enter_context(concurrent.futures.ProcessPoolExecutor(2)),
        _executor_map,
    )
    try:
        import loky
    except ImportError:
        pass
    else:
        yield Peer("loky", lambda stack: stack.enter_context(loky.ProcessPoolExecutor(2)), _executor_map)
    try:
        import mpire
    except ImportError:
        pass
    else:
        yield Peer(
            "mpire",
            lambda stack: stack.enter_context(mpire.WorkerPool(2, keep_alive=True)),
            _mpire_map,
        )
    try:
        import billiard
    except ImportError:
        pass
    else:

        def make(stack: ExitStack) -> Any:
            pool = billiard.Pool(2)
            stack.callback(pool.terminate)
            return pool

        yield Peer("billiard", make, _pool_map)


def peers(quick: bool) -> Iterable[Race]:
    """Against each that is installed: at most as long."""
    import pooltrace

    rounds, count = (3, 1_000) if quick else (5, 5_000)
    blocks = [bytes(1 << 20)] * (16 if quick else 128)
    for peer in _peers():
        with ExitStack() as stack:
            theirs = peer.make(stack)
            _, ours = stack.enter_context(two_pools(pooltrace.StdPool, pooltrace.StdPool))
            for name, function, items in (("no-op units", noop, [*range(count)]), ("blocks of 1 MiB", same, blocks)):
                peer.map(theirs, function, items[:4])
                ratios = race(
                    (theirs, ours),
                    rounds,
                    functools.partial(peer.map, function=function, items=items),
                    functools.partial(_pool_map, function=function, items=items),
                )
                yield Race(f"{name} / {peer.name}", 1.0, ratios)
