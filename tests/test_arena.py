"""Where arenas lie, and what becomes of those whose process is dead."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pooltrace.tracer import arena, session

DAY = 24 * 3600
Leave = Callable[..., Path]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for arenas of this test alone."""
    monkeypatch.setenv("POOLTRACE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def dead() -> int:
    """The pid of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave(base: Path, pid: int, age: float, *, uid: int | None = None, name: str = "x") -> Path:
    """A directory as that process would have left it, changed so many seconds ago."""
    directory = base / f"pooltrace-{os.getuid() if uid is None else uid}-{pid}-{name}"
    directory.mkdir()
    (directory / "arena").write_bytes(b"")
    os.utime(directory, (time.time() - age,) * 2)
    return directory


def make_an_arena() -> None:
    assert arena.acquire()
    arena.release()


def test_old_ones_of_dead_processes_are_swept_and_no_others(base: Path, dead: int) -> None:
    swept = [leave(base, dead, DAY + 60), leave(base, dead, 9 * DAY, name="y-z")]
    kept = [
        leave(base, dead, DAY - 600, name="young"),
        leave(base, os.getpid(), 9 * DAY, name="mine"),
        leave(base, os.getppid(), 9 * DAY, name="alive"),
        leave(base, dead, 9 * DAY, uid=os.getuid() + 1, name="anothers"),
        leave(base, dead, 9 * DAY, name="bare").rename(base / f"pooltrace-{os.getuid()}-{dead}"),
        leave(base, dead, 9 * DAY, name="other").rename(base / f"other-{os.getuid()}-{dead}-x"),
    ]
    file, link = (base / f"pooltrace-{os.getuid()}-{dead}-{name}" for name in ("file", "link"))
    file.write_text("")
    os.utime(file, (0, 0))
    link.symlink_to(kept[0], target_is_directory=True)
    os.utime(link, (0, 0), follow_symlinks=False)
    make_an_arena()
    assert not [path for path in swept if path.exists()]
    assert sorted(base.iterdir()) == sorted([*kept, file, link])


def test_a_sweep_is_bounded(base: Path, dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "_MOST_SWEPT", 3)
    for number in range(5):
        leave(base, dead, 9 * DAY, name=str(number))
    make_an_arena()
    assert len(list(base.iterdir())) == 2
    make_an_arena()
    assert not list(base.iterdir())


def test_what_cannot_be_swept_is_no_error(base: Path, dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = leave(base, dead, 9 * DAY)

    def refuse(path: object) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "scandir", refuse)
    make_an_arena()
    assert left.exists()


def test_a_relative_place_stays_where_it_is(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = base / "here", base / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(base)
    monkeypatch.setenv("POOLTRACE_DIR", "here")
    assert arena.acquire()
    monkeypatch.chdir(there)
    place = arena.worker_open(1)
    assert os.path.isabs(place.path)
    assert os.path.exists(place.path)
    place.gone(None)
    arena.release()
    assert not list(here.iterdir())


def test_discard_gives_back_what_is_ours_alone(base: Path) -> None:
    arena.discard()  # there is none
    with session.trace(io.BytesIO()):
        pid = os.fork()
        if pid == 0:
            arena.discard()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert len(list(base.iterdir())) == 1
        with arena._lock:  # held by whom a signal has interrupted
            arena.discard()
        assert not list(base.iterdir())
    make_an_arena()
