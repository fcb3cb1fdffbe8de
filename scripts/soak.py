"""A soak: a pool whose workers are killed all the time, for as long as is asked, and nothing is lost.

Units come from an endless generator through imap_unordered, with `retries`; every 100 ms a random worker gets SIGKILL.
Each result must come once, and be right; memory must stay flat. Prints one line; exit status 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pooltrace


def unit(number: int) -> tuple[int, int]:
    """Now and then it takes a while."""
    if number % 100 == 0:
        time.sleep(0.01)
    return number, number * number


def kill(
    pool: pooltrace.StdPool, most: int, every: float, dice: random.Random, over: threading.Event, killed: list[int]
) -> None:
    """One worker after the other."""
    while len(killed) < most and not over.wait(every):
        process = dice.choice(pool._pool)
        if process.pid is not None and process.exitcode is None:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.append(process.pid)


def soak(pool: pooltrace.StdPool, goes_on: Callable[[], bool]) -> int:
    """How many units came back. Raises AssertionError if one is wrong, twice there, or missing."""
    submitted = itertools.count()

    def numbers() -> Iterator[int]:
        while goes_on():
            yield next(submitted)

    missing: set[int] = set()
    newest = count = 0
    for number, square in pool.imap_unordered(unit, numbers(), buffersize=5000):
        assert square == number * number
        missing.update(range(newest, number))
        newest = max(newest, number + 1)
        if number < newest - 1:
            assert number in missing, f"{number} came twice"
            missing.discard(number)
        count += 1
    assert not missing, f"{len(missing)} units are missing"
    assert count == next(submitted)
    return count


def main() -> int:
    """The soak, and its line."""
    parser = argparse.ArgumentParser(description="Kill workers all the time, and lose nothing.")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--kills", type=int, default=sys.maxsize, help="end after so many")
    parser.add_argument("--every", type=float, default=0.1, help="seconds between two kills")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--trace", action="store_true", help="with a trace, which goes to the temporary directory")
    options = parser.parse_args()
    killed: list[int] = []
    over, end = threading.Event(), time.monotonic() + options.seconds
    memory: list[int] = []

    def goes_on() -> bool:
        if not memory and len(killed) >= min(20, options.kills // 2):
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return bool(time.monotonic() < end and len(killed) < options.kills)

    with ExitStack() as stack:
        if options.trace:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(pooltrace.trace(Path(directory) / "soak.trace.lz4"))
        pool = stack.enter_context(pooltrace.StdPool(options.workers, retries=1000))
        dice = random.Random(options.seed)
        killer = threading.Thread(target=kill, args=(pool, options.kills, options.every, dice, over, killed))
        killer.start()
        try:
            count = soak(pool, goes_on)
        finally:
            over.set()
            killer.join()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory[0]) / 1024 if memory else 0.0
    print(
        f"soak: seed {options.seed}: {len(killed)} workers killed, {count} units, none lost; grown by {grown:.1f} MiB"
    )
    return int(grown > 100)


if __name__ == "__main__":
    sys.exit(main())
