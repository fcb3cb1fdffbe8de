"""The engine under faults: the unit that went wrong fails with a named error, the others are right, nothing hangs."""

from __future__ import annotations

import gc
import glob
import os
import selectors
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from multiprocessing.pool import MaybeEncodingError, RemoteTraceback
from typing import Any

import numpy
import pytest
from faults import (
    METHODS,
    KillsReader,
    NotPicklable,
    NotUnpicklable,
    add,
    bounded,  # noqa: F401
    dying_initializer,
    failing_initializer,
    getpid,
    identity,
    ignore_terminate,
    make_lambda,
    make_not_picklable,
    make_not_unpicklable,
    size,
    square,
    stop_self,
    unless_three,
    wait_for_file,
)
from test_pool import FACES, context

from pooltrace.errors import PoolBrokenError, PoolTerminatedError, TaskExitError, WorkerLostError
from pooltrace.pool import frames
from pooltrace.pool.pool import Pool, StdPool
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


def test_stopped_worker_does_not_hold_up_terminate(tmp_path: Any) -> None:
    for task in (stop_self, ignore_terminate):
        path = str(tmp_path / task.__name__)
        pool = StdPool(1)
        result = pool.apply_async(task, (path,))
        pool.apply_async(wait_for_file, ("/nowhere",))
        while not os.path.exists(path):
            os.sched_yield()
        before = time.monotonic()
        pool.terminate()
        pool.join()
        assert time.monotonic() - before < 5
        assert not pool._pool[0].is_alive()
        with pytest.raises(PoolTerminatedError, match="terminated"):
            result.get()


class DeathsFirst(selectors.DefaultSelector):
    """Tells of a death before it tells that the dead worker's channel has ended; both are there by then."""

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(timeout)
        return sorted(super().select(0) or found, key=lambda one: isinstance(one[0].fileobj, socket.socket))


@pytest.mark.parametrize("way", ["terminate", "close"])
def test_a_death_and_the_end_of_its_channel_may_come_in_any_order(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selectors, "DefaultSelector", DeathsFirst)
    raised: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: raised.append(error))
    monkeypatch.setattr(threading, "excepthook", raised.append)
    for _ in range(5):
        pool = StdPool(2)
        with pytest.raises(WorkerLostError):
            pool.map(lose_three, range(6), 1)
        assert pool.map(square, range(6), 1) == [x * x for x in range(6)]
        getattr(pool, way)()
        pool.join()
        assert not any(process.is_alive() for process in pool._pool)
    assert raised == []


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


def test_worker_killed_while_it_sends() -> None:
    with StdPool(2) as pool:
        unit = pool.apply_async(send_and_die, (16 << 20,))
        assert pool.map(square, range(20), 1) == [x * x for x in range(20)]
        with pytest.raises(WorkerLostError):
            unit.get()


def send_and_die(count: int) -> bytes:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    return bytes(count * 16)


def test_a_task_that_forks_or_closes_everything() -> None:
    with StdPool(2) as pool:
        found = results_of(pool, "forked")
        assert found == [x * x for x in range(8)]
        found = results_of(pool, "closed_all")
        error = found.pop(3)
        assert found == [x * x for x in range(8) if x != 3]
        assert isinstance(error, WorkerLostError)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        assert pool.map(square, range(8)) == [x * x for x in range(8)]


def test_a_context_that_cannot_start_a_second_process() -> None:
    class Broken:
        """A context whose third process does not start."""

        def __init__(self, ctx: Any) -> None:
            self.ctx, self.left, self._name = ctx, 2, "fork"
            self.started: list[Any] = []

        def Process(self, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise OSError("no more processes")
            self.started.append(self.ctx.Process(**kwargs))
            return self.started[-1]

    gc.collect()
    before = os.listdir("/proc/self/fd")
    ctx = Broken(context(StdPool, "fork"))
    with pytest.raises(OSError, match="no more processes"):
        StdPool(3, context=ctx)
    assert not any(process.is_alive() for process in ctx.started)
    ctx.started.clear()
    gc.collect()  # the exception's frames refer to the processes
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_two_hundred_pools_leave_nothing() -> None:
    def census() -> tuple[int, int, int, int]:
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, check=False)
        return (
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            len(glob.glob(f"/dev/shm/pooltrace-*-{os.getpid()}-*")),
            len(children.stdout.split()),
        )

    with StdPool(1) as pool:
        pool.map(square, range(4))
    pool.join()
    del pool
    gc.collect()
    before = census()
    for index in range(200):
        pool = FACES[index % 2](2)
        assert pool.map(square, range(4), 1) == [0, 1, 4, 9]
        if index % 3:
            pool.close()
        else:
            pool.terminate()
        pool.join()
        del pool
    assert census() == before


PROGRAM = """
    import os, sys, signal, threading
    sys.path.insert(0, sys.argv[1])
    from faults import wait_for_file, touch, square, touch_and_hang
    from pooltrace.pool.pool import StdPool

    if __name__ == "__main__":
        pool = StdPool(2)
        print(*(process.pid for process in pool._pool), flush=True)
"""


def run_program(home: Any, rest: str, *args: str) -> subprocess.Popen[str]:
    here = os.path.dirname(os.path.abspath(__file__))
    code = textwrap.dedent(PROGRAM) + textwrap.indent(textwrap.dedent(rest), "    ")
    return subprocess.Popen(
        [sys.executable, "-c", code, here, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "POOLTRACE_DIR": str(home), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


def pidfds(program: subprocess.Popen[str]) -> list[int]:
    assert program.stdout is not None
    return [os.pidfd_open(int(pid)) for pid in program.stdout.readline().split()]


def wait_gone(fds: list[int]) -> None:
    """Waits until these processes are dead; the test's own limit bounds it."""
    import select

    for fd in fds:
        select.select([fd], [], [])
        os.close(fd)


def test_ctrl_c_is_quiet(tmp_path: Any) -> None:
    """SIGINT to the whole foreground group, as a terminal sends it, during a map: one traceback, the program's own."""
    path = str(tmp_path / "started")
    program = run_program(tmp_path, "pool.map(touch_and_hang, [sys.argv[2]], 1)", path)
    workers = pidfds(program)
    while not os.path.exists(path):
        os.sched_yield()
    os.killpg(program.pid, signal.SIGINT)
    _, err = program.communicate()
    assert program.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1
    wait_gone(workers)


@pytest.mark.parametrize("task", ["idle", "busy"])
def test_workers_of_a_killed_parent_go(task: str, tmp_path: Any) -> None:
    rest = "pool.map(square, range(8)); print('idle', flush=True); threading.Event().wait()"
    if task == "busy":
        rest = "r = pool.map_async(wait_for_file, ['/nowhere'] * 8); pool.apply; print('idle', flush=True); r.get()"
    program = run_program(tmp_path, rest)
    workers = pidfds(program)
    assert program.stdout is not None
    assert program.stdout.readline() == "idle\n"
    program.kill()
    wait_gone(workers)
    program.communicate()


@pytest.mark.parametrize(
    "rest",
    [
        "pool.map(square, range(8))",
        "r = pool.map_async(wait_for_file, ['/nowhere'] * 8)",
        "pool.map(square, range(8)); sys.exit(0)",
        "pool.close()",
    ],
)
def test_interpreter_exit_does_not_hang(rest: str, tmp_path: Any) -> None:
    program = run_program(tmp_path, rest)
    out, err = program.communicate()
    assert (program.returncode, err) == (0, "")
    assert len(out.split()) == 2
    assert not [pid for pid in out.split() if os.path.exists(f"/proc/{pid}")]
    assert os.listdir(tmp_path) == []


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


# -- frames


def test_frames_of_all_sizes_cross_a_socket_in_pieces() -> None:
    left, right = socket.socketpair()
    outbox, receiver = frames.Outbox(left), frames.Receiver(right)
    left.setblocking(False)
    right.setblocking(False)
    sizes = [0, 1, 100, 5000, 300_000, 3, (256 << 10) - 48, (256 << 10) - 47, 2_000_000, 7]
    sent = []
    for number, count in enumerate(sizes):
        payload, extra = os.urandom(count), [memoryview(os.urandom(number * 1000))] * (number % 3)
        sent.append((number, payload, [bytes(piece) for piece in extra]))
        outbox.add(frames.pack(frames.MAP, 0, 5, number, 9, b"f" * (number % 2), payload, extra))
    got = []
    while len(got) < len(sizes):
        outbox.flush()
        try:
            receiver.fill()
        except BlockingIOError:
            continue
        while (frame := receiver.take()) is not None:
            assert (frame.kind, frame.generation, frame.job) == (frames.MAP, 5, 9)
            assert bytes(frame.function) == b"f" * (frame.unit % 2)
            got.append((frame.unit, bytes(frame.payload), [bytes(piece) for piece in frame.buffers]))
    assert got == sent
    assert not outbox
    left.close()
    assert receiver.fill() == 0
    right.close()


def test_a_claim_is_taken_once() -> None:
    claims = frames.Claims()
    claims.offer(3)
    assert claims.take()
    assert frames.take_claim(claims.read_fd)
    assert claims.left() == 1
    assert not claims.take()
    claims.close()


def test_remote_traceback_is_the_users_own() -> None:
    with StdPool(1) as pool, pytest.raises(LookupError) as caught:
        pool.apply(unless_three, ("raised", 3))
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "worker.py" not in str(caught.value.__cause__)
