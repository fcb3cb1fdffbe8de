"""CPU samples say where the time went: shares as the program itself counted them, by function and by item."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gotool
import pytest

import pooltrace
from pooltrace.errors import MisuseError
from pooltrace.format import order
from pooltrace.reader.samples import Sample, SampleReader
from pooltrace.tracer import sampler

Judge = Callable[[str | os.PathLike[str]], order.Summary]
PERIOD = 0.01
EDGE = 3 * PERIOD
"""What a stretch's samples may be off: the timer is set for up to 1.5 periods, expires with the kernel's clock (up to
one more), and samples are whole ones (half of one)."""


def burn(seconds: float) -> float:
    """Computes in Python; returns how long it did."""
    begin = time.thread_time()
    while time.thread_time() - begin < seconds:
        for _ in range(500):
            pass
    return time.thread_time() - begin


def hot(seconds: float) -> float:
    return burn_hot(seconds)


def burn_hot(seconds: float) -> float:
    begin = time.thread_time()
    while time.thread_time() - begin < seconds:
        for _ in range(500):
            pass
    return time.thread_time() - begin


def grind(seconds: float) -> float:
    """Computes in C, 5 ms and more at a time."""
    begin = time.thread_time()
    while time.thread_time() - begin < seconds:
        sum(range(200_000))
    return time.thread_time() - begin


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return 0.0


def mixed(seconds: float) -> dict[str, float]:
    """What one item does in which function, for how long by its own clock."""
    return {"burn": burn(2 * seconds), "grind": grind(seconds), "nap": nap(seconds)}


def read(path: Path) -> list[Sample]:
    with path.open("rb") as file:
        return list(SampleReader(file))


def by_leaf(samples: list[Sample]) -> Counter[str]:
    return Counter(sample.frames[0].function for sample in samples if sample.frames)


def share_of(counts: Counter[str], name: str) -> float:
    return counts[f"test_sampler.{name}"] / counts.total()


@pytest.mark.parametrize("period", [1.0, 0.1])
def test_shares_are_those_that_the_program_counted(tmp_path: Path, judge: Judge, period: float) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path, period=period), pooltrace.StdPool(2) as pool:
        noted = pool.map(mixed, [0.1] * 16, chunksize=2)
    judge(path)
    samples = [sample for sample in read(path) if sample.item == "test_sampler.mixed"]
    counts = by_leaf(samples)
    total = {name: sum(one[name] for one in noted) for name in noted[0]}
    for name, seconds in total.items():
        assert abs(share_of(counts, name) - seconds / sum(total.values())) < 0.03, (counts, total)
    assert share_of(counts, "nap") < 0.01  # to go to sleep costs some 20 us
    assert abs(counts.total() * PERIOD - sum(total.values())) < 0.03 * sum(total.values()) + 2 * EDGE
    figures = pooltrace.summary()
    assert figures is not None
    assert figures["cpu_samples"] >= counts.total()
    assert figures["lost_events"] == 0


def test_each_sample_belongs_to_the_item_that_ran(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        burned, ground = pool.map_async(hot, [0.3] * 3), pool.map_async(grind, [0.3] * 3)
        seconds = {"hot": sum(burned.get()), "grind": sum(ground.get())}
    judge(path)
    samples = read(path)
    workers = {
        event.m
        for event in order.read_events(path)
        if event.name == "UserRegionBegin" and event.string("name") == "test_sampler.hot"
    }
    for name, took in seconds.items():
        mine = [sample for sample in samples if sample.item == f"test_sampler.{name}"]
        leaf = f"test_sampler.{'burn_hot' if name == 'hot' else name}"
        assert {sample.unit for sample in mine} == {f"test_sampler.{name}"}
        assert {sample.m for sample in mine} == workers
        assert {sample.p for sample in mine} != {-1}
        assert len(by_leaf(mine)) <= 2  # one may fall on the border
        assert abs(by_leaf(mine)[leaf] * PERIOD - took) <= 0.03 * sum(seconds.values()) + EDGE


def test_a_function_in_c_is_named_by_its_item(tmp_path: Path, judge: Judge) -> None:
    """It has no frame of its own, whether Python looks for signals in it (factorial) or not (sum)."""
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        pool.map(math.factorial, [20_000] * 60, chunksize=20)
        pool.map(sum, [range(300_000)] * 60, chunksize=20)
        pool.apply(math.factorial, (60_000,))
        for _ in range(10):
            pool.apply_async(sum, ([1] * 3_000_000,)).get()
    judge(path)
    samples = [sample for sample in read(path) if sample.item in ("math.factorial", "builtins.sum")]
    counts = by_leaf(samples)
    assert counts["math.factorial"] + counts["builtins.sum"] == counts.total() > 30
    assert {sample.item for sample in samples if sample.frames[0].function == "builtins.sum"} == {"builtins.sum"}


def test_a_long_call_in_c_has_its_whole_weight(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        took = pool.apply(long_call)
    judge(path)
    mine = [sample for sample in read(path) if sample.frames and sample.frames[0].function == "test_sampler.long_call"]
    assert abs(len(mine) * PERIOD - took) <= EDGE
    assert len({sample.time_ns for sample in mine}) == len(mine)  # Go's reader would move those that share one


def long_call() -> float:
    begin = time.thread_time()
    sum(range(15_000_000))
    return time.thread_time() - begin


def test_the_parent_has_samples_in_its_call_and_outside(tmp_path: Path, judge: Judge) -> None:
    """The thread that starts is in the trace; the main thread has samples also when another one has started it."""
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        took = burn(0.5)
        pool.apply(hot, (0.05,))
    judge(path)
    mine = [sample for sample in read(path) if sample.m == threading.main_thread().native_id]
    assert {(sample.p, sample.g > 0) for sample in mine} == {(0, True)}
    assert abs(by_leaf(mine)["test_sampler.burn"] * PERIOD - took) <= EDGE


OUTSIDE = """\
import threading, time, sys
import pooltrace

def hot(seconds):
    begin = time.thread_time()
    while time.thread_time() - begin < seconds:
        for _ in range(500): pass

def elsewhere():
    pooltrace.start("t.trace")
    started.set()
    stop.wait()
    pooltrace.stop()

if __name__ == "__main__":
    started, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    started.wait()
    with pooltrace.StdPool(1) as pool:
        pool.apply(hot, (0.01,))  # the main thread comes in, and goes out
        hot(0.3)
    stop.set()
    thread.join()
    print(threading.get_native_id())
"""


def test_samples_without_a_unit_are_kept(tmp_path: Path, judge: Judge) -> None:
    """And the main thread has some although another one has started the trace."""
    (tmp_path / "outside.py").write_text(OUTSIDE)
    done = subprocess.run([sys.executable, "outside.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    judge(tmp_path / "t.trace")
    mine = [sample for sample in read(tmp_path / "t.trace") if sample.m == int(done.stdout)]
    mine = [sample for sample in mine if sample.frames[0].function == "__main__.hot"]
    assert {(sample.p, sample.g) for sample in mine} == {(-1, -1)}
    assert abs(len(mine) * PERIOD - 0.3) <= EDGE
    assert done.stderr == ""


def test_a_thread_s_time_before_its_call_is_not_of_the_call(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"

    def other(pool: Any) -> None:
        pool.apply(hot, (0.01,))
        burn(0.3)  # outside: only a main thread could be looked at here
        pool.apply(hot, (0.01,))

    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        thread = threading.Thread(target=other, args=(pool,))
        thread.start()
        m = thread.native_id
        thread.join()
    judge(path)
    assert len([sample for sample in read(path) if sample.m == m]) < 5


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_start_method(tmp_path: Path, judge: Judge, method: str) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path, cpu_rate=250), pooltrace.StdPool(1, context=multiprocessing.get_context(method)) as pool:
        took = pool.apply(hot, (0.2,))
    judge(path)
    found = by_leaf(read(path))["test_sampler.burn_hot"]
    assert abs(found / 250 - took) <= 1.5 / 250 + PERIOD + 0.5 / 250


def test_no_rate_no_samples(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path, cpu_rate=0), pooltrace.StdPool(1) as pool:
        pool.apply(hot, (0.1,))
        burn(0.1)
    judge(path)
    assert read(path) == []
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        pool.apply(hot, (0.1,))
    assert len(read(path)) >= 8


@pytest.mark.parametrize("rate", [-1, 1001, 1.5, "100", None])
def test_rates_that_make_no_sense(tmp_path: Path, rate: Any) -> None:
    with pytest.raises(MisuseError, match="cpu_rate is a whole number of samples per second from 0"):
        pooltrace.start(tmp_path / "t.trace", cpu_rate=rate)
    assert not (tmp_path / "t.trace").exists()


def test_a_pool_that_is_older_than_its_traces(tmp_path: Path, judge: Judge) -> None:
    with pooltrace.StdPool(1) as pool:
        pool.apply(hot, (0.05,))
        for i in range(3):
            path = tmp_path / f"{i}.trace"
            with pooltrace.trace(path):
                took = pool.apply(hot, (0.2,))
            judge(path)
            assert abs(by_leaf(read(path))["test_sampler.burn_hot"] * PERIOD - took) <= EDGE


# --- the program's own signals ----------------------------------------------------------------------


def own_timer(signum: int, which: int) -> int:
    """A profiler of the program's own, as it would run in any process; how often it was called."""
    ticks = 0

    def tick(*_: object) -> None:
        nonlocal ticks
        ticks += 1

    before = signal.signal(signum, tick)
    signal.setitimer(which, 0.01, 0.01)
    burn(0.3)
    signal.setitimer(which, 0, 0)
    signal.signal(signum, before)
    return ticks


@pytest.mark.parametrize(
    ("signum", "which"),
    [
        (signal.SIGPROF, signal.ITIMER_PROF),
        (signal.SIGVTALRM, signal.ITIMER_VIRTUAL),
        (signal.SIGALRM, signal.ITIMER_REAL),
    ],
)
def test_the_program_s_own_timers_work_in_worker_and_parent(
    tmp_path: Path, judge: Judge, signum: int, which: int
) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        ticks = [pool.apply(own_timer, (signum, which)), own_timer(signum, which)]
    judge(path)
    assert min(ticks) >= 15
    assert by_leaf(read(path))["test_sampler.burn"] >= 50  # and samples there are as well


@pytest.fixture
def own_handler() -> Iterator[list[int]]:
    """The program handles the sampler's signal itself."""
    got: list[int] = []
    before = signal.signal(sampler.SIGNAL, lambda signum, frame: got.append(signum))
    yield got
    signal.signal(sampler.SIGNAL, before)
    sampler.prepare()


def test_a_handler_of_the_program_s_stays(
    tmp_path: Path, judge: Judge, own_handler: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        pool.apply(hot, (0.1,))
        burn(0.1)
        assert own_handler == []
        signal.raise_signal(sampler.SIGNAL)
        assert own_handler == [sampler.SIGNAL]
    judge(path)
    assert read(path) == []
    assert [record.getMessage() for record in caplog.records] == [
        "pooltrace: no CPU samples: the program handles SIGURG itself"
    ]


def take_over() -> int:
    """In the middle of a unit the program takes the signal for itself: how often it is called, without its doing."""
    got: list[int] = []
    before = signal.signal(sampler.SIGNAL, lambda signum, frame: got.append(signum))
    burn(0.3)
    signal.signal(sampler.SIGNAL, before)
    return len(got)


def test_who_takes_the_signal_over_sees_one_of_ours_at_most(
    tmp_path: Path, judge: Judge, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.StdPool(1) as pool, pooltrace.trace(path):
        assert pool.apply(take_over) <= 1
        assert take_over() <= 1
        signal.signal(sampler.SIGNAL, signal.SIG_DFL)
        burn(0.05)
    judge(path)
    assert [record.getMessage() for record in caplog.records] == [
        "pooltrace: some CPU samples are missing: the program handles SIGURG itself"
    ]


def wakeups(seconds: float) -> bytes:
    """What comes to a descriptor of the program's that is woken by signals, without its doing, while it computes."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    assert before == -1
    try:
        burn(seconds)
        signal.raise_signal(signal.SIGUSR1)
        return ours.recv(1 << 16)
    finally:
        signal.set_wakeup_fd(-1)
        ours.close()
        theirs.close()


def test_a_wakeup_descriptor_is_left_to_the_program(
    tmp_path: Path, judge: Judge, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio's, for its signals: after some seconds of ours it would be full.  Every eighth one looks for it."""
    path = tmp_path / "t.trace"
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
            for got in (wakeups(0.3), pool.apply(wakeups, (0.3,))):
                assert got.count(sampler.SIGNAL) <= 9
                assert got.replace(bytes([sampler.SIGNAL]), b"") == bytes([signal.SIGUSR1])
            took = pool.apply(hot, (0.2,))  # and then there are samples again
    finally:
        signal.signal(signal.SIGUSR1, before)
    judge(path)
    assert abs(by_leaf(read(path))["test_sampler.burn_hot"] * PERIOD - took) <= EDGE
    assert [record.getMessage() for record in caplog.records] == [
        "pooltrace: some CPU samples are missing: the program has a wakeup descriptor for signals, as asyncio does"
    ]


def closed_wakeup(seconds: float) -> tuple[int, int]:
    """The descriptor that signals wake, once the program has closed it without saying so; and the one that they do."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    number = theirs.fileno()
    signal.set_wakeup_fd(number)
    ours.close()
    theirs.close()
    burn(seconds)
    return number, signal.set_wakeup_fd(-1)


def test_a_wakeup_descriptor_that_is_closed_is_nobody_s(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        number, found = pool.apply(closed_wakeup, (0.3,))
    assert found in (-1, number)
    judge(path)


LOOP = """\
import asyncio, signal, time
import pooltrace

def spin(seconds):
    begin = time.thread_time()
    while time.thread_time() - begin < seconds:
        for _ in range(500): pass

async def main():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: None)
    spin(0.1)
    loop.remove_signal_handler(signal.SIGTERM)

def taken():
    before = signal.signal(signal.SIGURG, lambda *_: None)
    spin(0.1)
    signal.signal(signal.SIGURG, before)

def after_loop():
    spin(2.5)

def after_handler():
    spin(2.5)

with pooltrace.trace("t.trace", period=0.25):
    asyncio.run(main())
    after_loop()
    taken()
    after_handler()
"""


def test_there_are_samples_again_afterwards(tmp_path: Path, judge: Judge) -> None:
    """In a parent that never says a thing of its own."""
    (tmp_path / "loop.py").write_text(LOOP)
    subprocess.run([sys.executable, "loop.py"], cwd=tmp_path, check=True, capture_output=True)
    judge(tmp_path / "t.trace")
    counts = Counter(sample.frames[1].function for sample in read(tmp_path / "t.trace") if len(sample.frames) > 1)
    assert counts["__main__.after_loop"] > 100
    assert counts["__main__.after_handler"] > 100


def compute_in_region() -> None:
    with pooltrace.region("r"):
        burn(0.2)


def test_a_thread_s_sample_in_a_region_is_of_who_has_it(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path):
        thread = threading.Thread(target=compute_in_region)
        thread.start()
        m = thread.native_id
        thread.join()
    judge(path)
    counts = by_leaf([sample for sample in read(path) if sample.m == m])
    assert set(counts) == {"test_sampler.compute_in_region"}
    assert counts.total() >= 15


def wakeup_fd() -> int:
    fd = signal.set_wakeup_fd(-1)
    return fd


def test_a_forked_worker_does_not_wake_its_parent() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    try:
        with pooltrace.StdPool(1, context=multiprocessing.get_context("fork")) as pool:
            assert pool.apply(wakeup_fd) == -1
    finally:
        assert signal.set_wakeup_fd(-1) == theirs.fileno()
        ours.close()
        theirs.close()


def blocked(seconds: float) -> list[int]:
    """Which signals a program that blocks all has got, after it has computed."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    burn(seconds)  # one may have been under way
    signal.sigtimedwait([sampler.SIGNAL], 0)
    burn(seconds)
    got = signal.sigtimedwait(signal.valid_signals(), 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    return [] if got is None else [got.si_signo]


def test_who_blocks_the_signal_and_waits_for_any_gets_none_of_ours(
    tmp_path: Path, judge: Judge, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        assert pool.apply(blocked, (0.1,)) == []
    judge(path)
    with pooltrace.trace(path), pooltrace.StdPool(1, initializer=block_all) as pool:
        pool.apply(hot, (0.3,))
    judge(path)
    assert "test_sampler.burn_hot" not in by_leaf(read(path))
    assert [record.getMessage() for record in caplog.records] == [
        "pooltrace: some CPU samples are missing: the program blocks SIGURG"
    ]


def block_all() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {sampler.SIGNAL})


def no_timers() -> None:
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))


def test_no_timers_no_samples_and_it_is_said(tmp_path: Path, judge: Judge, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.StdPool(1, initializer=no_timers) as pool:
        pool.apply(hot, (0.0,))
        with pooltrace.trace(path):
            pool.apply(hot, (0.1,))
    judge(path)
    assert "test_sampler.burn_hot" not in by_leaf(read(path))
    [message] = [record.getMessage() for record in caplog.records]
    assert "there are no more timers" in message


def test_what_was_due_before_a_trace_is_not_in_it(tmp_path: Path, judge: Judge) -> None:
    first, second = tmp_path / "1.trace", tmp_path / "2.trace"
    with pooltrace.StdPool(1) as pool:
        with pooltrace.trace(first):
            pool.apply(hot, (0.1,))
        pool.apply(hot, (0.5,))  # a timer of the first one expires
        pool.apply(own_forever)
        with pooltrace.trace(second):
            for _ in range(3):
                assert pool.apply(own_seen, (0.1,)) == 0
    judge(second)
    assert [sample for sample in read(second) if sample.m != os.getpid() and sample.g >= 0] == []


_seen: list[int] = []


def own_forever() -> None:
    signal.signal(sampler.SIGNAL, lambda signum, frame: _seen.append(signum))


def own_seen(seconds: float) -> int:
    burn(seconds)
    return len(_seen)


def fork_and_exec() -> tuple[int, int]:
    """Neither a forked child nor a program that takes this process's place is ended by a timer of ours."""
    pid = os.fork()
    if pid == 0:
        burn(0.1)
        os._exit(0)
    forked = os.waitpid(pid, 0)[1]
    pid = os.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", "for _ in range(3_000_000): pass"])
    return forked, os.waitpid(pid, 0)[1]


def test_forked_and_executed_programs_are_left_alone(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        assert pool.apply(fork_and_exec) == (0, 0)
    judge(path)


# --- as a user --------------------------------------------------------------------------------------


PROGRAM = """\
import multiprocessing, signal, sys, time

def spin(seconds):
    begin = time.thread_time()
    while time.thread_time() - begin < seconds:
        for _ in range(500): pass

def work(seconds):
    spin(seconds)
    time.sleep(seconds)

if __name__ == "__main__":
    if "own" in sys.argv:
        signal.signal(signal.SIGURG, lambda *_: None)
    with multiprocessing.Pool(2) as pool:
        pool.map(work, [0.1] * 8)
"""


def run(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "spin.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "pooltrace", "run", "-o", "t.trace", *words]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)


def test_go_s_pprof_names_the_same_functions(tmp_path: Path, judge: Judge) -> None:
    run(tmp_path, "spin.py")
    judge(tmp_path / "t.trace")
    command = [sys.executable, "-m", "pooltrace", "export", "t.trace", "--to", "pprof"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    gotool.require_go("pprof")
    rows = [line.split() for line in gotool.pprof(tmp_path / "t.pb.gz", "-top", "-unit=ms").splitlines()]
    at = next(i for i, row in enumerate(rows) if row[:1] == ["flat"])
    top = {row[5]: round(float(row[0].removesuffix("ms"))) for row in rows[at + 1 :] if len(row) > 5}
    counts = by_leaf(read(tmp_path / "t.trace"))
    assert next(iter(top)) == counts.most_common(1)[0][0] == "__main__.spin"
    assert counts["__main__.spin"] > 0.7 * counts.total()
    for name, ms in top.items():
        assert ms == 10 * counts[name]


def test_run_without_samples_and_with_a_handler_of_the_program_s(tmp_path: Path, judge: Judge) -> None:
    done = run(tmp_path, "--cpu-rate", "0", "spin.py")
    judge(tmp_path / "t.trace")
    assert read(tmp_path / "t.trace") == []
    assert "CPU samples" not in done.stderr
    done = run(tmp_path, "spin.py", "own")
    judge(tmp_path / "t.trace")
    assert "pooltrace: some CPU samples are missing: the program handles SIGURG itself\n" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "pooltrace", "run", "-o", "u.trace", "--cpu-rate", "5000", "spin.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "from 0 (none) to 1000" in done.stderr
