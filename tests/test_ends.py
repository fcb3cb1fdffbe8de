"""How a pool ends: quickly, quietly, and with nothing left behind; whoever ends it, and whatever its workers do."""

from __future__ import annotations

import contextlib
import gc
import glob
import multiprocessing
import os
import selectors
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from multiprocessing import util
from typing import Any

import pytest
from faults import ignore_terminate, square, stop_self, unless_three, wait_for_file
from test_pool import FACES, context

from pooltrace.errors import PoolTerminatedError, WorkerLostError
from pooltrace.pool import engine
from pooltrace.pool.pool import StdPool


def lose_three(x: int) -> int:
    return unless_three("killed", x)


@pytest.mark.parametrize("task", [stop_self, ignore_terminate])
def test_a_worker_that_does_not_end_when_told(task: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is stopped goes on, to its end; one that ignores SIGTERM is killed."""
    monkeypatch.setattr(engine, "GRACE", 0.2 if task is ignore_terminate else 60.0)
    path = str(tmp_path / "begun")
    pool = StdPool(1)
    result = pool.apply_async(task, (path,))
    pool.apply_async(wait_for_file, ("/nowhere",))
    while not os.path.exists(path):
        os.sched_yield()
    pool.terminate()
    pool.join()
    assert pool._pool[0].exitcode == -(signal.SIGKILL if task is ignore_terminate else signal.SIGTERM)
    with pytest.raises(PoolTerminatedError, match="terminated"):
        result.get()


def save_at_the_end(begun: str, go: str, saved: str) -> None:
    """A task that saves something when it is told to end, and takes its time."""

    def save(*_: object) -> None:
        with open(begun, "w") as file:
            file.write("saving")
        with open(go):
            pass
        with open(saved, "w") as file:
            file.write("saved")
        os._exit(5)

    signal.signal(signal.SIGTERM, save)
    with open(begun, "w") as file:
        file.write("ready")
    while True:
        signal.pause()


def test_the_end_of_a_pool_takes_a_second_at_most() -> None:
    assert engine.PARTING + engine.GRACE <= 0.8


def test_a_worker_may_save_something_when_it_is_told_to_end(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "GRACE", 60.0)
    begun, go, saved = (str(tmp_path / name) for name in ("begun", "go", "saved"))
    os.mkfifo(begun)
    os.mkfifo(go)
    pool = StdPool(1)
    pool.apply_async(save_at_the_end, (begun, go, saved))
    with open(begun) as file:
        assert file.read() == "ready"
    ending = threading.Thread(target=pool.terminate)
    ending.start()
    with open(begun) as file:
        assert file.read() == "saving"
    with open(go, "w"):
        pass
    ending.join()
    assert pool._pool[0].exitcode == 5
    with open(saved) as file:
        assert file.read() == "saved"


def mark_at_exit(directory: str) -> None:
    util.Finalize(None, open, (os.path.join(directory, str(os.getpid())), "w"), exitpriority=1)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_idle_workers_end_as_processes_do(method: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their finalizers and exit handlers: queues are flushed, coverage is saved."""
    monkeypatch.setattr(engine, "PARTING", 60.0)
    with StdPool(2, mark_at_exit, (str(tmp_path),), context=context(StdPool, method)) as pool:
        while not all(slot.ready for slot in pool._engine._slots):
            pool.map(square, range(4), 1)
        pids = {str(process.pid) for process in pool._pool}
    assert set(os.listdir(tmp_path)) == pids
    assert [process.exitcode for process in pool._pool] == [0, 0]


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
    def census() -> dict[str, set[str]]:
        """What there is, by names that nothing has twice: what an earlier test left may go meanwhile."""
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, check=False)
        links = {name: f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")}
        return {
            "descriptors": {f"{name} {os.readlink(link)}" for name, link in links.items() if os.path.lexists(link)},
            "threads": {str(thread.ident) for thread in threading.enumerate()},
            "arenas": set(glob.glob(f"/dev/shm/pooltrace-*-{os.getpid()}-*")),
            "children": {pid for pid in children.stdout.decode().split() if os.path.exists(f"/proc/{pid}")},  # not ps
        }

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
    for what, there in census().items():
        assert there <= before[what], what


def thread_that_does_not_start(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("face", FACES)
def test_without_a_thread_there_is_no_pool_and_nothing_is_left(face: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    descriptors = os.listdir("/proc/self/fd")
    monkeypatch.setattr(threading.Thread, "start", thread_that_does_not_start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        face(2)
    monkeypatch.undo()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    assert not glob.glob(f"/dev/shm/pooltrace-*-{os.getpid()}-*")
    assert multiprocessing.active_children() == []
    with face(2) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", thread_that_does_not_start)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                pool.imap(square, range(5))
        assert pool.map(square, range(5)) == [x * x for x in range(5)]
        pool.close()
        pool.join()


PROGRAM = """
    import os, sys, signal, threading
    sys.path.insert(0, sys.argv[1])
    from faults import wait_for_file, touch, square, touch_and_hang
    from pooltrace.pool.pool import StdPool

    if __name__ == "__main__":
        pool = StdPool(2)
        print(*(process.pid for process in pool._pool), flush=True)
"""


def run_program(home: Any, rest: str, *args: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    here = os.path.dirname(os.path.abspath(__file__))
    code = textwrap.dedent(PROGRAM) + textwrap.indent(textwrap.dedent(rest), "    ")
    return subprocess.Popen(
        [sys.executable, *options, "-c", code, here, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "POOLTRACE_DIR": str(home), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


def pidfds(program: subprocess.Popen[str]) -> list[int]:
    """Handles of its workers; those that have gone already need none."""
    assert program.stdout is not None
    found = []
    for pid in program.stdout.readline().split():
        with contextlib.suppress(ProcessLookupError):
            found.append(os.pidfd_open(int(pid)))
    return found


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


@pytest.mark.parametrize(
    "rest",
    [
        "r = pool.apply_async(square, (3,), callback=lambda x: pool.terminate()); r.wait()",
        """
        with pool:
            pool.apply_async(square, (3,), callback=lambda x: pool.terminate()).wait()
        """,
        "r = pool.apply_async(square, (3,)); del pool; r.wait()",
        """
        wait = threading.Event.wait
        def interrupted(self, timeout=None):
            wait(self, timeout)
            threading.Event.wait = wait
            raise KeyboardInterrupt
        threading.Event.wait = interrupted
        try:
            StdPool(2)
        except KeyboardInterrupt:
            pool.close()
            pool.join()
        """,
    ],
)
def test_ends_that_nobody_waits_for(rest: str, tmp_path: Any) -> None:
    """By a callback, by the dropping of the last reference, by Ctrl-C in the constructor: nothing is left at exit."""
    program = run_program(tmp_path, rest, options=("-W", "ignore"))
    workers = pidfds(program)
    _, err = program.communicate()
    assert (program.returncode, err) == (0, "")
    wait_gone(workers)
    assert os.listdir(tmp_path) == []
