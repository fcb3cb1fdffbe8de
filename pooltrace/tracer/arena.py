"""The shared mapping: where it lies, how long it stays, and how a worker gets its place in it.

One arena per parent process, in a directory of its own (0700; the file 0600), below ``$POOLTRACE_DIR``, else /dev/shm,
else the temporary directory.  It exists while a pool or a trace does.  The layout is in ``core/core.h``.  Nothing here
raises into a pool: where the arena cannot be had, workers run untraced and the reason is logged once.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import time

from pooltrace.tracer import _core

_ABANDONED = 24 * 3600  # seconds after which a dead process's directory is of no use to anybody
_MOST_ENTRIES, _MOST_SWEPT = 10_000, 100  # looked at, and removed, by one process

_log = logging.getLogger("pooltrace")
_lock = threading.Lock()
_users = 0  # under _lock: pools and traces that need the arena
_directory: str | None = None  # under _lock
_broken = False  # under _lock: it could not be made, and that was logged


def _base() -> str:
    chosen = os.environ.get("POOLTRACE_DIR")
    if chosen:
        return os.path.abspath(chosen)  # the program may go to another directory
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else tempfile.gettempdir()


def _sweep(base: str) -> None:
    """Removes what dead processes of this user have left in ``base``; bounded, and never raises.

    Only what has not changed for 24 hours: what a parent that was killed leaves is not lost before, and may be put
    together.  A process that only another PID namespace sees looks dead, too: if it is that old, its next workers run
    untraced.
    """
    ours = re.compile(rf"pooltrace-{os.getuid()}-(\d+)-.*", re.DOTALL)
    swept = 0
    with contextlib.suppress(OSError), os.scandir(base) as entries:
        for entry in itertools.islice(entries, _MOST_ENTRIES):
            found = ours.fullmatch(entry.name)
            if found and swept < _MOST_SWEPT and _is_abandoned(entry, found[1]):
                shutil.rmtree(entry.path, ignore_errors=True)
                swept += 1


def _is_abandoned(entry: os.DirEntry[str], pid: str) -> bool:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or time.time() - status.st_mtime < _ABANDONED:
        return False
    return os.path.exists("/proc/self") and not os.path.exists(f"/proc/{pid}")


def _create() -> None:
    """Makes directory and mapping.  Raises OSError.  Under _lock."""
    global _directory
    base = _base()
    _sweep(base)
    directory = tempfile.mkdtemp(prefix=f"pooltrace-{os.getuid()}-{os.getpid()}-", dir=base)
    try:
        _core.arena_create(os.path.join(directory, "arena"))
    except OSError:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    _directory = directory


def acquire(*, required: bool = False) -> bool:
    """Takes one reference to the arena and makes it if there is none; False when it cannot be had.

    With ``required`` (a trace), the OSError is raised instead and no reference is kept.
    """
    global _users, _broken
    with _lock:
        if _directory is None:
            try:
                _create()
            except OSError as error:
                if required:
                    raise
                if not _broken:
                    _log.warning(
                        "pooltrace: no trace is possible here: %s (set POOLTRACE_DIR to a writable directory)", error
                    )
                _broken = True
        _users += 1
        return _directory is not None


def release() -> None:
    """Gives one reference back; with the last one the arena goes away, file and all."""
    global _users, _directory
    with _lock:
        _users = max(0, _users - 1)
        if _users == 0 and _directory is not None:
            _core.arena_destroy()
            shutil.rmtree(_directory, ignore_errors=True)
            _directory = None


def discard() -> None:
    """For a process that is about to die by a signal: removes its directory; mappings stay as they are.

    Takes no lock, since a signal handler may have interrupted who holds it.  Does nothing in a forked child: the
    directory is its parent's.
    """
    directory = _directory
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


class WorkerTrace:
    """A worker's place in the arena, and the pipe on which its full blocks come up; the parent's side.

    ``entry`` is -1 where there is no arena.  ``write_fd`` goes to the worker; the parent closes its copy with
    ``close_write()`` once the process was started.
    """

    def __init__(self, entry: int, path: str, write_fd: int) -> None:
        self.entry = entry
        self.path = path
        self.write_fd = write_fd

    def close_write(self) -> None:
        """Closes the parent's copy of the write end."""
        fd, self.write_fd = self.write_fd, -1
        if fd >= 0:
            os.close(fd)

    def gone(self, text: str | None, claimed: tuple[int, int, _core.Stack] | None = None) -> None:
        """The process is dead and its channel read to the end: takes what it left and closes its stream.

        ``text`` says how it was lost; None is a normal end.  ``claimed`` is the unit that it had claimed (its G, the
        generation of its creation, its start function): it is lost with it even if it had not said that it began.
        Only after this may the slot be filled again.
        """
        self.close_write()
        entry, self.entry = self.entry, -1
        if entry < 0:
            return
        with contextlib.suppress(ValueError):  # the arena went away before us
            _core.worker_gone(entry, text, *(claimed or ()))


def worker_open(p: int) -> WorkerTrace:
    """A place for a worker that is about to be started in slot ``p``; never raises."""
    with _lock:
        directory = _directory
    if directory is None:
        return WorkerTrace(-1, "", -1)
    try:
        read_fd, write_fd = os.pipe()
    except OSError as error:
        _log.warning("pooltrace: a worker runs untraced: %s", error)
        return WorkerTrace(-1, "", -1)
    try:
        entry = _core.worker_open(p, read_fd)
    except OSError as error:
        os.close(write_fd)
        _log.warning("pooltrace: a worker runs untraced: %s", error)
        return WorkerTrace(-1, "", -1)
    finally:
        os.close(read_fd)
    return WorkerTrace(entry, os.path.join(directory, "arena"), write_fd)


def attach_worker(path: str, entry: int, write_fd: int) -> bool:
    """In the worker's main thread, before anything else of ours: takes its place.  False: it runs untraced."""
    if entry < 0:
        return False
    try:
        _core.attach(path, entry, write_fd)
    except OSError as error:
        _log.warning("pooltrace: this worker runs untraced: %s", error)
        return False
    return True


def _after_fork_in_child() -> None:
    global _lock, _users, _directory, _broken
    _lock = threading.Lock()
    _users = 0
    _directory = None  # the parent's: it removes it
    _broken = False


os.register_at_fork(after_in_child=_after_fork_in_child)
