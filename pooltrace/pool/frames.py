"""Frames: how units and results cross the channel between the parent and one worker.

Knows bytes, descriptors and lengths; neither pickles nor jobs nor tracing.

    +------+-------+---------+------------+------+-----+----------+---------+-------+
    | kind | flags | buffers | generation | unit | job | function | payload | total |   one header
    +------+-------+---------+------------+------+-----+----------+---------+-------+
    | length of each buffer | function | payload | buffers ...                          |   `total` bytes
    +-----------------------+----------+---------+--------------------------------------+

A frame that is larger than the receiver's buffer is received into memory of its own, so that large payloads are copied
once. Each buffer gets its own piece of memory: so it is aligned as if it had been allocated here, and who keeps one
array does not keep those that came with it.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from collections import deque
from typing import Protocol

# From the parent
APPLY, MAP, STARMAP, STOP = 1, 2, 3, 4
# From the worker
READY, START_FAILED, RESULT, SKIPPED = 16, 17, 18, 19

FAILED = 1  # flag of RESULT: the payload is an exception
FRESH = 2  # flag of a unit: the function section holds the job's function
ONCE = 4  # flag of a unit: its job has no other, so nobody keeps the function

HEADER = struct.Struct("=BBHIQQQQQ")
MOST_BUFFERS = 0xFFFF
_ROOM = 256 * 1024
_PARTS = 64  # pieces in one sendmsg; far below every IOV_MAX

Piece = bytes | bytearray | memoryview


class Frame:
    """One frame as it was received. The views are of memory that nobody else uses, each buffer's of its own."""

    __slots__ = ("buffers", "flags", "function", "generation", "job", "kind", "payload", "unit")

    def __init__(self, head: tuple[int, ...], front: memoryview, buffers: list[memoryview]) -> None:
        self.kind, self.flags, count, self.generation, self.unit, self.job, function, payload, _ = head
        at = 8 * count
        self.function = front[at : at + function]
        self.payload = front[at + function : at + function + payload]
        self.buffers = buffers


def pack(
    kind: int,
    flags: int = 0,
    generation: int = 0,
    unit: int = 0,
    job: int = 0,
    function: Piece = b"",
    payload: Piece = b"",
    buffers: list[memoryview] | None = None,
) -> list[Piece]:
    """The pieces of one frame, in order. Payload and buffers are not copied."""
    if not buffers:
        total = len(function) + len(payload)
        head = HEADER.pack(kind, flags, 0, generation, unit, job, len(function), len(payload), total)
        if total <= 4096:
            return [b"".join((head, function, payload))]
        return [head, function, payload] if function else [head, payload]
    lengths = [buffer.nbytes for buffer in buffers]
    total = 8 * len(lengths) + len(function) + len(payload) + sum(lengths)
    head = HEADER.pack(kind, flags, len(lengths), generation, unit, job, len(function), len(payload), total)
    return [head + struct.pack(f"={len(lengths)}Q", *lengths), function, payload, *buffers]


class Receiver:
    """Reads frames from a socket; of one thread. Whether it blocks is the socket's business."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = memoryview(bytearray(_ROOM))
        self._start = self._end = 0
        self._large: _Large | None = None  # the frame that is being received into memory of its own

    def fill(self) -> int:
        """Receives once; 0 at the end of the stream. Raises what recv raises."""
        if self._large is not None:
            n = self._sock.recvmsg_into(self._large.room())[0]
            self._large.took(n)
            return n
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == _ROOM:
            left = self._end - self._start
            self._buffer[:left] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, left
        n = self._sock.recv_into(self._buffer[self._end :])
        self._end += n
        return n

    def take(self) -> Frame | None:
        """The next whole frame that was received, None when there is none."""
        if self._large is not None:
            frame = self._large.frame()
            if frame is not None:
                self._large = None
            return frame
        have = self._end - self._start
        if have < HEADER.size:
            return None
        head = HEADER.unpack_from(self._buffer, self._start)
        total, at = head[8], self._start + HEADER.size
        have -= HEADER.size
        if have < total and total + HEADER.size <= _ROOM:
            return None
        if have >= total and head[2] == 0:
            self._start = at + total
            return Frame(head, memoryview(bytearray(self._buffer[at : at + total])), [])
        large = _Large(head)
        self._start = at + large.copy(self._buffer[at : at + min(have, total)])
        if self._start == self._end:
            self._start = self._end = 0
        frame = large.frame()
        self._large = large if frame is None else None
        return frame


class _Large:
    """A frame on its way into memory of its own: what is in front of the buffers, then each buffer."""

    def __init__(self, head: tuple[int, ...]) -> None:
        self._head = head
        self._front = memoryview(bytearray(8 * head[2] + head[6] + head[7]))
        self._buffers: list[memoryview] | None = None  # not known before their lengths are here
        self._left = deque([self._front])
        self._next()

    def _next(self) -> None:
        while self._left and not len(self._left[0]):
            self._left.popleft()
        if not self._left and self._buffers is None:
            lengths = struct.unpack_from(f"={self._head[2]}Q", self._front)
            self._buffers = [memoryview(bytearray(length)) for length in lengths]
            self._left.extend(self._buffers)
            self._next()

    def room(self) -> list[memoryview]:
        """Where the next bytes go; empty when all is here."""
        return [self._left[i] for i in range(min(len(self._left), _PARTS))]

    def took(self, n: int) -> None:
        """So many bytes have come."""
        drop(self._left, n)
        self._next()

    def copy(self, data: memoryview) -> int:
        """Takes these bytes, which are not more than the frame has."""
        at = 0
        while at < len(data):
            room = self._left[0]
            n = min(len(room), len(data) - at)
            room[:n] = data[at : at + n]
            self.took(n)
            at += n
        return at

    def frame(self) -> Frame | None:
        """The frame, once all is here."""
        if self._left or self._buffers is None:
            return None
        return Frame(self._head, self._front, self._buffers)


class Outbox:
    """What still has to be sent to one worker; of the dispatcher's thread. Never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pieces: deque[memoryview] = deque()

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def add(self, pieces: list[Piece]) -> None:
        self._pieces.extend(memoryview(piece).cast("B") for piece in pieces if len(piece))

    def clear(self) -> None:
        self._pieces.clear()

    def flush(self) -> bool:
        """Sends as much as the channel takes; True when nothing is left. Raises OSError when the worker is gone."""
        pieces = self._pieces
        while pieces:
            try:
                sent = self._sock.sendmsg([pieces[i] for i in range(min(len(pieces), _PARTS))], [], _NOSIGNAL)
            except BlockingIOError:
                return False
            drop(pieces, sent)
        return True


_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


def drop(pieces: deque[memoryview], sent: int) -> None:
    """Takes the first `sent` bytes off the pieces."""
    while sent:
        first = pieces[0]
        if len(first) > sent:
            pieces[0] = first[sent:]
            return
        sent -= len(first)
        pieces.popleft()


def send_all(sock: socket.socket, pieces: list[Piece]) -> None:
    """Sends one frame through a blocking socket."""
    if len(pieces) == 1:
        sock.sendall(pieces[0])
        return
    left = deque(memoryview(piece).cast("B") for piece in pieces if len(piece))
    while left:
        drop(left, sock.sendmsg([left[i] for i in range(min(len(left), _PARTS))]))


class Claims:
    """One token per frame that the worker has not started: whoever reads it, worker or parent, has the frame.

    A worker takes a token before it starts a frame; the parent takes one to take the newest frame back, and counts
    those that a dead worker left. So each frame is started or taken back, never both, and a death says exactly what
    ran.
    """

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self.write_fd, False)

    def offer(self, count: int) -> None:
        """Parent, before the frames are sent."""
        os.write(self.write_fd, b"." * count)

    def take(self) -> bool:
        return take_claim(self.read_fd)

    def left(self) -> int:
        """How many frames a dead worker did not start."""
        count = 0
        while self.take():
            count += 1
        return count

    def close(self) -> None:
        read_fd, write_fd, self.read_fd, self.write_fd = self.read_fd, self.write_fd, -1, -1
        for fd in (read_fd, write_fd):
            if fd >= 0:
                os.close(fd)


def take_claim(read_fd: int) -> bool:
    """Takes one token; False when there is none."""
    try:
        return bool(os.read(read_fd, 1))
    except BlockingIOError:
        return False


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
