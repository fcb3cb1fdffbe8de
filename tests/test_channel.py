"""Both ends of a channel: what is sent arrives whole, each unit runs once, each answer counts; nonsense is refused."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import marshal
import mmap
import os
import signal
import socket
import struct
import sys
import termios
import threading
import time
import weakref
from collections import deque, namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import pytest

from pooltrace.pool import _channel
from pooltrace.pool._channel import Answer, Frame, ParentEnd, WorkerEnd
from pooltrace.pool.descriptors import shared_memory
from pooltrace.tracer._core import Gate

NEVER = 10**15  # ns
FRAME = struct.calcsize("=BBHI6Q")  # bytes of the head of a frame


class Channel:
    """A parent's and a worker's end, both here; `page` is what they share."""

    def __init__(self, hold: int = NEVER) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.page_fd = shared_memory(_channel.PAGE_BYTES)
        self.page = mmap.mmap(self.page_fd, _channel.PAGE_BYTES)
        self.parent = ParentEnd(self.ours.fileno(), self.page_fd)
        self.worker = WorkerEnd(self.theirs.fileno(), self.page_fd, hold)

    def post(self, unit: object, payload: bytes = b"", flags: int = 0, **more: Any) -> None:
        self.parent.post(
            unit, _channel.MAP, flags, 5, 77, 9, more.get("function", b""), payload, more.get("buffers", [])
        )

    def send(self) -> None:
        assert self.parent.flush()

    def take(self) -> Frame:
        """The next frame, which is there or on its way."""
        while (frame := self.worker.take()) is None:
            assert self.worker.wait()
        return frame

    def send_and_take(self) -> Frame:
        """The next frame, which may be larger than what the channel holds."""
        with ThreadPoolExecutor(1) as thread:
            frame = thread.submit(self.take)
            while not self.parent.flush():
                pass
            return frame.result()

    def run(self, count: int) -> None:
        for _ in range(count):
            assert self.take().claimed
            self.worker.answer(0, b"", [])

    def receive(self) -> list[Answer]:
        answers: list[Answer] = []
        self.parent.receive(answers)
        return answers

    def heard(self) -> bool:
        """Whether the parent has something to read."""
        try:
            return bool(self.ours.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.parent.close()
        self.worker.close()
        self.page.close()
        os.close(self.page_fd)
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def channel() -> Iterator[Channel]:
    made = Channel()
    yield made
    made.close()


# -- bytes


SIZES = [0, 1, 100, 4096, 4097, 5000, 300_000, 3, (256 << 10) - 56, (256 << 10) - 55, 2_000_000, 7]


def test_frames_of_all_sizes_cross_in_pieces_both_ways(channel: Channel) -> None:
    sent = []
    for number, count in enumerate(SIZES):
        extra = [memoryview(os.urandom(number * 1000))] * (number % 3)
        sent.append((os.urandom(count), [bytes(piece) for piece in extra]))
        channel.post(number, sent[-1][0], function=b"f" * (count if number % 2 else 0), buffers=extra)

    def echo() -> None:
        for number in range(len(SIZES)):
            frame = channel.take()
            assert (frame.kind, frame.generation, frame.unit, frame.job) == (_channel.MAP, 5, 77, 9)
            assert bytes(frame.function) == b"f" * (SIZES[number] if number % 2 else 0)
            assert frame.payload is not None
            channel.worker.answer(number, frame.payload, [memoryview(piece) for piece in frame.buffers])
        channel.worker.ring()

    thread = threading.Thread(target=echo)
    thread.start()
    answers: list[Answer] = []
    while len(answers) < len(SIZES):
        channel.parent.flush()
        channel.parent.receive(answers)
    thread.join()
    answers.sort(key=lambda answer: answer.unit)  # small ones may overtake
    assert [(a.unit, a.flags) for a in answers] == [(number, number) for number in range(len(SIZES))]
    assert [(bytes(a.payload or b""), [bytes(piece) for piece in a.buffers]) for a in answers] == sent
    assert channel.parent.inflight == 0


def test_each_buffer_has_memory_of_its_own_and_is_aligned(channel: Channel) -> None:
    """Arrays can be used in place, written to, and kept one by one."""
    for count in (10, 100_000):
        arrays = [numpy.arange(count, dtype=float) + number for number in range(3)]
        channel.post(None, b"odd", buffers=[memoryview(one).cast("B") for one in arrays])
        frame = channel.send_and_take()
        assert bytes(frame.payload or b"") == b"odd"
        for one, buffer in zip(arrays, frame.buffers, strict=True):
            got = numpy.frombuffer(buffer, dtype=float)
            assert got.flags.aligned
            assert got.flags.writeable
            assert (got == one).all()


def test_what_is_sent_is_not_copied_and_let_go(channel: Channel) -> None:
    class Large(bytearray):
        pass

    large = Large(1 << 20)
    gone = weakref.ref(large)
    channel.post(None, b"", buffers=[memoryview(large)])
    with pytest.raises(BufferError):
        large.append(0)  # it is referred to
    del large
    assert gone() is not None
    channel.send_and_take()
    assert gone() is None


def test_a_frame_that_cannot_be_sent_leaves_no_trace_of_itself(channel: Channel) -> None:
    channel.post(1, b"before")
    with pytest.raises(TypeError):
        channel.post(2, b"x" * 5000, buffers=[memoryview(b"y" * 5000), "not bytes"])
    with pytest.raises(TypeError):
        channel.post(3, "not bytes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="too many buffers"):
        channel.post(4, b"", buffers=[memoryview(b"")] * 70_000)
    channel.post(5, b"after")
    channel.send()
    assert [bytes(channel.take().payload or b"") for _ in range(2)] == [b"before", b"after"]
    assert channel.parent.units() == [1, 5]


def test_the_end_of_the_stream(channel: Channel) -> None:
    channel.post(1)
    channel.send()
    channel.run(1)
    channel.theirs.close()
    assert [answer.unit for answer in channel.receive()] == [1]
    assert channel.parent.ended
    assert channel.receive() == []
    channel.post(2)
    with pytest.raises(BrokenPipeError):
        channel.parent.flush()


def test_a_worker_that_leaves_something_unread_has_said_all_the_same(channel: Channel) -> None:
    """The kernel tells of that by an error."""
    for unit in range(3):
        channel.post(unit)
    channel.send()
    channel.run(1)
    channel.take()
    channel.post(3)
    channel.send()
    channel.worker.answer(0, bytes(10_000), [])
    channel.theirs.close()
    assert sorted(answer.unit for answer in channel.receive()) == [0, 1]
    assert channel.parent.ended
    assert channel.parent.unanswered() == ([], [2, 3])


def test_results_count_though_a_frame_makes_no_sense(channel: Channel) -> None:
    channel.post(1)
    channel.send()
    channel.run(1)
    channel.theirs.send(bytes([18] * 56))
    answers: list[Answer] = []
    with pytest.raises(OSError, match="Protocol error"):
        channel.parent.receive(answers)
    assert [answer.unit for answer in answers] == [1]


def test_the_worker_sees_the_end_of_the_parent(channel: Channel) -> None:
    channel.post(1)
    channel.parent.stop()
    channel.send()
    channel.ours.close()
    channel.run(1)
    assert channel.take().kind == _channel.STOP
    with pytest.raises(BrokenPipeError):
        channel.worker.wait()  # it has something to tell


def test_the_worker_that_has_nothing_to_tell_sees_the_end_of_the_parent(channel: Channel) -> None:
    channel.ours.close()
    assert not channel.worker.wait()


# -- claims


def test_a_unit_is_run_or_taken_back_and_never_both(channel: Channel) -> None:
    for unit in range(6):
        channel.post(unit)
    channel.send()
    assert channel.take().claimed  # 0 runs
    assert channel.parent.take_back(2) == [5, 4]
    assert channel.parent.unanswered() == ([0], [1, 2, 3])
    channel.worker.answer(0, b"", [])
    channel.run(3)
    assert channel.worker.take() is None  # 4 and 5 are passed over
    assert [answer.unit for answer in channel.receive()] == [0, 1, 2, 3]
    assert channel.parent.take_back(100) == []
    assert channel.parent.unanswered() == ([], [])
    assert (channel.parent.inflight, channel.parent.passed) == (0, 6)


def test_which_unit_runs_and_for_how_long(channel: Channel) -> None:
    """From its claim; not while it waits, nor when it is answered."""
    parent = channel.parent
    assert parent.running() is None
    channel.post("a")
    channel.post("b")
    channel.send()
    assert parent.running() is None
    before = time.monotonic_ns()
    assert channel.take().claimed
    claimed = time.monotonic_ns()
    unit, ns = parent.running() or ("none", 0)
    after = time.monotonic_ns()
    assert unit == "a"
    assert 0 <= ns <= after - before
    channel.worker.answer(0, b"", [])
    assert parent.running() is None  # though nobody has read its answer
    channel.receive()
    assert parent.running() is None
    begin = time.monotonic_ns()
    assert channel.take().claimed
    unit, ns = parent.running() or ("none", 0)
    assert unit == "b"
    assert ns <= time.monotonic_ns() - begin < time.monotonic_ns() - claimed
    channel.worker.answer(0, b"", [])
    channel.receive()
    assert parent.running() is None


def test_a_unit_that_was_taken_back_may_be_sent_again(channel: Channel) -> None:
    channel.post("a")
    channel.post("b")
    assert channel.parent.take_back(1) == ["b"]
    channel.post("c")
    assert channel.parent.take_back(9) == ["c", "a"]
    channel.post("b")
    channel.send()
    channel.run(1)
    assert [answer.unit for answer in channel.receive()] == ["b"]


def test_the_function_of_a_unit_that_was_taken_back_is_not_lost(channel: Channel) -> None:
    """The parent counts on it that the worker has it now."""
    channel.post(1, function=b"square", flags=_channel.FRESH)
    channel.post(2)
    assert channel.parent.take_back(2) == [2, 1]
    channel.send()
    frame = channel.take()
    assert (frame.claimed, frame.function) == (False, b"square")
    assert channel.worker.take() is None


def test_the_parent_hears_of_units_that_were_passed_over(channel: Channel) -> None:
    """Else it could not send more when all that it may send were taken back."""
    for unit in range(_channel.WINDOW - 1):
        channel.post(unit)
    assert channel.parent.room == 0
    with pytest.raises(BlockingIOError):
        channel.post(-1)
    assert len(channel.parent.take_back(1000)) == _channel.WINDOW - 1
    assert channel.parent.room == 0  # the worker has yet to come by
    channel.send()
    channel.parent.stop()
    channel.send()
    assert channel.take().kind == _channel.STOP
    channel.theirs.shutdown(socket.SHUT_RD)
    assert not channel.worker.wait()
    assert channel.heard()
    assert channel.receive() == []
    assert channel.parent.room == _channel.WINDOW - 1


def test_many_more_units_than_there_are_words(channel: Channel) -> None:
    """The word of a unit is used again, and never taken for another's."""
    answers: list[Answer] = []
    posted = 0
    while len(answers) < 5 * _channel.WINDOW:
        for _ in range(min(channel.parent.room - 3, 100)):
            channel.post(posted)
            posted += 1
        taken = channel.parent.take_back(3)
        assert taken == sorted(taken, reverse=True)
        for unit in reversed(taken):
            channel.post(unit)
        channel.send()
        for _ in range(50):
            channel.run(1)
        channel.parent.receive(answers)
    assert [answer.unit for answer in answers] == list(range(len(answers)))


@pytest.mark.parametrize("plain", [False, True])
def test_no_unit_is_kept_alive(plain: bool, channel: Channel) -> None:
    class Weak(_channel.Unit):
        pass

    class Other:
        pass

    units: list[Any] = [Weak("job", number, (), 1) if plain else Other() for number in range(4)]
    gone = [weakref.ref(unit) for unit in units]
    for unit in units:
        channel.post(unit)
    del unit
    units.clear()
    channel.send()
    channel.run(1)
    channel.receive()
    assert [ref() is None for ref in gone] == [True, False, False, False]
    channel.parent.take_back(1)
    assert gone[3]() is None
    channel.parent.close()
    assert [ref() for ref in gone] == [None] * 4


def test_a_unit_that_refers_to_its_channel_is_collected() -> None:
    made = Channel()

    class Unit:
        end = made.parent

    gone = weakref.ref(Unit)
    made.post(Unit)
    made.__dict__["parent"] = None
    del Unit
    gc.collect()
    assert gone() is None
    for end in (made.ours, made.theirs, made.page):
        end.close()
    os.close(made.page_fd)


# -- results


class Unit(_channel.Unit):
    """As the pool's."""


Pair = namedtuple("Pair", "a b")


def post_row(channel: Channel, items: Any, size: int = 1, most: int = 1000, g: int = 100) -> tuple[_channel.Row, int]:
    row = _channel.Row(Unit, "the job", items, size, 0, -(-len(items) // size), g)
    row.generation = 5
    return row, channel.parent.post_row(row, most, _channel.MAP, 9)


def test_a_row_is_posted_as_its_units_would_be(channel: Channel) -> None:
    row, posted = post_row(channel, ("a", 2.5, None, "b", b"c"), 2, 2)
    assert (posted, row.left, row.index, row.g) == (2, 1, 2, 102)
    rest = row.take()
    assert (rest.job, rest.payload(), rest.index, rest.g, rest.generation, rest.span) == (
        "the job",
        (b"c",),
        2,
        102,
        5,
        (4, 5),
    )
    with pytest.raises(IndexError):
        row.take()
    units = channel.parent.units()
    assert [type(unit) for unit in units] == [Unit, Unit]
    assert [(unit.job, unit.index, unit.g, unit.generation, unit.payload()) for unit in units] == [
        ("the job", 0, 100, 5, ("a", 2.5)),
        ("the job", 1, 101, 5, (None, "b")),
    ]
    channel.send()
    for unit in units:
        frame = channel.take()
        assert frame.claimed
        assert frame[:5] == (_channel.MAP, 0, 5, unit.g, 9)
        assert marshal.loads(frame.payload or b"") == unit.payload()
        channel.worker.answer(0, _channel.plain([unit.index]) or b"", [])
    (answer,) = channel.receive()
    assert (answer.kind, answer.unit, answer.payload) == (_channel.RESULTS, units[1], None)
    assert answer.outcome == [(0, (True, [0])), (1, (True, [1]))]


def test_a_row_is_posted_up_to_what_is_not_plain(channel: Channel) -> None:
    row, posted = post_row(channel, (1, 2, [3], 4))
    assert (posted, row.left, row.take().payload()) == (2, 2, ([3],))
    assert channel.parent.post_row(row, 1000, _channel.MAP, 9) == 1
    for items in (Pair(1, 2), [1, 2]):
        assert post_row(channel, items)[1] == 0
    row, posted = post_row(channel, range(199), 100)
    assert (posted, row.take().payload()) == (0, range(100))  # not written out
    assert channel.parent.post_row(row, 1000, _channel.MAP, 9) == 0
    assert row.take().payload() == tuple(range(100, 199))
    assert post_row(channel, range((1 << 63) - 1, (1 << 63) + 1))[1] == 1


def test_a_row_is_posted_as_far_as_there_is_room(channel: Channel) -> None:
    row, posted = post_row(channel, range(1000))
    assert posted == channel.parent.inflight == _channel.WINDOW - 1
    assert channel.parent.room == 0
    channel.send()
    channel.run(10)
    assert channel.parent.post_row(row, 1000, _channel.MAP, 9) == 1  # the worker is past them, but they have no answers
    channel.receive()
    assert channel.parent.post_row(row, 4, _channel.MAP, 9) == 4
    assert channel.parent.post_row(row, 1000, _channel.MAP, 9) == 5
    assert [unit.index for unit in channel.parent.units()] == list(range(10, _channel.WINDOW + 9))
    assert [unit.index for unit in channel.parent.take_back(3)] == [264, 263, 262]
    assert channel.parent.post_row(row, 0, _channel.MAP, 9) == channel.parent.post_row(row, -1, _channel.MAP, 9) == 0


def units_of(*payloads: Any, job: Any = "the job") -> list[Any]:
    return [Unit(job, number, what, 100 + number) for number, what in enumerate(payloads)]


def test_units_are_posted_up_to_the_first_that_is_not_plain(channel: Channel) -> None:
    plain, packed, pickled = units_of(((1,), {}), None, None)
    packed.packed, pickled.packed = (b"packed", []), (b"packed", [memoryview(b"x" * 40_000)])
    other, failed, large, unusual = *units_of((1,), job="another"), *units_of((1,), None, ([],))
    failed.error, large.packed = ValueError(), (b"x" * 5_000, [])
    for last in (pickled, other, failed, large, unusual, 5):
        assert channel.parent.post_units([plain, packed, last, plain], 1000, _channel.APPLY, 9) == 2
        channel.send()
        for unit, payload in ((plain, marshal.dumps(((1,), {}), 2)), (packed, b"packed")):
            frame = channel.take()
            assert frame[:8] == (_channel.APPLY, 0, 0, unit.g, 9, b"", payload, ())
            channel.worker.answer(0, b"", [])
        assert [answer.unit for answer in channel.receive()] == [plain, packed]
    assert channel.parent.post_units(deque([plain, packed]), 1, _channel.APPLY, 9) == 1
    assert channel.parent.post_units([], 1, _channel.APPLY, 9) == 0
    assert channel.parent.post_units([plain] * 300, 1000, _channel.APPLY, 9) == _channel.WINDOW - 2


_on_audit: dict[str, Callable[[], object]] = {}


def _audit(event: str, _: object) -> None:
    if event in _on_audit:
        _on_audit.pop(event)()


@pytest.fixture(scope="module", autouse=True)
def audit() -> None:
    """What is in _on_audit is done once, at that event. (A hook is for ever.)"""
    sys.addaudithook(_audit)


@pytest.mark.parametrize("how", ["row", "units"])
def test_a_call_that_takes_the_end_while_units_are_packed(how: str, channel: Channel, caller: Caller) -> None:
    """As a finalizer or an audit hook may let it: the units stay where they are."""
    unit = Sent()
    with ThreadPoolExecutor(1) as thread:
        calls = []

        def let_call() -> None:
            calls.append(thread.submit(caller.call, unit))
            while not channel.parent.lent:
                pass

        _on_audit["marshal.dumps"] = let_call
        if how == "row":
            row, posted = post_row(channel, range(5))
            assert (posted, row.left) == (0, 5)
        else:
            assert channel.parent.post_units(units_of((1,), (2,)), 5, _channel.APPLY, 9) == 0
        assert channel.parent.units() == [unit]
        channel.run(1)
        channel.worker.ring()
        assert calls[0].result().unit is unit
    assert caller.was_woken()


def test_an_end_that_is_closed_while_units_are_packed(channel: Channel) -> None:
    _on_audit["marshal.dumps"] = channel.parent.close
    assert post_row(channel, range(5))[1] == 0


def test_a_row_and_its_units_are_collected(channel: Channel) -> None:
    class Job:
        pass

    job: Any = Job()
    gone = weakref.ref(job)
    job.row = _channel.Row(Unit, job, (1, job), 1, 0, 2, 100)
    job.unit = job.row.take()
    job.unit.first = job.unit.packed = job.unit.what = job
    del job
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "args", [(int, 0, (), 1, 0, 0, 1), (Unit, 0, (), 0, 0, 0, 1), (Unit, 0, (), 1, -1, 0, 1), (Unit, 0)]
)
def test_a_row_that_is_none(args: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        _channel.Row(*args)


def test_a_row_that_promises_more_than_there_is(channel: Channel) -> None:
    row = _channel.Row(Unit, "the job", (1,), 1, 0, 3, 100)
    assert channel.parent.post_row(row, 3, _channel.MAP, 9) == 3
    assert [unit.payload() for unit in channel.parent.units()] == [(1,), (), ()]
    row = _channel.Row(Unit, "the job", 5, 1, 0, 3, 100)  # type: ignore[arg-type]
    assert channel.parent.post_row(row, 3, _channel.MAP, 9) == 0
    with pytest.raises(TypeError):
        row.take()


def test_plain_results_of_one_job_come_together(channel: Channel) -> None:
    """In their order, as far as they come one after the other; how long they took is the mean."""
    units = [*units_of((0,), (1,)), *units_of((0,), job="another"), *units_of((0,), (1,), (2,), (3,))]
    assert sum(channel.parent.post_units(units[i:j], 9, _channel.MAP, 9) for i, j in ((0, 2), (2, 3), (3, 7))) == 7
    channel.post("no unit of theirs")
    channel.send()
    results = [b"N", b"T", b"F", b"\x80N", b"N", b"T", b"x", b"N"]
    times = [10**6, 3 * 10**6, 5 * 10**6, 10**6, 2 * 10**6, 4 * 10**6, 10**6, 10**6]
    for payload in results:
        assert channel.take().claimed
        channel.worker.answer(_channel.FAILED if payload == b"x" else 0, payload, [])
    for number, ns in enumerate(times):  # a record is 24 bytes, and 8 for what is in it
        assert struct.unpack_from("=Q", channel.page, RECORDS + 32 * number + 8) == (number,)
        struct.pack_into("=Q", channel.page, RECORDS + 32 * number + 16, ns)
    answers = channel.receive()
    together, single = _channel.RESULTS, _channel.RESULT
    assert [(answer.kind, answer.unit, answer.ns, answer.payload, answer.outcome) for answer in answers] == [
        (together, units[1], 2 * 10**6, None, [(0, (True, None)), (1, (True, True))]),
        (together, units[2], 5 * 10**6, None, [(0, (True, False))]),
        (single, units[3], 10**6, b"\x80N", None),
        (together, units[5], 3 * 10**6, None, [(1, (True, None)), (2, (True, True))]),
        (single, units[6], 10**6, b"x", None),
        (single, "no unit of theirs", 10**6, None, (True, None)),
    ]
    assert channel.parent.answers == 8


SOME: list[Any] = [None, True, False, -5, 1 << 62, -(1 << 62), 2.5, "a\u20ac", b"b", [], (), [1, (2, "x")], ((1,), {})]


@pytest.mark.parametrize("value", SOME, ids=repr)
def test_a_plain_result_comes_as_it_is(value: object, channel: Channel) -> None:
    """And one of which a byte is missing, or another one is there, as whatever it is, or not at all."""
    whole = _channel.plain(value)
    assert whole is not None
    others = [
        whole[:-1],
        whole + b"N",
        *(whole[:i] + bytes([whole[i] ^ 64]) + whole[i + 1 :] for i in range(len(whole))),
    ]
    for payload in (whole, *others):
        channel.post("unit")
        channel.send()
        assert channel.take().claimed
        channel.worker.answer(0, payload, [])
        (answer,) = channel.receive()
        assert (answer.outcome is None) == (answer.payload is not None)
        if payload == whole:
            assert answer.outcome == (True, value)
        elif answer.outcome is not None:
            assert marshal.dumps(answer.outcome[1], 2) == payload


@pytest.mark.parametrize(
    "payload",
    [
        b"(\x00\x00\x00\x06",
        b"[\x00\x00\x00\x06",
        b"[\x41\x00\x00\x00" + b"N" * 65,
        b"(\x01\x00\x00\x00" * 4 + b"N",
        b"s\xff\xff\xff\x7f",
        b"u\xff\xff\xff\xff",
        b"l\x00\x00\x00\x80",
        b"l\x06\x00\x00\x00" + bytes(12),
        b"{N",
        b"c" + bytes(40),
        b"r\x00\x00\x00\x00",
        b"\x00\x00\x00\x00\x00",
    ],
)
def test_nothing_is_believed_of_a_plain_result(payload: bytes, channel: Channel) -> None:
    """Marshal would: five bytes are enough to make it take gigabytes."""
    loads = []
    _on_audit["marshal.loads"] = lambda: loads.append(payload)
    channel.post("unit")
    channel.send()
    assert channel.take().claimed
    channel.worker.answer(0, payload, [])
    (answer,) = channel.receive()
    assert (answer.payload, answer.outcome, loads) == (payload, None, [])
    _on_audit.clear()


def test_a_plain_result_that_makes_no_sense_is_left_as_it_is(channel: Channel) -> None:
    results = [(0, b"(\x05\x00"), (_channel.FAILED, b"N"), (0, b"\x80N"), (0, b"")]
    for flags, payload in results:
        channel.post("unit")
        channel.send()
        assert channel.take().claimed
        channel.worker.answer(flags, payload, [])
    assert [(answer.flags, answer.payload, answer.outcome) for answer in channel.receive()] == [
        (flags, payload, None) for flags, payload in results
    ]


def test_small_results_are_told_of_together(channel: Channel) -> None:
    for unit in range(3):
        channel.post(unit)
    channel.send()
    channel.run(3)
    assert not channel.heard()
    channel.worker.ring()
    assert channel.heard()
    assert [answer.unit for answer in channel.receive()] == [0, 1, 2]
    assert not channel.heard()


def test_results_that_were_not_told_of_are_there_all_the_same(channel: Channel) -> None:
    channel.post(1)
    channel.send()
    channel.run(1)
    assert [answer.unit for answer in channel.receive()] == [1]


def test_a_result_is_told_of_when_the_last_bell_is_long_ago() -> None:
    channel = Channel(hold=0)
    channel.post(1)
    channel.send()
    channel.run(1)
    assert channel.heard()
    channel.close()


def test_one_bell_until_the_parent_has_looked(channel: Channel) -> None:
    for unit in range(4):
        channel.post(unit)
    channel.send()
    for _ in range(3):
        channel.run(1)
        channel.worker.ring()
    assert len(channel.ours.recv(1000, socket.MSG_PEEK)) == 56  # one frame
    assert [answer.unit for answer in channel.receive()] == [0, 1, 2]
    channel.run(1)
    channel.worker.ring()
    assert channel.heard()


def test_no_bell_for_results_that_were_taken(channel: Channel) -> None:
    """Though for a unit that was passed over: until the parent has been told, it may think that there is no room."""
    channel.post(0)
    channel.send()
    channel.run(1)
    assert [answer.unit for answer in channel.receive()] == [0]
    channel.post(1)
    channel.post(2)
    channel.send()
    assert channel.worker.wait()
    assert not channel.heard()
    channel.run(1)
    assert channel.parent.take_back(1) == [2]
    assert channel.worker.take() is None
    assert [answer.unit for answer in channel.receive()] == [1]
    channel.post(3)
    channel.send()
    assert channel.worker.wait()
    assert channel.heard()


def test_results_of_which_there_is_no_room_take_the_channel(channel: Channel) -> None:
    """All small, but together more than the page has room for; each is there once."""
    for unit in range(200):
        channel.post(unit)
    channel.send()

    def run() -> None:
        for unit in range(200):
            channel.take()
            channel.worker.answer(0, b"%4d" % unit + bytes(1000), [])

    thread = threading.Thread(target=run)
    thread.start()
    channel.ours.recv(1, socket.MSG_PEEK)  # the page is full by then
    answers: list[Answer] = []
    while len(answers) < 200:
        channel.parent.receive(answers)
    thread.join()
    assert sorted((answer.unit, int((answer.payload or b"")[:4])) for answer in answers) == [(i, i) for i in range(200)]


def test_how_long_a_unit_took_is_told(channel: Channel) -> None:
    channel.post(1)
    channel.post(2)
    channel.send()
    channel.take()
    signal.sigtimedwait([], 0.002)
    channel.worker.answer(0, b"", [])
    channel.take()
    signal.sigtimedwait([], 0.002)
    channel.worker.answer(0, bytes(10_000), [])
    small, large = sorted(channel.receive(), key=lambda answer: answer.unit)
    assert small.ns >= 2_000_000
    assert large.ns >= 2_000_000


# -- what must be refused


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("=BBHI6Q", 18, 0, 0, 0, 0, 0, 0, 0, 5, 4),  # the parts are longer than the whole
        struct.pack("=BBHI6Q", 18, 0, 0, 0, 0, 0, 0, 0, 5, 6),  # and shorter
        struct.pack("=BBHI6Q", 18, 0, 1, 0, 0, 0, 0, 0, 0, 1),  # no room for the length of the buffer
        struct.pack("=BBHI6Q", 18, 0, 0, 0, 0, 0, 0, 2**64 - 1, 2, 1),
        struct.pack("=BBHI6Q", 18, 0, 0, 0, 0, 0, 0, 0, 2**63, 2**63),
        struct.pack("=BBHI6QQ", 18, 0, 1, 0, 0, 0, 0, 0, 0, 12, 5),  # a buffer that is longer than the rest
        struct.pack("=BBHI6QQ", 18, 0, 1, 0, 0, 0, 0, 0, 0, 12, 3),
        struct.pack("=BBHI6Q", 18, 0, 0, 0, 9, 0, 0, 0, 0, 0),  # the result of a unit that was not sent
        struct.pack("=BBHI6Q", 18, 0, 0, 0, 0, 0, 0, 0, 0, 0),  # or has not begun
    ],
)
def test_a_frame_that_makes_no_sense(channel: Channel, head: bytes) -> None:
    """Nor does anything after it: whoever asks again is told again."""
    channel.post("unit")
    channel.theirs.send(head)
    for _ in range(2):
        with pytest.raises(OSError, match="Protocol error"):
            channel.receive()
        channel.theirs.send(bytes(100))
    assert channel.parent.units() == ["unit"]


RESULTS = 2048 + 3 * 64  # where they begin in the page
PASSED, HEAD, RECORDS = 2048, 2048 + 8, 2048 + 3 * 64


@pytest.mark.parametrize(
    ("head", "record"),
    [
        (2**63, b""),
        (8, b""),
        (70_000, b""),
        (24, struct.pack("=IIQQ", 5000, 0, 0, 0)),
        (24, struct.pack("=IIQQ", 8, 0, 0, 0)),
        (24, struct.pack("=IIQQ", 0, 0, 1, 0)),
        (24, struct.pack("=IIQQ", 0, 0, 256, 0)),
    ],
)
def test_a_page_that_makes_no_sense(channel: Channel, head: int, record: bytes) -> None:
    """A user's code may have written over it."""
    channel.post("unit")
    channel.page[HEAD : HEAD + 8] = struct.pack("=Q", head)
    channel.page[RESULTS : RESULTS + len(record)] = record
    with pytest.raises(OSError, match="Protocol error"):
        channel.receive()
    assert channel.parent.units() == ["unit"]


def test_a_page_that_tells_of_more_units_than_were_sent(channel: Channel) -> None:
    """It would never have room again."""
    channel.post("unit")
    channel.page[PASSED : PASSED + 8] = struct.pack("=Q", 2)
    with pytest.raises(OSError, match="Protocol error"):
        channel.receive()
    assert channel.parent.units() == ["unit"]


def test_a_page_full_of_anything_is_survived() -> None:
    for seed in range(300):
        channel = Channel()
        for unit in range(seed % 7):
            channel.post(unit)
        for at in range(0, RESULTS, 8):
            if (at * 2654435761 + seed) % 11 < 3:
                channel.page[at : at + 8] = struct.pack("=Q", (at * 40503 + seed * 7919) % (1 << (seed % 64 + 1)))
        with contextlib.suppress(OSError):
            channel.receive()
        assert 0 <= channel.parent.room < _channel.WINDOW
        back = channel.parent.take_back(1000)
        begun, waiting = channel.parent.unanswered()
        assert sorted([*back, *begun, *waiting]) == list(range(seed % 7))
        channel.close()


def test_misuse_is_told() -> None:
    channel = Channel()
    with pytest.raises(ValueError, match="no unit runs here"):
        channel.worker.answer(0, b"", [])
    with pytest.raises(ValueError, match="kind of unit"):
        channel.parent.post(None, _channel.STOP, 0, 0, 0, 0, b"", b"", [])
    with pytest.raises(TypeError):
        channel.parent.receive(())  # type: ignore[arg-type]
    with pytest.raises(OSError, match="Invalid argument"):
        ParentEnd(channel.ours.fileno(), os.memfd_create("short"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        WorkerEnd(channel.theirs.fileno(), -1, 0)
    channel.close()
    for call in (channel.parent.flush, channel.parent.units, channel.worker.take, channel.worker.ring, channel.send):
        with contextlib.suppress(ValueError):
            call()
    channel.parent.close()
    channel.worker.close()


# -- calls


class Gated(Gate):
    """What is done before a call has the end."""

    def __init__(self, action: Callable[[], object] = lambda: None) -> None:
        self._action = action

    def __enter__(self) -> None:
        self._action()


class Caller:
    """What a call needs: a gate, something that tells of the worker's death, and something that is woken."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.dead, self.die = os.pipe()
        self.woken, self.waker = socket.socketpair()
        self.woken.setblocking(False)
        channel.parent.watch(self.dead)

    def call(self, unit: object, payload: bytes = b"", gate: Gate | None = None, **more: Any) -> Any:
        parts = (_channel.APPLY, 0, 5, 77, 9, b"", payload, more.get("buffers", []))
        return self.channel.parent.call(unit, *parts, gate or Gated(), self.waker.fileno())

    def was_woken(self) -> bool:
        try:
            return len(self.woken.recv(100)) > 0
        except BlockingIOError:
            return False

    def close(self) -> None:
        for fd in (self.dead, self.die):
            os.close(fd)
        self.woken.close()
        self.waker.close()


class Sent:
    sent = False


@pytest.fixture
def caller(channel: Channel) -> Iterator[Caller]:
    made = Caller(channel)
    yield made
    made.close()


def test_a_call_brings_its_answer(channel: Channel, caller: Caller) -> None:
    for count in (0, 10, 5000, 3_000_000):
        data, unit = os.urandom(count), Sent()
        with ThreadPoolExecutor(1) as thread:
            call = thread.submit(caller.call, unit, data, buffers=[memoryview(data)])
            frame = channel.take()
            assert (frame.kind, frame.unit, frame.claimed, bytes(frame.payload or b"")) == (
                _channel.APPLY,
                77,
                True,
                data,
            )
            channel.worker.answer(0, frame.payload or b"", [memoryview(one) for one in frame.buffers])
            channel.worker.ring()
            answer = call.result()
        assert (answer.unit, bytes(answer.payload)) == (unit, data)
        assert [bytes(one) for one in answer.buffers] == [data]
        assert unit.sent
    parent = channel.parent
    assert (parent.assigned, parent.answers, parent.inflight, parent.waiting) == (4, 4, 0, 0)
    assert parent.idle
    assert not caller.was_woken()


def test_what_calls_leave_unread_does_not_grow(channel: Channel, caller: Caller) -> None:
    """A call may see its answer without being told: it reads the bells that came before."""
    for number in range(300):
        channel.post("taken back")
        channel.send()
        channel.parent.take_back(1)
        assert channel.worker.wait()
        assert channel.worker.take() is None
        channel.worker.ring()  # of that
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(caller.call, number)
            channel.run(1)
            channel.worker.ring()
            assert answer.result().unit == number
        left = struct.unpack("i", fcntl.ioctl(channel.ours, termios.FIONREAD, bytes(4)))[0]
        assert left <= 2 * FRAME


def test_only_an_idle_end_is_lent(channel: Channel, caller: Caller) -> None:
    parent = channel.parent
    assert parent.idle
    channel.post("other")
    assert caller.call(Sent()) is False
    channel.send()
    channel.run(1)
    channel.receive()
    assert parent.idle
    parent.watch(-1)
    assert caller.call(Sent()) is False  # nobody would see a death
    parent.watch(caller.dead)
    assert parent.idle
    assert parent.retire()
    assert caller.call(Sent()) is False
    parent.close()
    assert caller.call(Sent()) is False
    assert not caller.was_woken()


def test_an_end_that_is_lent_is_let_alone(channel: Channel, caller: Caller) -> None:
    """Whoever wants it is woken when it is back."""
    parent, unit = channel.parent, Sent()
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(caller.call, unit)
        assert channel.take().claimed
        assert parent.lent
        assert caller.call(Sent()) is False
        assert (parent.inflight, parent.idle, parent.take_back(5)) == (1, False, [])
        assert post_row(channel, range(5))[1] == parent.post_units(units_of((1,)), 5, _channel.APPLY, 9) == 0
        assert channel.receive() == []
        with pytest.raises(RuntimeError, match="in use"):
            parent.close()
        channel.worker.answer(0, b"", [])
        channel.worker.ring()
        assert call.result().unit is unit
    assert not parent.lent
    assert caller.was_woken()


def test_an_end_that_was_stopped_is_not_lent(channel: Channel, caller: Caller) -> None:
    channel.parent.stop()
    assert caller.call(Sent()) is False
    channel.send()
    assert caller.call(Sent()) is False


ASKS: dict[str, Callable[[Channel], object]] = {
    "ask": lambda channel: channel.parent.ask(),
    "flush": lambda channel: not channel.parent.flush(),
    "retire": lambda channel: channel.parent.retire(),
    "stop": lambda channel: channel.parent.stop(),
    "drop_unsent": lambda channel: channel.parent.drop_unsent(),
    "take_back": lambda channel: channel.parent.take_back(1),
}


@pytest.mark.parametrize("what", [*ASKS, "post", "nothing"])
def test_whoever_wants_a_lent_end_is_woken_when_it_is_back(what: str, channel: Channel, caller: Caller) -> None:
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(caller.call, Sent())
        assert channel.take().claimed
        if what == "post":
            with pytest.raises(BlockingIOError):
                channel.post("other")
        elif what in ASKS:
            assert not ASKS[what](channel)
        assert channel.parent.lent
        assert not channel.parent.idle
        channel.worker.answer(0, b"", [])
        channel.worker.ring()
        call.result()
    assert caller.was_woken() == (what != "nothing")
    if what == "stop":
        channel.send()
        assert channel.take().kind == _channel.STOP


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("how", ["died", "closed", "nonsense"])
def test_a_call_whose_worker_brings_nothing_leaves_its_unit_in_flight(
    how: str, begun: bool, channel: Channel, caller: Caller
) -> None:
    unit = Sent()

    def end() -> None:
        if begun:
            assert channel.take().claimed
        if how == "died":
            os.write(caller.die, b".")
        elif how == "closed":
            channel.theirs.shutdown(socket.SHUT_RDWR)
        else:
            channel.theirs.send(struct.pack("=BBHI6Q", 18, 0, 0, 0, 0, 0, 0, 0, 5, 4))

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(end)
        assert caller.call(unit) is None
        done.result()
    assert (channel.parent.lent, channel.parent.units(), unit.sent) == (False, [unit], True)
    assert channel.parent.unanswered() == (([unit], []) if begun else ([], [unit]))
    assert caller.was_woken()
    if how == "nonsense":
        with pytest.raises(OSError, match="Protocol error"):
            channel.receive()


def test_a_call_whose_worker_reads_no_more(channel: Channel, caller: Caller) -> None:
    """That it cannot be sent to is seen again by who sends next."""
    unit = Sent()
    assert caller.call(unit, gate=Gated(lambda: channel.theirs.close())) is None
    assert channel.parent.units() == [unit]
    assert caller.was_woken()
    with pytest.raises(BrokenPipeError):
        channel.parent.flush()


def test_a_gate_that_raises(channel: Channel, caller: Caller) -> None:
    """On the way in nothing was sent; on the way out the unit is on its way."""

    class Shut(Gated):
        def __exit__(self, *_: object) -> None:
            raise Interrupted

    def refuse() -> None:
        raise Interrupted

    unit = Sent()
    with pytest.raises(Interrupted):
        caller.call(unit, gate=Gated(refuse))
    assert (unit.sent, channel.parent.idle, caller.was_woken()) == (False, True, False)
    with pytest.raises(ValueError, match="list of buffers"):
        caller.call(unit, buffers=())
    assert (unit.sent, channel.parent.idle, caller.was_woken()) == (False, True, False)
    with pytest.raises(Interrupted):
        caller.call(unit, gate=Shut())
    assert not channel.parent.lent
    assert (unit.sent, channel.parent.units(), caller.was_woken()) == (True, [unit], True)
    channel.run(1)
    assert [answer.unit for answer in channel.receive()] == [unit]


def test_who_uses_the_end_while_the_gate_is_left_keeps_it(channel: Channel, caller: Caller) -> None:
    """Python code runs there, a handler perhaps; the call leaves its unit to the dispatcher."""

    class Between(Gated):
        def __exit__(self, *_: object) -> None:
            assert not channel.parent.lent
            channel.post("other")

    unit = Sent()
    assert caller.call(unit, gate=Between()) is None
    assert caller.was_woken()
    channel.send()
    channel.run(2)
    assert [answer.unit for answer in channel.receive()] == [unit, "other"]


def test_an_end_that_another_call_has_since_is_let_alone(channel: Channel, caller: Caller) -> None:
    """While the gate is left, the dispatcher takes the answer, and another thread's call comes."""
    second: list[Any] = []

    def others() -> None:
        channel.run(1)
        assert [answer.unit for answer in channel.receive()] == [first]
        second.append(thread.submit(caller.call, Sent()))
        assert channel.take().claimed

    class Between(Gated):
        def __exit__(self, *_: object) -> None:
            others()

    first = Sent()
    with ThreadPoolExecutor(1) as thread:
        assert caller.call(first, gate=Between()) is None
        assert channel.parent.lent
        assert not caller.was_woken()
        channel.worker.answer(0, b"2", [])
        channel.worker.ring()
        assert second[0].result().payload == b"2"
    assert channel.parent.idle


def test_an_end_that_is_closed_while_the_gate_is_left(channel: Channel, caller: Caller) -> None:
    """Nobody is left to be woken."""

    class Between(Gated):
        def __exit__(self, *_: object) -> None:
            channel.parent.close()

    assert caller.call(Sent(), gate=Between()) is None
    assert not caller.was_woken()


def test_an_answer_beside_nonsense_is_brought(channel: Channel, caller: Caller) -> None:
    """The next who receives hears of the nonsense."""

    def answer() -> None:
        assert channel.take().claimed
        channel.page[PASSED : PASSED + 8] = struct.pack("=Q", 100)
        channel.worker.answer(0, bytes(20_000), [])

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(answer)
        assert len(caller.call(Sent()).payload) == 20_000
        done.result()
    assert caller.call(Sent()) is False
    with pytest.raises(OSError, match="Protocol error"):
        channel.receive()


def test_a_signal_while_a_large_unit_is_sent_is_handled_at_once(
    channel: Channel, caller: Caller, handled: threading.Event
) -> None:
    """Most of the time it comes where no system call is interrupted by it."""
    unit = Sent()

    def read() -> None:
        channel.worker.wait()  # until the first of it is here: a signal before that would keep it from being sent
        interrupt(handled)
        while not channel.worker.take():
            channel.worker.wait()

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(read)
        with pytest.raises(Interrupted):
            caller.call(unit, bytes(20 << 20))
        assert unit.sent
        while not done.done():
            channel.parent.flush()


def test_a_handler_that_raises_amid_a_call(channel: Channel, caller: Caller, handled: threading.Event) -> None:
    """The end is back before the handler runs."""
    unit = Sent()
    with ThreadPoolExecutor(1) as thread:
        taken = thread.submit(channel.take)
        done = thread.submit(interrupt, handled)
        with pytest.raises(Interrupted):
            caller.call(unit)
        done.result()
    assert taken.result().claimed
    assert (channel.parent.lent, channel.parent.units()) == (False, [unit])
    assert caller.was_woken()
    channel.worker.answer(0, b"", [])
    assert [answer.unit for answer in channel.receive()] == [unit]


class Interrupted(Exception):
    pass


@pytest.fixture
def handled() -> Iterator[threading.Event]:
    """Set when the handler of SIGUSR1 has raised; it does so once."""
    event = threading.Event()

    def handler(number: int, frame: object) -> None:
        if not event.is_set():
            event.set()
            raise Interrupted

    before = signal.signal(signal.SIGUSR1, handler)
    yield event
    signal.signal(signal.SIGUSR1, before)


def interrupt(handled: threading.Event) -> None:
    """Hits the main thread. (A signal that comes just before a wait does not end it.)"""
    while not handled.wait(0.01):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def test_a_handler_that_raises_while_the_worker_waits(channel: Channel, handled: threading.Event) -> None:
    """Nothing is lost by it."""

    def wait() -> None:
        thread.start()
        channel.worker.wait()

    thread = threading.Thread(target=interrupt, args=(handled,))
    with pytest.raises(Interrupted):
        wait()
    thread.join()
    channel.post(1, b"whole")
    channel.send()
    assert channel.take().payload == b"whole"


def test_a_handler_that_raises_while_half_a_result_is_sent(channel: Channel, handled: threading.Event) -> None:
    """What is sent next would be taken for the rest of it: nothing is."""
    channel.post(1)
    channel.send()
    channel.take()

    def hit() -> None:
        channel.ours.recv(1, socket.MSG_PEEK)  # a part is here, and the rest has no room
        interrupt(handled)

    thread = threading.Thread(target=hit)
    thread.start()
    with pytest.raises(Interrupted):
        channel.worker.answer(0, bytes(10 << 20), [])
    thread.join()
    with pytest.raises(BrokenPipeError):
        channel.worker.answer(0, bytes(10_000), [])
    assert channel.receive() == []
    channel.theirs.close()
    assert channel.receive() == []
    assert channel.parent.unanswered() == ([1], [])
