"""Measures what tracing costs, as ratios against a peer in the same run; a bare time would say more of the machine.

``python scripts/bench.py [--quick] [--json FILE] [--only event,bytes,...]``. How each figure is taken:

event   One emitted event with a trace on, against ``time.perf_counter_ns()``. Loops of the same shape, two calls each
        pass, on the thread that started the trace: clock and clock; region begin and region end; log and log, with
        handles made before. A round times all loops one after the other, each time beginning with another; the figure
        is the median over the rounds of (loop / clock loop of the same round). The trace goes to a file, so gathering,
        merging and writing, which other threads do meanwhile, are in it.
bytes   Size of the file / items, of one map of no-op items in chunks of 1,000 over two workers. Nothing is subtracted.
memory  Growth of the parent's resident memory over 10 million events (``--quick``: 1 million), two for each item of
        maps of 100,000 no-op items, results thrown away. Begins after two maps; the figure is the largest value after
        any later one, less the value at the beginning. In a process of its own.
off     A pool with no trace on, against the same pool with the tracer stubbed out: in the second process every
        function of ``pooltrace.tracer.emit`` that records was replaced by one that does nothing before the pool was
        imported (builtins written in C for up to two arguments, ``lambda`` for more, so the stub is not free either;
        ids are still given out, and a chunk's loop is ``list(map(...))``). Two processes with a pool of two workers
        each take turns (a b b a), the other one asleep meanwhile; ratios are of neighbours, the figure is their median
        over several such pairs of processes. Units of 100 us look at the clock until 100 us are over.
truth   How far the duration of an item in the trace is from the one that the item itself took of its body, over
        100,000 units of one item each (``--quick``: 20,000): the median, and the value that 99.9 % stay below.
gil     The longest of ten advances of the generation while a worker sleeps for 3 s in C with the GIL in its hands; and
        the longest gap between two items of a worker while the parent does the same for 1 s.

short, dill, items, large, long, held, flat, tracing, inside: the pools themselves against the stock ones, see
bench_pool.py; peers: against others, see bench_peers.py.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import importlib.metadata
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import bench_peers
import bench_pool

UNIT_NS = 100_000
MAP_ITEMS = 100_000


@dataclass
class Figure:
    """One result: the median of ``samples`` measurements and the quartiles around it."""

    name: str
    value: float
    low: float
    high: float
    samples: int
    unit: str
    bound: float

    @classmethod
    def of(cls, name: str, samples: list[float], unit: str, bound: float) -> Figure:
        low, middle, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else samples * 3
        return cls(name, middle, low, high, len(samples), unit, bound)


def noop(_: object) -> None:
    """An item that is nothing but its own cost."""


def spin(_: object) -> None:
    """An item that takes UNIT_NS."""
    end = time.perf_counter_ns() + UNIT_NS
    while time.perf_counter_ns() < end:
        pass


# One event


def event_loops() -> dict[str, Callable[[int], int]]:
    """Loops of the same shape: n passes, two calls in each; they return ns."""
    from pooltrace.tracer import emit

    clock = time.perf_counter_ns
    begin, end, log = emit.region_begin, emit.region_end, emit.log
    kind, stack = emit.REGION, emit.stack()

    def clocks(n: int) -> int:
        start = clock()
        for _ in itertools.repeat(None, n):
            clock()
            clock()
        return clock() - start

    def regions(n: int) -> int:
        start = clock()
        for _ in itertools.repeat(None, n):
            end(begin(kind, 0, "region", stack))
        return clock() - start

    def logs(n: int) -> int:
        start = clock()
        for _ in itertools.repeat(None, n):
            log(0, "key", "value")
            log(0, "key", "value")
        return clock() - start

    return {"clock": clocks, "region": regions, "log": logs}


def bench_event(quick: bool) -> Iterable[Figure]:
    """One emitted event / one look at the clock."""
    import pooltrace

    rounds, n = (9, 50_000) if quick else (41, 200_000)
    ratios: dict[str, list[float]] = {"region": [], "log": []}
    with tempfile.TemporaryDirectory() as directory, pooltrace.trace(Path(directory) / "a.trace"):
        loops = event_loops()
        names = list(loops)
        for loop in loops.values():
            loop(n // 10)
        for turn in range(rounds):
            order = names[turn % len(names) :] + names[: turn % len(names)]
            took = {name: loops[name](n) for name in order}
            for name, values in ratios.items():
                values.append(took[name] / took["clock"])
    for name, values in ratios.items():
        yield Figure.of(f"one event ({name}) / perf_counter_ns()", values, "", 1.3)


# Bytes and memory


def bench_bytes(quick: bool) -> Iterable[Figure]:
    """Bytes in the file per item."""
    import pooltrace

    items = 200_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.trace"
        with pooltrace.trace(path), pooltrace.StdPool(2) as pool:
            pool.map(noop, range(items), chunksize=1000)
        yield Figure.of("bytes in the file per item", [path.stat().st_size / items], "bytes", 20)


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def child_memory(events: int) -> None:
    """Prints the largest growth of this process, in bytes, and how many events there were."""
    import pooltrace

    with tempfile.TemporaryDirectory() as directory:
        with pooltrace.trace(Path(directory) / "a.trace"), pooltrace.StdPool(2) as pool:
            most = begin = 0
            for done in range(-2, -(-events // (2 * MAP_ITEMS))):
                pool.map(noop, range(MAP_ITEMS), chunksize=1000)
                most = max(most, resident_bytes())
                if done < 0:
                    most = begin = resident_bytes()
        summary = pooltrace.summary()
    print(json.dumps([most - begin, summary["events"] if summary else 0]))


def bench_memory(quick: bool) -> Iterable[Figure]:
    """Growth of the parent's memory."""
    events = 1_000_000 if quick else 10_000_000
    with child("memory", str(events)) as process:
        grown, seen = json.loads(ask(process))
    if seen < events:
        raise RuntimeError(f"only {seen} of {events} events were recorded")
    name = f"growth of the parent over {events // 1_000_000} million events"
    yield Figure.of(name, [grown / (1 << 20)], "MiB", 64)


# Tracing off


def stub_tracer() -> None:
    """Take the tracer out of this process, and of those that it forks. Before anything imports the pool."""
    from pooltrace.tracer import emit

    stack = emit.stack()
    empty_list: list[object] = []
    empty_dict: dict[object, object] = {}
    stubs: dict[str, Callable[..., object]] = {
        **dict.fromkeys(("idle", "leave", "enter"), empty_list.clear),
        **dict.fromkeys(("go_resume", "go_unblock", "task_end"), empty_dict.get),
        "enabled": empty_list.__len__,
        "stack": lambda skip=0: stack,
        "frame": lambda function, file, line: stack,
        "go_create": lambda g, start, stack: 0,
        "go_block": lambda reason, stack: None,
        "task_begin": lambda task, parent, name, stack: None,
        "region_begin": lambda kind, task, name, stack: 0,
        "region_end": lambda handle=0: None,
        "log": lambda task, key, value: None,
        "unit_begin": lambda g, generation, start: None,
        "unit_end": lambda came=None, beside=None, payload=None, buffers=None: None,
        "run_call": lambda func, args, kwds, task, name, start: func(*args, **kwds),
        "run_chunk": lambda func, items, star, task, name, start: list(
            itertools.starmap(func, items) if star else map(func, items)
        ),
    }
    for name, stub in stubs.items():
        setattr(emit, name, stub)


def child_off(stubbed: str) -> None:
    """For each line 'KIND COUNT' on standard input, maps so many units and prints how many ns that took."""
    if stubbed == "stub":
        stub_tracer()
    import pooltrace

    functions = {"noop": noop, "spin": spin}
    with pooltrace.StdPool(2) as pool:
        for line in sys.stdin:
            kind, count = line.split()
            start = time.perf_counter_ns()
            pool.map(functions[kind], range(int(count)), chunksize=1)
            print(time.perf_counter_ns() - start, flush=True)


def bench_off(quick: bool) -> Iterable[Figure]:
    """A pool without a trace / the same pool without a tracer."""
    pairs, rounds = (1, 8) if quick else (4, 24)
    sizes = {"noop": 5_000, "spin": 1_000}
    ratios: dict[str, list[float]] = {kind: [] for kind in sizes}
    for _ in range(pairs):
        with child("off", "real") as real, child("off", "stub") as stub:
            for kind, count in sizes.items():
                for process in (real, stub):
                    ask(process, f"{kind} {count}")
            for turn, (kind, count) in itertools.product(range(rounds), sizes.items()):
                order = (real, stub) if turn % 2 else (stub, real)
                took = {process.pid: int(ask(process, f"{kind} {count}")) for process in order}
                ratios[kind].append(took[real.pid] / took[stub.pid])
    yield Figure.of("tracing off / no tracer, units of 100 us", ratios["spin"], "", 1.01)
    yield Figure.of("tracing off / no tracer, no-op units", ratios["noop"], "", 1.1)


# Truth


def noted(_: object) -> tuple[int, int, int]:
    """An item that says where and when it ran: pid, begin and end in ns."""
    begin = time.perf_counter_ns()
    return os.getpid(), begin, time.perf_counter_ns()


def item_times(path: Path, name: str) -> dict[int, list[tuple[int, int]]]:
    """Begin and end of each item in a trace, by worker, in order."""
    from pooltrace.format import order

    items: dict[int, list[tuple[int, int]]] = {}
    begins: dict[int, int] = {}
    for event in order.read_events(path):
        if event.name == "UserRegionBegin" and event.string("name").endswith(name):
            begins[event.m] = event.time
        elif event.name == "UserRegionEnd" and event.m in begins:
            items.setdefault(event.m, []).append((begins.pop(event.m), event.time))
    return items


def bench_truth(quick: bool) -> Iterable[Figure]:
    """Durations in the trace against the program's own."""
    import pooltrace

    count = 20_000 if quick else 100_000
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.trace"
        with pooltrace.trace(path), pooltrace.StdPool(2) as pool:
            notes = pool.map(noted, range(count), chunksize=1)
        traced = item_times(path, ".noted")
    own: dict[int, list[tuple[int, int]]] = {}
    for pid, begin, end in sorted(notes, key=lambda note: note[1]):
        own.setdefault(pid, []).append((begin, end))
    if {pid: len(items) for pid, items in own.items()} != {m: len(items) for m, items in traced.items()}:
        raise RuntimeError("the trace has other items than the program")
    apart = sorted(
        abs((theirs[1] - theirs[0]) - (ours[1] - ours[0]))
        for pid, items in own.items()
        for ours, theirs in zip(items, traced[pid])
    )
    yield Figure.of(f"durations differ by, median of {count:,}", [apart[count // 2] / 1e3], "us", 50)
    yield Figure.of("durations differ by, 99.9 %", [apart[count * 999 // 1000] / 1e3], "us", 2000)


# Who holds the GIL


def hold(_: object) -> None:
    """Three seconds in C, with the GIL."""
    ctypes.PyDLL(None).usleep(3_000_000)


def bench_gil(quick: bool) -> Iterable[Figure]:
    """Advances and items while somebody holds the GIL."""
    import pooltrace
    from pooltrace.tracer import session

    del quick
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.trace"
        with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
            holding = pool.map_async(hold, [0])
            advances = []
            for _ in range(10):
                time.sleep(0.1)
                start = time.perf_counter_ns()
                session.advance()
                advances.append((time.perf_counter_ns() - start) / 1e6)
            if holding.ready():
                raise RuntimeError("the worker was awake before the advances were over")
            holding.wait()
            spinning = pool.map_async(spin, range(15_000), chunksize=15_000)
            time.sleep(0.2)
            start = time.perf_counter_ns()
            ctypes.PyDLL(None).usleep(1_000_000)
            end = time.perf_counter_ns()
            if spinning.ready():
                raise RuntimeError("the worker was done before the parent was awake")
            spinning.wait()
        (items,) = item_times(path, ".spin").values()
    within = [time for time in items if start <= time[0] and time[1] <= end]
    gaps = [(after[0] - before[1]) / 1e6 for before, after in itertools.pairwise(within)]
    yield Figure.of("longest advance while a worker holds its GIL", [max(advances)], "ms", 100)
    yield Figure.of("longest gap between items while the parent does", [max(gaps)], "ms", 100)


# Pools

POOLS = {**bench_pool.POOLS, "peers": bench_peers.peers}


def bench_pools(name: str, quick: bool) -> Iterable[Figure]:
    """Of bench_pool, and bench_peers."""
    for race in POOLS[name](quick):
        yield Figure.of(race.name, race.samples, race.unit, race.bound)


# Processes, and what is shown


def child(*words: str) -> subprocess.Popen[str]:
    """This file in a process of its own, as ``--child words...``."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str], line: str | None = None) -> str:
    """Send a line, if any, and return the answer."""
    stdin, stdout = pipe(process.stdin), pipe(process.stdout)
    if line is not None:
        stdin.write(line + "\n")
        stdin.flush()
    answer = stdout.readline()
    if not answer:
        raise RuntimeError(f"a process of the benchmark ended with {process.wait()}")
    return answer


def pipe(stream: IO[str] | None) -> IO[str]:
    """The stream, which is there."""
    if stream is None:
        raise RuntimeError("a process without pipes")
    return stream


def table(figures: list[Figure], quick: bool) -> str:
    """The figures as text; a quick look at them is no judgement."""
    rows = [("", "median", "quartiles", "rounds", "at most", "")]
    for f in figures:
        unit = f" {f.unit}" if f.unit else ""
        spread = f"{f.low:.3f} to {f.high:.3f}" if f.samples > 1 else ""
        verdict = "" if quick or f.value <= f.bound else "MISSED"
        rows.append((f.name, f"{f.value:.3f}{unit}", spread, str(f.samples), f"{f.bound:g}{unit}", verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)


def environment() -> dict[str, Any]:
    """What the figures are taken on; with the load at that time."""
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    peers = {}
    for name in ("multiprocess", "loky", "mpire", "billiard", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            peers[name] = importlib.metadata.version(name)
    return {
        "pooltrace": importlib.metadata.version("pooltrace"),
        "python": sys.version.split()[0],
        "cores": len(os.sched_getaffinity(0)),
        "processor": models[0] if models else os.uname().machine,
        "kernel": os.uname().release,
        "load": os.getloadavg()[0],
        "versions": peers,
    }


def facts(found: dict[str, Any]) -> str:
    """The environment as text."""
    versions = "".join(f", {name} {version}" for name, version in found["versions"].items())
    machine = "{cores} cores of {processor}, Linux {kernel}, load {load:.1f} at the beginning".format_map(found)
    return f"pooltrace {found['pooltrace']}, Python {found['python']}{versions}\n{machine}"


BENCHES: dict[str, Callable[[bool], Iterable[Figure]]] = {
    "event": bench_event,
    "bytes": bench_bytes,
    "memory": bench_memory,
    "off": bench_off,
    "truth": bench_truth,
    "gil": bench_gil,
    **{name: functools.partial(bench_pools, name) for name in POOLS},
}


def main() -> None:
    """Measure, and show a table or JSON."""
    parser = argparse.ArgumentParser(description="Measure what tracing costs.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a first impression")
    parser.add_argument("--json", metavar="FILE", help="write them as JSON, too")
    parser.add_argument("--only", default=",".join(BENCHES), help=f"some of {','.join(BENCHES)}")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "ARGUMENT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, argument = options.child
        child_memory(int(argument)) if what == "memory" else child_off(argument)
        return
    names = options.only.split(",")
    if not set(names) <= set(BENCHES):
        parser.error(f"--only takes some of {','.join(BENCHES)}")
    found = environment()
    figures = [figure for name in names for figure in BENCHES[name](options.quick)]
    if options.json:
        data = {**found, "quick": options.quick, "figures": [asdict(figure) for figure in figures]}
        Path(options.json).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(table(figures, options.quick), facts(found), sep="\n\n")


if __name__ == "__main__":
    main()
