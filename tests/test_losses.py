"""`retries=` and `task_timeout=`: what runs again, what does not, and that nobody else pays for it."""

from __future__ import annotations

import functools
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
from faults import Fifos, identity, killed, killed_at, square
from pieces import SEED
from test_pool import FACES, context

import pooltrace
from pooltrace.errors import TaskTimeoutError, WorkerLostError
from pooltrace.format import order
from pooltrace.pool import losses
from pooltrace.pool.jobs import Unit
from pooltrace.pool.pool import StdPool
from pooltrace.pool.slots import Slot

Judge = Callable[[str | os.PathLike[str]], order.Summary]


def die_first(directory: str, times: int, x: int) -> int:
    """Kills its process the first times that it is called with an odd number."""
    if x % 2:
        for number in range(times):
            try:
                os.close(os.open(os.path.join(directory, f"{x}-{number}"), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
    return x * x


CALLS: dict[str, Callable[[Any, Any], list[int]]] = {
    "map": lambda pool, f: pool.map(f, range(6), 1),
    "map, chunks": lambda pool, f: pool.map(f, range(6), 2),
    "imap": lambda pool, f: list(pool.imap(f, iter(range(6)))),
    "imap_unordered": lambda pool, f: sorted(pool.imap_unordered(f, iter(range(6)), 2)),
    "apply": lambda pool, f: [pool.apply(f, (x,)) for x in range(6)],
    "apply_async": lambda pool, f: [one.get() for one in [pool.apply_async(f, (x,)) for x in range(6)]],
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("face", FACES)
def test_what_is_lost_runs_again_as_often_as_it_may(face: Any, call: str, tmp_path: Path) -> None:
    with face(2, retries=2) as pool:
        assert CALLS[call](pool, functools.partial(die_first, str(tmp_path), 2)) == [x * x for x in range(6)]
    assert len(list(tmp_path.iterdir())) == 3 * 2


def test_then_it_fails_and_says_so(tmp_path: Path) -> None:
    with StdPool(2, retries=2) as pool:
        with pytest.raises(
            WorkerLostError, match=r"killed by SIGKILL while it ran .*; it had been lost 2 times before"
        ):
            pool.apply(die_first, (str(tmp_path), 3, 1))
        assert pool.map(square, range(10)) == [x * x for x in range(10)]
    with StdPool(2, retries=1) as pool, pytest.raises(WorkerLostError, match=r"; it had been lost before$"):
        pool.apply(killed)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_only_lost_units_run_again(method: str, tmp_path: Path) -> None:
    """Not one that raises, and none that shared the worker with a lost one."""
    with StdPool(1, context=context(StdPool, method), retries=1) as pool:
        with pytest.raises(WorkerLostError):
            pool.map(functools.partial(note_and_die_at, str(tmp_path), 3), range(8), 1)
        with pytest.raises(LookupError):
            pool.map(functools.partial(note_and_raise_at, str(tmp_path), 13), range(10, 18), 1)
    ran = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert ran.count("3") == 2
    assert ran.count("13") == 1
    assert all(ran.count(name) == 1 for name in ran if name != "3")


def note_and_die_at(directory: str, which: int, x: int) -> None:
    Path(directory, f"{x}-{os.getpid()}").touch(exist_ok=False)
    killed_at(which, x)


def note_and_raise_at(directory: str, which: int, x: int) -> None:
    Path(directory, f"{x}-{os.getpid()}").touch(exist_ok=False)
    if x == which:
        raise LookupError(x)


def test_each_attempt_is_a_unit_of_the_trace(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with StdPool(1, retries=2) as pool, pooltrace.trace(path):
        assert pool.map(functools.partial(die_first, str(tmp_path), 2), range(2), 1) == [0, 1]
    judge(path)
    events = list(order.read_events(path))
    created = [
        e.arg("new_g")
        for e in events
        if e.name == "GoCreate" and e.stack("new_stack")[0].function.endswith("die_first")
    ]
    assert len(created) == len(set(created)) == 4
    assert [e.string("key") for e in events if e.name == "UserLog"].count("worker lost") == 2


def test_a_pool_whose_workers_are_killed_all_the_time_loses_nothing() -> None:
    """In brief; scripts/nightly has ten minutes of it."""
    script = Path(__file__).resolve().parent.parent / "scripts" / "soak.py"
    words = (sys.executable, script, "--kills", "40", "--every", "0.02", "--trace", "--seed", str(SEED))
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ": 40 workers killed, " in done.stdout


# -- units that take too long


@pytest.fixture
def only_waits_take_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is, other units are never late."""
    running = losses.running

    def seen(slots: Any) -> Iterator[tuple[Slot, Unit, float]]:
        for slot, unit, seconds in running(slots):
            yield slot, unit, seconds if "wait" in unit.job.name else 0.0

    monkeypatch.setattr(losses, "running", seen)


@pytest.mark.usefixtures("only_waits_take_time")
def test_a_unit_that_takes_too_long_fails_and_no_other(fifos: Fifos) -> None:
    """Those that wait behind it go to others; the pool lives on."""
    with StdPool(2, task_timeout=0.2) as pool:
        late = pool.apply_async(jobs.wait_between, fifos.names())
        fifos.wait()
        victim = {process.pid for process in pool._pool}
        assert pool.map(square, range(100), 1) == [x * x for x in range(100)]
        with pytest.raises(
            TaskTimeoutError, match=r"^jobs\.wait_between .* took longer than 0\.2 s; its worker pid \d+ was"
        ) as caught:
            late.get()
        assert caught.value.pid in victim
        assert caught.value.signal == signal.SIGKILL
        assert pool.map(square, range(100), 1) == [x * x for x in range(100)]


@pytest.mark.usefixtures("only_waits_take_time")
@pytest.mark.parametrize("call", ["map", "imap", "apply"])
@pytest.mark.parametrize("face", FACES)
def test_every_way_to_call_has_the_limit(face: Any, call: str, fifos: Fifos) -> None:
    runs: dict[str, Callable[[Any], Any]] = {
        "map": lambda pool: pool.starmap(jobs.wait_between, [fifos.names()]),
        "imap": lambda pool: list(pool.imap(wait_star, [fifos.names()])),
        "apply": lambda pool: pool.apply(jobs.wait_between, fifos.names()),
    }
    with face(1, task_timeout=0.2) as pool:
        assert [pool.apply(square, (3,)) for _ in range(3)] == [9] * 3
        opened = context(face, "fork").Process(target=fifos.wait)
        opened.start()
        with pytest.raises(TaskTimeoutError):
            runs[call](pool)
        opened.join()
        assert pool.apply(square, (3,)) == 9


def wait_star(names: tuple[str, str]) -> None:
    jobs.wait_between(*names)


@pytest.mark.usefixtures("only_waits_take_time")
def test_it_is_not_tried_again(fifos: Fifos) -> None:
    with StdPool(1, task_timeout=0.2, retries=5) as pool:
        late = pool.apply_async(jobs.wait_between, fifos.names())
        fifos.wait()
        with pytest.raises(TaskTimeoutError):
            late.get()
        assert pool.apply(identity, (7,)) == 7


@pytest.mark.usefixtures("only_waits_take_time")
def test_a_unit_that_ends_just_before_its_worker_is_killed(monkeypatch: pytest.MonkeyPatch, fifos: Fifos) -> None:
    """Its answer counts, no unit is lost, and the worker's end is no loss."""
    kill = Slot.kill

    def late(slot: Slot) -> None:
        assert slot.late is not None
        fifos.open()
        select.select([slot.channel], [], [])  # it has answered, and nobody has read that
        kill(slot)

    with StdPool(1, task_timeout=0.2) as pool:
        assert pool.apply(square, (3,)) == 9
        monkeypatch.setattr(Slot, "receive", lambda slot: [])
        monkeypatch.setattr(Slot, "kill", late)
        result = pool.apply_async(jobs.wait_between, fifos.names())
        fifos.wait()
        assert result.get() is None
        monkeypatch.undo()
        assert pool.apply_async(square, (3,)).get() == 9


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(TaskTimeoutError("f took", pid=5, signal=9)))
    assert (type(error), str(error), error.pid, error.signal) == (TaskTimeoutError, "f took", 5, 9)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"retries": -1}, "retries is how often"),
        ({"retries": "2"}, "retries is how often"),
        ({"task_timeout": 0}, "task_timeout is a number of seconds"),
        ({"task_timeout": -1.0}, "task_timeout is a number of seconds"),
        ({"task_timeout": float("inf")}, "task_timeout is a number of seconds"),
        ({"task_timeout": float("nan")}, "task_timeout is a number of seconds"),
        ({"task_timeout": "5"}, "task_timeout is a number of seconds"),
    ],
)
def test_what_makes_no_sense_is_told(face: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        face(1, **options)
