"""The engine under faults: the unit that went wrong fails with a named error, the others are right, nothing hangs."""

from __future__ import annotations

import fcntl
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.pool import MaybeEncodingError, RemoteTraceback
from typing import Any

import jobs
import numpy
import pytest
from faults import (
    METHODS,
    Fifos,
    KillsReader,
    NotPicklable,
    NotUnpicklable,
    add,
    add_size,
    dying_initializer,
    failing_initializer,
    getpid,
    identity,
    killed,
    make_lambda,
    make_not_picklable,
    make_not_unpicklable,
    run_short,
    size,
    square,
    unless_three,
)
from test_pool import FACES, context

import pooltrace
from pooltrace.errors import PoolBrokenError, TaskExitError, WorkerLostError
from pooltrace.pool import worker
from pooltrace.pool.pool import Pool, StdPool
from pooltrace.pool.slots import Slot
from pooltrace.tracer import session

LOSSES = {
    "killed": (signal.SIGKILL, None, "killed by SIGKILL"),
    "exited": (None, 7, "exited with status 7"),
    "crashed": (signal.SIGSEGV, None, "killed by SIGSEGV"),
}
ERRORS: dict[str, tuple[type[BaseException], str | None]] = {
    "left": (TaskExitError, r"SystemExit\(3\)"),
    "interrupted": (KeyboardInterrupt, None),
    "interrupted_by_signal": (KeyboardInterrupt, None),
    "raised": (LookupError, "three"),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Any:
    return request.param


def results_of(pool: Any, way: str, count: int = 8) -> list[Any]:
    """Squares of range(count), each a unit of its own, 3 going wrong; what raised is in its place."""
    units = [pool.apply_async(unless_three, (way, x)) for x in range(count)]
    found: list[Any] = []
    for unit in units:
        try:
            found.append(unit.get())
        except BaseException as error:
            found.append(error)
    return found


@pytest.mark.parametrize("way", LOSSES)
@pytest.mark.parametrize("face", FACES)
def test_a_worker_that_dies_at_work(face: Any, method: str, way: str) -> None:
    number, code, text = LOSSES[way]
    with face(2, context=context(face, method)) as pool:
        found = results_of(pool, way)
        error = found.pop(3)
        assert found == [x * x for x in range(8) if x != 3]
        assert isinstance(error, WorkerLostError)
        assert error.signal == number
        assert error.exitcode == code
        assert text in str(error)
        assert "unless_three" in str(error)
        assert pool.map(square, range(20), 1) == [x * x for x in range(20)]
        assert error.pid not in {process.pid for process in pool._pool}
    pool.join()


@pytest.mark.parametrize("way", ERRORS)
@pytest.mark.parametrize("face", FACES)
def test_a_task_that_only_wants_to_end(face: Any, way: str) -> None:
    """SystemExit and KeyboardInterrupt are the task's error; its worker goes on."""
    kind, text = ERRORS[way]
    with face(2, context=context(face, "fork")) as pool:
        pids = {process.pid for process in pool._pool}
        found = results_of(pool, way)
        error = found.pop(3)
        assert found == [x * x for x in range(8) if x != 3]
        with pytest.raises(kind, match=text):
            raise error
        assert set(pool.map(getpid, range(8), 1)) <= pids


@pytest.mark.parametrize("face", FACES)
def test_map_with_a_lost_worker_fails_once_and_the_pool_lives(face: Any) -> None:
    with face(2) as pool:
        for _ in range(5):
            with pytest.raises(WorkerLostError, match="items 2 to 3"):
                pool.starmap(unless_three, [("killed", x) for x in range(20)], 2)
        assert pool.map(square, range(20), 1) == [x * x for x in range(20)]
        lost = pool.imap(lose_three, range(6))
        assert [next(lost) for _ in range(3)] == [0, 1, 4]
        with pytest.raises(WorkerLostError):
            next(lost)
        assert list(lost) == [16, 25]


def lose_three(x: int) -> int:
    return unless_three("killed", x)


def test_no_unit_runs_twice(tmp_path: Any) -> None:
    """Workers are killed at random moments; each unit leaves one mark if it ran, and none ran twice."""
    marks = str(tmp_path)
    with StdPool(2) as pool:
        units = [pool.apply_async(mark, (marks, x, x % 10 == 5)) for x in range(100)]
        lost = 0
        for x, unit in enumerate(units):
            if x % 10 == 5:
                with pytest.raises(WorkerLostError):
                    unit.get()
                lost += 1
            else:
                assert unit.get() == x
    assert lost == 10
    assert sorted(int(name) for name in os.listdir(marks)) == list(range(100))


def mark(directory: str, x: int, die: bool) -> int:
    with open(os.path.join(directory, str(x)), "x"):  # fails if it is there
        pass
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()
    return x


def test_idle_workers_that_are_killed(method: str) -> None:
    with StdPool(2, context=context(StdPool, method)) as pool:
        for _ in range(3):
            pool.map(square, range(4), 1)
            for process in pool._pool:
                os.kill(process.pid, signal.SIGKILL)
            assert pool.map(square, range(20), 1) == [x * x for x in range(20)]
        pool.close()
        pool.join()


@pytest.mark.parametrize("face", FACES)
def test_what_cannot_be_pickled(face: Any) -> None:
    """In all four directions, and twice: the worker is not lost by it."""
    encoding: Any = sys.modules[face._family + ".pool"].MaybeEncodingError
    with face(1) as pool:
        pid = pool.apply(getpid)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="cannot be pickled"):
                pool.map(identity, [1, NotPicklable(), 3], 1)
            with pytest.raises(RuntimeError, match="cannot be unpickled"):
                pool.map(identity, [1, NotUnpicklable(), 3], 1)
            with pytest.raises(encoding, match="cannot be pickled"):
                pool.map(make_not_picklable, [1])
            with pytest.raises(encoding, match="cannot be unpickled"):
                pool.map(make_not_unpicklable, [1])
            with pytest.raises(encoding, match="TwoArguments") as caught:
                pool.apply(unless_three, ("unreadable", 3))
            assert "raise TwoArguments" in str(caught.value.__cause__)
        assert pool.apply(getpid) == pid


def test_lambdas() -> None:
    """Arguments and functions may be lambdas under both faces; a result only where the stock pool can do it."""
    factor = 7
    for face in FACES:
        with face(1, context=context(face, "spawn")) as pool:
            assert pool.map(lambda x: x * factor, range(5)) == [0, 7, 14, 21, 28]
            assert pool.apply(call, (lambda: factor,)) == 7
            if face is Pool:
                assert pool.apply(make_lambda, (1,))() == 42
            else:
                with pytest.raises(MaybeEncodingError):
                    pool.apply(make_lambda, (1,))


def call(function: Any) -> Any:
    return function()


def test_what_a_closure_counts_begins_anew_with_each_chunk() -> None:
    """As in the stock pools, which pickle it with each."""
    count = 5

    def counted(x: int) -> tuple[int, int]:
        nonlocal count
        count += 1
        return x, count

    with StdPool(1) as pool:
        assert pool.map(counted, range(4), 2) == [(0, 6), (1, 7), (2, 6), (3, 7)]


def test_an_argument_that_kills_its_reader() -> None:
    with StdPool(2) as pool:
        found = [pool.apply_async(identity, (x,)) for x in (1, KillsReader(), 3)]
        assert found[0].get() == 1
        assert found[2].get() == 3
        with pytest.raises(WorkerLostError, match="identity"):
            found[1].get()


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("initializer", "text"), [(failing_initializer, "no licence"), (dying_initializer, "status 9")]
)
def test_initializer_that_fails(face: Any, method: str, initializer: Any, text: str) -> None:
    """The stock pool starts workers for ever; ours gives up, and says why."""
    with face(2, initializer, context=context(face, method)) as pool:
        with pytest.raises(PoolBrokenError, match=text):
            pool.map(square, range(10))
        with pytest.raises(PoolBrokenError, match=text):
            pool.apply(square, (1,))
        with pytest.raises(PoolBrokenError, match=text):
            next(pool.imap(square, iter(range(10))))
        pool.close()
        pool.join()


def test_large_things_cross(method: str) -> None:
    """64 MiB each way at once, in band and out of band, with more of them than fit anywhere."""
    with StdPool(2, context=context(StdPool, method)) as pool:
        data = bytes(64 << 20)
        assert pool.map(size, [data] * 3, 1) == [64 << 20] * 3
        array = numpy.arange(8 << 20)
        back = pool.map(identity, [array, array], 1)
        assert all(bool((one == array).all()) and one.flags.writeable for one in back)


def test_a_worker_without_memory_for_a_function_is_not_asked_again(method: str) -> None:
    """The unit fails that came with it; those behind it go to a worker that has the function sent anew."""
    with StdPool(1, context=context(StdPool, method)) as pool:
        short = pool.apply(getpid)
        pool.apply(run_short, (32 << 20,))
        heavy = functools.partial(add_size, bytes(100 << 20))
        results = pool.imap(heavy, range(3))
        with pytest.raises(MemoryError):
            next(results)
        assert list(results) == [(100 << 20) + 1, (100 << 20) + 2]
        assert pool.apply(getpid) != short


def test_a_worker_whose_window_is_full_is_given_no_more(fifos: Fifos) -> None:
    """While it is in a long unit, more are sent to it and taken back than there are places on the way."""
    with StdPool(2) as pool:
        long = pool.apply_async(jobs.wait_between, fifos.names())
        fifos.wait()
        ends = [slot.end for slot in pool._engine._slots if slot.end is not None]
        while all(end.room for end in ends):
            assert pool.map(square, range(50), 1) == [x * x for x in range(50)]
        assert pool.map(square, range(500), 1) == [x * x for x in range(500)]
        fifos.open()
        assert long.get() is None
        assert pool.map(square, range(500), 1) == [x * x for x in range(500)]


def test_worker_killed_while_it_sends() -> None:
    with StdPool(2) as pool:
        unit = pool.apply_async(send_and_die, (16 << 20,))
        assert pool.map(square, range(20), 1) == [x * x for x in range(20)]
        with pytest.raises(WorkerLostError):
            unit.get()


def test_an_answer_that_a_dead_worker_left_unread_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with StdPool(1) as pool:
        assert pool.apply(square, (2,)) == 4
        monkeypatch.setattr(Slot, "receive", lambda slot: [])
        answered, lost = pool.apply_async(square, (3,)), pool.apply_async(killed)
        with pytest.raises(WorkerLostError, match=r"killed by SIGKILL while it ran faults\.killed"):
            lost.get()
        assert answered.get() == 9


def test_a_worker_has_no_thread_of_ours(method: str, tmp_path: Any) -> None:
    with pooltrace.trace(tmp_path / "t.trace"), StdPool(1, context=context(StdPool, method)) as pool:
        assert pool.map(jobs.threads, range(3), 1) == [1, 1, 1]


def send_and_die(count: int) -> bytes:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    return bytes(count * 16)


@pytest.mark.parametrize(
    ("child", "status", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit()", 0, ""),
        ("print('from the child')", 0, "from the child\n"),
        ("sys.exit('gone')", 1, "gone\n"),
        ("raise LookupError('gone')", 1, "LookupError: gone\n"),
    ],
)
def test_the_child_that_a_task_forks_ends_as_a_program_does(child: str, status: int, said: str, tmp_path: Any) -> None:
    path = str(tmp_path / "said")
    with StdPool(1) as pool:
        assert os.waitstatus_to_exitcode(pool.apply(fork_and, (child, path))) == status
        assert pool.apply(square, (3,)) == 9
    with open(path) as file:
        assert file.read().endswith(said)


def fork_and(child: str, path: str) -> int:
    pid = os.fork()
    if pid == 0:
        with open(path, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
        exec(child)
        return 0
    return os.waitpid(pid, 0)[1]


def test_before_linux_5_10_the_lifeline_is_not_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the end of one worker would be told to all the others, as if the parent were gone."""
    armed: list[int] = []
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, command, *rest: armed.append(command))
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "4.18.0-553.el8", "1", "x86_64")))
    worker._die_with_parent(-1)
    assert armed == []


def test_a_task_that_forks_or_closes_everything() -> None:
    with StdPool(2) as pool:
        found = results_of(pool, "forked")
        assert found == [x * x for x in range(8)]
        # its worker can tell nobody any more, but what it has answered is in the page that it shares with the parent
        assert results_of(pool, "closed_all") == [x * x for x in range(8)]
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        assert pool.map(square, range(8)) == [x * x for x in range(8)]


# -- traces


@pytest.mark.parametrize("face", FACES)
def test_the_trace_of_a_pool(face: Any, method: str, tmp_path: Any, judge: Callable[[str], Any]) -> None:
    """Every kind of call, a lost worker, a trace that starts before the pool; many generations."""
    path = str(tmp_path / "a.trace")
    with session.trace(path, period=0.02), face(2, context=context(face, method)) as pool:
        pool.map(square, range(100), 3)
        assert len(list(pool.imap(square, iter(range(20))))) == 20
        pool.apply(square, (2,))
        with pytest.raises(WorkerLostError):
            pool.starmap(unless_three, [("killed", x) for x in range(6)], 1)
        with pytest.raises(LookupError):
            pool.apply(unless_three, ("raised", 3))
        pool.close()
        pool.join()
    summary = session.summary()
    assert summary["jobs"] == 5
    assert summary["workers_lost"] == 1
    assert summary["lost_events"] == 0
    counts = {function["name"]: function["count"] for function in summary["functions"]}
    assert counts["faults.square"] == 121
    assert counts["faults.unless_three"] in (6, 7)  # the one that was lost has no end
    judge(path)


def test_traces_that_come_and_go_on_a_running_pool(tmp_path: Any, judge: Callable[[str], Any]) -> None:
    with StdPool(2) as pool:
        for number in range(3):
            before = pool.map_async(square, range(200), 1)
            path = str(tmp_path / f"{number}.trace")
            with session.trace(path, period=0.01):
                results = pool.imap_unordered(square, iter(range(200)))
                assert sorted(results) == [x * x for x in range(200)]
                before.get()
                assert pool.starmap(add, [(1, 2)] * 50, 1) == [3] * 50
            assert session.summary()["units"] >= 250
            judge(path)
            assert pool.map(square, range(50), 1) == [x * x for x in range(50)]


def test_remote_traceback_is_the_users_own() -> None:
    with StdPool(1) as pool, pytest.raises(LookupError) as caught:
        pool.apply(unless_three, ("raised", 3))
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "worker.py" not in str(caught.value.__cause__)
