"""What a unit cost: each figure on a program that provokes it, held against what the unit itself has read."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import unitlogs

import pooltrace
from pooltrace.format import order
from pooltrace.tracer import machine, session

Judge = Callable[[str | os.PathLike[str]], order.Summary]
MIB = 1 << 20
SLACK = 10_000 if os.environ.get("POOLTRACE_SANITIZER") else 2000
"""us: what a unit's reading may miss of it, before its function and after it, on a busy machine."""


def reading() -> dict[str, int]:
    """The sources, as a program reads them."""
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    with open("/proc/self/schedstat", encoding="ascii") as file:
        delay = int(file.read().split()[1]) // 1000
    return {
        "cpu us": int((usage.ru_utime + usage.ru_stime) * 1e6),
        "voluntary switches": usage.ru_nvcsw,
        "involuntary switches": usage.ru_nivcsw,
        "minor faults": usage.ru_minflt,
        "major faults": usage.ru_majflt,
        "blocks read": usage.ru_inblock,
        "blocks written": usage.ru_oublock,
        "run delay us": delay,
    }


def noted(work: Callable[..., object], *args: Any) -> dict[str, int]:
    """What it cost, by its own reading."""
    before = reading()
    work(*args)
    after = reading()
    return {key: after[key] - before[key] for key in before}


def one(
    tmp_path: Path, judge: Judge, work: Callable[..., object], *args: Any, **options: Any
) -> tuple[dict[str, int], dict[str, int]]:
    """One unit: what the trace tells of it, and what it has noted."""
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1, **options) as pool:
        own = pool.apply(noted, (work, *args))
    judge(path)
    [told] = unitlogs.of_units(path, "test_figures.noted")
    for key, value in own.items():
        assert told.get(key, 0) >= value, (key, told, own)
    return told, own


def spin(seconds: float) -> None:
    begin = time.thread_time()
    while time.thread_time() - begin < seconds:
        for _ in range(500):
            pass


def compete(begun: str, stop: str) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with open(begun, "wb"):  # waits until it is read
        pass
    while not os.path.exists(stop):
        spin(0.005)


def spin_on_one_core(seconds: float) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    spin(seconds)


def test_a_spinner_on_a_loaded_core_waits_for_it(tmp_path: Path, judge: Judge, fifos: Any) -> None:
    process = multiprocessing.get_context("fork").Process(target=compete, args=(fifos.begun, str(tmp_path / "stop")))
    process.start()
    fifos.wait()
    try:
        told, own = one(tmp_path, judge, spin_on_one_core, 0.2)
    finally:
        (tmp_path / "stop").touch()
        process.join()
    assert told["involuntary switches"] > 0
    assert told["run delay us"] >= own["run delay us"] > 10_000
    assert told["run delay us"] <= told["wall us"] - told["cpu us"] + SLACK
    assert 200_000 <= told["cpu us"] <= own["cpu us"] + SLACK


def sleep_often(times: int) -> None:
    for _ in range(times):
        time.sleep(0.001)


def test_a_sleeper_has_gone_by_itself(tmp_path: Path, judge: Judge) -> None:
    told, own = one(tmp_path, judge, sleep_often, 20)
    assert 20 <= told["voluntary switches"] <= own["voluntary switches"] + 5
    assert told["wall us"] >= 20_000
    assert told["cpu us"] <= told["wall us"] - 15_000


def touch(size: int) -> None:
    global _kept
    _kept = mmap.mmap(-1, size)
    for at in range(0, size, mmap.PAGESIZE):
        _kept[at] = 1


_kept: Any = None


def test_a_page_toucher_has_faults_and_is_larger(tmp_path: Path, judge: Judge) -> None:
    told, _ = one(tmp_path, judge, touch, 16 * MIB)
    assert told["minor faults"] >= 16 * MIB // mmap.PAGESIZE // 512  # huge pages are one fault each
    grown = told["rss after"] - told["rss before"]
    assert 15 * MIB <= grown <= 20 * MIB
    assert told["rss peak"] >= told["rss after"] - MIB
    assert told["rss peak"] % 1024 == 0


def allocate_and_free(size: int) -> None:
    touch(size)
    global _kept
    _kept.close()
    _kept = None


def test_an_allocator_has_a_peak(tmp_path: Path, judge: Judge) -> None:
    told, _ = one(tmp_path, judge, allocate_and_free, 32 * MIB)
    assert told["rss peak"] >= told.get("rss before", 0) + 30 * MIB
    assert told.get("rss after", 0) - told.get("rss before", 0) <= 4 * MIB


def write_file(path: str) -> None:
    with open(path, "wb") as file:
        file.write(os.urandom(4 * MIB))
        file.flush()
        os.fsync(file.fileno())


def test_a_file_writer_writes_blocks(tmp_path: Path, judge: Judge) -> None:
    told, own = one(tmp_path, judge, write_file, str(tmp_path / "file"))
    if own["blocks written"] == 0:
        pytest.skip("the temporary directory is not on a disk")
    assert own["blocks written"] <= told["blocks written"] <= own["blocks written"] + 64
    assert own["blocks written"] >= 4 * MIB // 512


class Ring:
    def __init__(self) -> None:
        self.me = self


def litter(rings: int) -> None:
    gc.collect()
    for _ in range(rings):
        Ring()
    gc.collect()


def test_a_garbage_maker_is_paused(tmp_path: Path, judge: Judge) -> None:
    told, _ = one(tmp_path, judge, litter, 5000)
    assert told["gc freed"] >= 5000
    assert told["gc pauses"] >= 2
    assert 0 < told["gc us"] < told["wall us"]
    names = [event.name for event in order.read_events(tmp_path / "t.trace")]
    assert names.count("GCMarkAssistBegin") == names.count("GCMarkAssistEnd") >= 2


def with_threads(seconds: float) -> None:
    threads = [threading.Thread(target=hash_long, args=(seconds,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def hash_long(seconds: float) -> None:
    import hashlib

    data = bytes(MIB)
    begin = time.thread_time()
    while time.thread_time() - begin < seconds:
        hashlib.sha256(data)


def test_what_other_threads_compute_is_the_process_s(tmp_path: Path, judge: Judge) -> None:
    told, _ = one(tmp_path, judge, with_threads, 0.1)
    assert told["process cpu us"] >= 200_000
    assert told["cpu us"] <= told["process cpu us"] - 190_000


# --- short and long ---------------------------------------------------------------------------------


def nothing(_: object) -> None:
    pass


def test_short_units_share_their_figures(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        pool.map(nothing, range(20_000), chunksize=1)
    judge(path)
    units = unitlogs.of_units(path, "test_figures.nothing")
    assert len(units) == 20_000
    short, told, shared = 0, 0, []
    for unit in units:
        short += "cpu us" not in unit
        if "short units" in unit:
            told += unit["short units"]
            assert short - 1 <= told <= short + 1  # without itself, if it had waited; with the start-up
            shared.append(unit)
    assert 2 < len(shared) < 20_000 / 4
    assert all(unit["wall us"] >= 900 for unit in units if "cpu us" in unit)
    count = sum(unit["short units"] for unit in shared)
    assert sum(unit.get("short units: argument bytes", 0) for unit in shared) >= (count - 1) * 5


def burn_first(seconds: float) -> float:
    begin = time.thread_time()
    spin(seconds)
    return time.thread_time() - begin


def test_a_long_unit_among_short_ones_has_its_own(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        seconds = pool.map(burn_first, [0, 0, 0, 0.05, 0, 0.03, 0, 0, 0.02], chunksize=1)
    judge(path)
    units = unitlogs.of_units(path, "test_figures.burn_first")
    exact = [unit for unit in units if unit.get("cpu us", 0) > 15_000]
    long = [took for took in seconds if took > 0.015]
    assert len(exact) == len(long) == 3
    for unit, took in zip(exact, long):
        assert int(took * 1e6) <= unit["cpu us"] <= int(took * 1e6) + SLACK


def burn_and_note(seconds: float) -> dict[str, int]:
    return noted(spin, seconds)


def test_memory_is_that_of_the_unit_that_touched_it(tmp_path: Path, judge: Judge) -> None:
    """A short unit that touches memory, then a long one that does not."""
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        pool.apply(burn_and_note, (0.002,))  # what is done once only
        tasks = [pool.apply_async(touch, (256 * 4096,)), pool.apply_async(burn_and_note, (0.02,))]
        own = [task.get() for task in tasks][1]
    judge(path)
    long = unitlogs.of_units(path, "test_figures.burn_and_note")[1]
    assert long.get("rss after", 0) - long.get("rss before", 0) < 200 * 4096
    assert own["minor faults"] <= long.get("minor faults", 0) <= own["minor faults"] + 50


# --- bytes ------------------------------------------------------------------------------------------


def take(*args: Any, **kwds: Any) -> bytes:
    time.sleep(0.002)
    return bytes(MIB)


def test_bytes_of_arguments_and_result(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        pool.apply(take, (1, bytes(300_000), "x"))
    judge(path)
    [told] = unitlogs.of_units(path, "test_figures.take")
    assert 300_000 <= told["argument bytes"] <= 300_500
    assert MIB <= told["result bytes"] <= MIB + 500


def test_a_fat_argument_in_second_position(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        pool.apply(take, ([1, 2], bytes(300_000), "x"), {"more": "y" * 50_000})
        pool.starmap(take, [(i, bytearray(200_000)) for i in range(3)], chunksize=3)
    judge(path)
    one, chunk = unitlogs.of_units(path, "test_figures.take")
    assert 300_000 <= one["argument 1 bytes"] <= 300_100
    assert 50_000 <= one["argument more bytes"] <= 50_100
    assert one["argument 0 bytes"] < 100
    assert one["argument 2 bytes"] < 100
    assert 600_000 <= chunk["argument 1 bytes"] <= 600_200
    assert chunk["argument 0 bytes"] < 200


def test_arguments_beside_the_pickle_count_as_well(tmp_path: Path, judge: Judge) -> None:
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.Pool(1) as pool:
        pool.apply(take, (1, numpy.zeros(100_000)))
    judge(path)
    [told] = unitlogs.of_units(path, "test_figures.take")
    assert 800_000 <= told["argument 1 bytes"] <= 801_000
    assert told["argument bytes"] >= told["argument 1 bytes"]


# --- detail, and none --------------------------------------------------------------------------------


def test_items_have_their_own_on_request(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1, detail="item") as pool:
        took = pool.map(burn_first, [0.02, 0.01, 0.0], chunksize=3)
        took.append(pool.apply(burn_first, (0.01,)))
    judge(path)
    found, inside = [], 0
    for event in order.read_events(path):
        if event.name in ("UserRegionBegin", "UserRegionEnd") and event.string("name") == "test_figures.burn_first":
            inside += 1 if event.name == "UserRegionBegin" else -1
        elif event.name == "UserLog" and event.string("key").startswith("item "):
            assert inside == 1
            found.append((event.string("key"), int(event.string("value"))))
    assert [key for key, _ in found] == ["item cpu us", "item rss"] * 4
    for seconds, (_, us) in zip(took, found[::2]):
        assert int(seconds * 1e6) <= us <= int(seconds * 1e6) + SLACK
    assert all(MIB < rss < 1000 * MIB for _, rss in found[1::2])


def count_up(times: int) -> float:
    """Computes without a look at any clock, which would bring the kernel's account of it up to date."""
    begin = time.thread_time()
    for _ in range(times):
        pass
    return time.thread_time() - begin


def test_cpu_time_does_not_move_with_the_kernel_s_ticks_only(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1, detail="item") as pool:
        took = pool.map(count_up, [30_000] * 100, chunksize=100)
        took_units = pool.map(count_up, [80_000] * 50, chunksize=1)
    judge(path)
    keys = [(e.string("key"), e.string("value")) for e in order.read_events(path) if e.name == "UserLog"]
    items = [int(value) for key, value in keys if key == "item cpu us"][:100]
    for seconds, us in zip(took, items):
        assert abs(us - seconds * 1e6) <= 500
    units = unitlogs.of_units(path, "test_figures.count_up")[1:]
    for seconds, unit in zip(took_units, units):
        if "cpu us" in unit:
            assert abs(unit["cpu us"] - seconds * 1e6) <= 1000
    assert sum("cpu us" in unit for unit in units) > 0
    told = sum(unit.get("cpu us", 0) + unit.get("short units: cpu us", 0) for unit in units)
    assert told <= sum(took_units) * 1e6 + 50 * 500


def fails(_: object) -> None:
    raise KeyError("the user's own")


@pytest.mark.parametrize("detail", ["none", "unit", "item"])
def test_what_an_item_raises_arrives(tmp_path: Path, judge: Judge, detail: str) -> None:
    """The first one of a worker, too."""
    for i, call in enumerate(("map", "starmap", "apply")):
        path = tmp_path / f"{i}.trace"
        with pooltrace.trace(path), pooltrace.StdPool(1, detail=detail) as pool:
            with pytest.raises(KeyError, match="the user's own"):
                getattr(pool, call)(fails, [(1,)] if call != "apply" else (1,))
        judge(path)


def collect_young(_: object) -> None:
    for _ in range(3):
        gc.collect(0)


def test_the_collector_s_work_is_of_the_unit_in_which_it_was(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1, initializer=gc.disable) as pool:
        for _ in range(5):
            pool.apply(collect_young, (0,))
            pool.apply(burn_first, (0.005,))
    judge(path)
    for unit in unitlogs.of_units(path, "test_figures.burn_first"):
        assert not [key for key in unit if key.startswith("gc ") and not key.endswith("before")], unit
    told = unitlogs.of_units(path, "test_figures.collect_young") + unitlogs.of_units(path, "test_figures.burn_first")
    assert sum(unit.get("gc pauses", 0) + unit.get("short units: gc pauses", 0) for unit in told) == 15


def start_computing(seconds: float) -> None:
    threading.Thread(target=hash_long, args=(seconds,)).start()


def test_what_is_computed_while_a_worker_waits_is_of_no_unit(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        pool.apply(start_computing, (0.3,))
        spin(0.5)  # the parent does, while the worker waits
        pool.apply(nothing, (0,))
    judge(path)
    [told] = unitlogs.of_units(path, "test_figures.nothing")
    assert told.get("short units: process cpu us", told.get("process cpu us", 0)) < 100_000


def large_result(_: object) -> bytes:
    return bytes(40 * MIB)


def test_memory_that_is_given_back_between_units_is_of_neither(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        for _ in range(4):
            pool.apply(large_result, (0,))
            pool.apply(burn_first, (0.005,))
    judge(path)
    for unit in unitlogs.of_units(path, "test_figures.burn_first"):
        assert abs(unit.get("rss after", 0) - unit.get("rss before", 0)) < 20 * MIB
        assert "process cpu us" not in unit


def test_none_on_request(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1, detail="none") as pool:
        pool.map(burn_first, [0.01, 0.0], chunksize=1)
    judge(path)
    assert [list(unit) for unit in unitlogs.of_units(path, "test_figures.burn_first")] == [["wall us"]] * 2


def test_a_detail_that_is_not_known() -> None:
    with pytest.raises(ValueError, match="detail is one of none, unit, item, not 'items'"):
        pooltrace.StdPool(1, detail="items")


def closed(path: str) -> None:
    """A unit that closes what it has not opened, and has a file of its own there, which looks alike."""
    Path(path).write_text("700000000 699994787987654 7000000 1 1 1 1\n")
    for fd in map(int, os.listdir("/proc/self/fd")):
        target = os.readlink(f"/proc/self/fd/{fd}") if os.path.exists(f"/proc/self/fd/{fd}") else ""
        if target.endswith(("/statm", "/schedstat")):
            os.close(fd)
            assert os.open(path, os.O_RDONLY) == fd
    time.sleep(0.002)


def test_descriptors_that_the_program_took_are_not_believed(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1) as pool:
        pool.map(closed, [str(tmp_path / "file")] * 2, chunksize=1)
        pool.apply(burn_first, (0.01,))
    judge(path)
    [told] = unitlogs.of_units(path, "test_figures.burn_first")
    assert not {"run delay us", "rss after"} & set(told)
    assert told["cpu us"] >= 10_000


# --- the machine's, the slots' -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "files", "found"),
    [
        (2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, ("a/cpu.stat", "throttled_usec ", 1)),
        (2, {"a/b/cpu.max": "10000 100000"}, ("a/b/cpu.stat", "throttled_usec ", 1)),
        (2, {"a/b/cpu.max": "max 100000"}, ("", "", 1)),
        (1, {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "20000"}, ("cpu,cpuacct/a/b/cpu.stat", "throttled_time ", 1000)),
        (1, {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1"}, ("", "", 1)),
    ],
)
def test_where_throttling_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, files: dict[str, str], found: tuple[str, str, int]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "cgroup").write_text("0::/a/b\n" if version == 2 else "4:memory:/a\n3:cpu,cpuacct:/a/b\n0::/\n")
    monkeypatch.setattr(machine, "_CGROUP", str(tmp_path / "cgroup"))
    monkeypatch.setattr(machine, "_ROOT", str(tmp_path))
    path, key, unit = machine.throttle_source()
    assert (path.removeprefix(f"{tmp_path}/"), key, unit) == found


def throttle(path: str) -> None:
    """Its cgroup says that it was held up, while it runs."""
    Path(path).write_text("usage_usec 999\nnr_throttled 3\nthrottled_usec 52000\nburst_usec 0\n")
    spin(0.02)


def test_throttling_is_told(tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cgroup of files: what the kernel would write, a unit writes."""
    stat = tmp_path / "cpu.stat"
    stat.write_text("usage_usec 5\nnr_throttled 1\nthrottled_usec 2000\nburst_usec 0\n")
    monkeypatch.setattr(machine, "throttle_source", lambda: (str(stat), "throttled_usec ", 1))
    path = tmp_path / "t.trace"
    with pooltrace.trace(path), pooltrace.StdPool(1, context=multiprocessing.get_context("fork")) as pool:
        pool.apply(throttle, (str(stat),))
    judge(path)
    [told] = unitlogs.of_units(path, "test_figures.throttle")
    assert told["throttled us"] == 50_000


def spin_in(stat: str, key: str, unit: int) -> dict[str, int]:
    def stand() -> int:
        return int(Path(stat).read_text().split(key)[1].split()[0]) // unit

    before = stand()
    spin(0.05)
    return {"throttled us": stand() - before}


def cgroup_with_limit() -> Path:
    """A new one that may compute a fifth of the time; skips where this machine does not let us make one."""
    root = Path("/sys/fs/cgroup")
    try:
        if (root / "cgroup.controllers").exists():
            (root / "cgroup.subtree_control").write_text("+cpu")
            group, name, limit = root / f"pooltrace-{os.getpid()}", "cpu.max", "20000 100000"
        else:
            group, name, limit = root / "cpu" / f"pooltrace-{os.getpid()}", "cpu.cfs_quota_us", "20000"
        group.mkdir()
        (group / name).write_text(limit)
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    return group


def test_a_cgroup_s_limit_throttles(tmp_path: Path, judge: Judge) -> None:
    """A true one, where this machine lets us make one."""
    group = cgroup_with_limit()
    path, home = tmp_path / "t.trace", next(directory for _, directory in machine._cgroups("cpu"))
    try:
        with pooltrace.trace(path):
            (group / "cgroup.procs").write_text(str(os.getpid()))
            source = machine.throttle_source()
            with pooltrace.StdPool(1) as pool:
                Path(home, "cgroup.procs").write_text(str(os.getpid()))
                own = pool.apply(spin_in, source)
    finally:
        Path(home, "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()
    judge(path)
    [told] = unitlogs.of_units(path, "test_figures.spin_in")
    assert source[0] == str(group / "cpu.stat")
    assert told["throttled us"] >= own["throttled us"] > 10_000


def open_more(count: int) -> tuple[int, int, int]:
    """Descriptors, threads and memory of this worker, afterwards."""
    global _kept
    _kept = [open(os.devnull, "rb") for _ in range(count)]  # noqa: SIM115 - they stay
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    return len(os.listdir("/proc/self/fd")) - 1, threading.active_count(), os.getpid()


def test_processes_are_told_of_each_generation(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.StdPool(2) as pool, pooltrace.trace(path, period=60):
        pool.map(nothing, range(10))
        descriptors, threads, pid = pool.apply(open_more, (50,))
        assert session.advance()
    judge(path)
    found = unitlogs.by_generation(path)
    m_of = {event.m: event.arg("p") for event in order.read_events(path) if event.name == "ProcStart"}
    before, after = found[0], found[-1]
    slot = f"Proc {m_of[pid]}"
    assert after[f"{slot} threads"] == threads == before[f"{slot} threads"] + 3
    assert after[f"{slot} descriptors"] == descriptors
    assert after["parent threads"] >= 3
    assert abs(after["parent descriptors"] - len(os.listdir("/proc/self/fd"))) < 20
    assert after["cpu samples per second"] == 100
    rss = sum(value for key, value in after.items() if key.endswith(" rss"))
    heap = [event.arg("bytes") for event in order.read_events(path) if event.name == "HeapAlloc"]
    assert heap[-1] == rss > 2 * MIB
    assert {key.split()[0] for key in after if key.endswith("rss")} == {"parent", "Proc"}


def wait_for(path: str) -> None:
    with open(path, "rb") as file:
        file.read()


def test_the_queue_s_depth_is_told(tmp_path: Path, judge: Judge, fifos: Any) -> None:
    path = tmp_path / "t.trace"
    with pooltrace.trace(path, period=60), pooltrace.StdPool(1) as pool:
        first = pool.apply_async(wait_for, (fifos.go,))
        rest = pool.map_async(nothing, range(30), chunksize=1)
        assert session.advance()
        fifos.open()
        first.get()
        rest.get()
        assert session.advance()
    judge(path)
    found = [one["units waiting"] for one in unitlogs.by_generation(path)]
    assert found[0] == 0
    assert 30 <= found[1] <= 32  # the worker's start-up and the first one may have been begun
    assert found[-1] == 0
