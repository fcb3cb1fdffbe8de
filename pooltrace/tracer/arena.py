"""The shared mapping: where it lies, how long it stays, and how a worker gets its place in it.

One arena per parent process, in a directory of its own (0700; the file 0600), below ``$POOLTRACE_DIR``, else /dev/shm,
else the temporary directory.  It exists while a pool or a trace does.  The layout is in ``core/core.h``.  Nothing here
raises into a pool: where the arena cannot be had, workers run untraced and the reason is logged once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading

from pooltrace.tracer import _core

_log = logging.getLogger("pooltrace")
_lock = threading.Lock()
_users = 0  # under _lock: pools and traces that need the arena
_directory: str | None = None  # under _lock
_broken = False  # under _lock: it could not be made, and that was logged


def _base() -> str:
    chosen = os.environ.get("POOLTRACE_DIR")
    if chosen:
        return chosen
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else tempfile.gettempdir()


def _create() -> None:
    """Makes directory and mapping.  Raises OSError.  Under _lock."""
    global _directory
    directory = tempfile.mkdtemp(prefix=f"pooltrace-{os.getuid()}-{os.getpid()}-", dir=_base())
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
