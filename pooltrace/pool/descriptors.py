"""Descriptors that the processes of a pool hand on, or must not: what a new worker gets, what a forked child closes.

Knows processes and descriptors only.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from typing import Protocol


def shared_memory(size: int) -> int:
    """A descriptor of so many bytes of zeros, reserved, without a name. Raises OSError."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("pooltrace", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.posix_fallocate(fd, 0, size)  # else a full file system would be a SIGBUS later
    except BaseException:
        os.close(fd)
        raise
    return fd


class PassedFd:
    """A descriptor as an argument of a worker process: inherited by a fork, passed along by spawn and forkserver."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[object, ...]:
        if self.fd < 0:
            return PassedFd, (self.fd,)
        for family in ("multiprocessing", "multiprocess"):
            context = sys.modules.get(family + ".context")
            popen = context.get_spawning_popen() if context else None
            if popen is not None:
                return _receive_fd, (popen.DupFd(popen.duplicate_for_child(self.fd)),)
        raise TypeError("a descriptor can only be passed to a process that is being started")


class _Duplicate(Protocol):
    def detach(self) -> int: ...


def _receive_fd(duplicate: _Duplicate) -> PassedFd:
    return PassedFd(duplicate.detach())


class Closable(Protocol):
    def close(self) -> None: ...


class End:
    """A descriptor that is closed once."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class _Starting(threading.local):
    keep: tuple[Closable, ...] = ()


# Every end that a forked child must not keep: the parent's ends of all channels, and a worker's own end for its
# children.
_ends: set[Closable] = set()
_starting = _Starting()


def own(*ends: Closable) -> None:
    """From now on children that are forked close these ends (unless `keep` says otherwise)."""
    _ends.update(ends)


def disown(*ends: Closable) -> None:
    """Closes these ends here, too."""
    for end in ends:
        _ends.discard(end)
        end.close()


def keep(*ends: Closable) -> None:
    """Child ends that the process which this thread is about to fork keeps; none: all as usual."""
    _starting.keep = ends


def _after_fork() -> None:
    kept = _starting.keep
    for end in list(_ends):
        if end not in kept:
            try:
                end.close()
            except OSError:
                pass
    _ends.clear()
    _starting.keep = ()


os.register_at_fork(after_in_child=_after_fork)
