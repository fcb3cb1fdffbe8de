"""Frames and claims: what crosses a channel arrives whole, each buffer in memory of its own."""

from __future__ import annotations

import os
import socket

import numpy

from pooltrace.pool import frames


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


def test_each_buffer_has_memory_of_its_own_and_is_aligned() -> None:
    """Whether the frame fits into the receiver's buffer or not: arrays can be used in place, and kept one by one."""
    for count in (10, 100_000):
        left, right = socket.socketpair()
        receiver = frames.Receiver(right)
        sent = [numpy.arange(count, dtype=float) + number for number in range(3)]
        pieces = frames.pack(
            frames.RESULT, 0, 1, 2, 3, payload=b"odd", buffers=[memoryview(one).cast("B") for one in sent]
        )
        outbox = frames.Outbox(left)
        outbox.add(pieces)
        left.setblocking(False)
        while (frame := receiver.take()) is None:
            outbox.flush()
            assert receiver.fill()
        assert bytes(frame.payload) == b"odd"
        assert len({id(buffer.obj) for buffer in frame.buffers}) == 3
        for one, buffer in zip(sent, frame.buffers):
            got = numpy.frombuffer(buffer, dtype=float)
            assert got.flags.aligned
            assert got.flags.writeable
            assert (got == one).all()
        left.close()
        right.close()
