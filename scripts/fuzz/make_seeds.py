"""Writes the seeds of the fuzz targets in C: ``python scripts/fuzz/make_seeds.py``, again after a change to a script.

The opcodes and the scripts' commands stand at the heads of core.h, fuzz_merge.c, fuzz_gather.c and
fuzz_parts.c. The seeds of
fuzz_raw.py are the golden traces in tests/golden.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent / "seeds"

(STRING, STACK, TIME) = range(1, 4)
(CREATE, BEGIN, END, CANCEL, IDLE, BLOCK, UNBLOCK, RESUME, ENTER, LEAVE) = range(8, 18)
(TASK, TASK_END, REGION, REGION_END, LOG, SPAN, SPAN_END, SAMPLE, PAUSE, PAUSE_END, USER_TASK) = range(18, 29)
SELF, SAME = 1, 2
T0 = 10**9  # the clock of fuzz_merge: no later than the machine's own, or the merge does not believe it


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def op(code: int, *args: int) -> bytes:
    """An event, or the beginning of a definition: opcode and numbers, an event's first: the time since the last one."""
    return bytes([code]) + b"".join(map(varint, args))


def string(number: int, text: bytes) -> bytes:
    return op(STRING, number, len(text)) + text


def stack(number: int, *frames: tuple[int, int, int]) -> bytes:
    return op(STACK, number, len(frames)) + b"".join(varint(part) for frame in frames for part in frame)


def log(dt: int, task: int, key: int, value: bytes) -> bytes:
    return op(LOG, dt, task, key, len(value)) + value


def names() -> bytes:
    return string(1, b"work") + string(2, b"work.py") + stack(1, (1, 2, 7)) + stack(2, (1, 2, 9), (1, 2, 30))


def unit(g: int, created: int) -> bytes:
    items = b"".join(op(REGION, 50, 2, 7, 1, 2) + op(REGION_END, 900) for _ in range(3))
    items += op(USER_TASK, 5, 8, 7, 1, 2) + op(TASK_END, 5, 8, 2)
    items += op(SPAN, 5, 9, 7, 1, 2) + op(SPAN, 5, 10, 7, 1, 2) + op(SPAN_END, 5, 9) + op(SPAN_END, 5, 10)
    phase = string(3, b"unpickle") + op(REGION, 10, 1, 0, 3, 0) + op(REGION_END, 40)
    items += op(SAMPLE, 3, 1, 2) + op(PAUSE, 2, 2) + op(SAMPLE, 3, 4, 2) + op(PAUSE_END, 7)
    return op(BEGIN, 100, g, created, 1) + phase + items + log(5, 7, 1, b"12 ms") + op(END, 20) + op(IDLE, 3)


def thread() -> bytes:
    task = op(TASK, 5, 7, 0, 1, 2) + op(CREATE, 9, 40, 1, 2) + op(CREATE, 9, 41, 1, 2)
    return op(ENTER, 10, 30) + task + op(CANCEL, 4, 41, 5, 1) + op(TASK_END, 50, 7, 2) + op(LEAVE, 2)


def waits() -> bytes:
    own = op(BLOCK, 10, 1, 2) + op(RESUME, 500, SELF)
    other = op(BLOCK, 10, 1, 2) + op(RESUME, 500, SAME)
    return own + other + op(UNBLOCK, 9, 30, 1, 0, 2) + op(UNBLOCK, 9, 30, 2, 1, 0)


# --- fuzz_merge: commands --------------------------------------------------------------------------


def feed(m: int, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return bytes([m | 8 << 2]) + struct.pack("<H", len(data)) + data


def generation(ns: int = 1_000_000) -> bytes:
    return bytes([9 << 2]) + struct.pack("<I", ns)


def ends(m: int, lost: bool) -> bytes:
    return bytes([m | (11 if lost else 10) << 2])


def claimed(m: int, unit: int, ago: int) -> bytes:
    return bytes([m | 12 << 2]) + struct.pack("<HB", unit, ago)


def when(ns: int) -> bytes:
    return op(TIME, T0 + ns)


def merge_seeds() -> Iterable[tuple[str, bytes]]:
    work = feed(1, when(10), names(), unit(50, 5)) + feed(2, when(20), names(), unit(51, 0), unit(52, 5))
    again = feed(1, when(1_000_100), names(), unit(53, 5))
    yield "units", work + generation() + again + generation()
    yield "thread", feed(0, when(10), names(), thread()) + generation() + feed(0, when(1_000_100), names(), thread())
    yield (
        "waits",
        feed(0, when(10), names(), waits(), op(BLOCK, 5, 1, 0)) + generation() + feed(0, op(RESUME, 1_000_100, 0)),
    )
    yield (
        "lost",
        feed(2, when(10), names(), op(BEGIN, 1, 60, 5, 1), op(REGION, 1, 2, 7, 1, 2))
        + ends(2, True)
        + feed(3, when(90), names(), unit(61, 0))
        + ends(3, True)
        + claimed(1, 62, 0)
        + ends(1, True),
    )
    paused = feed(1, when(10), names(), op(BEGIN, 1, 60, 5, 1), op(PAUSE, 2, 1), op(SAMPLE, 2, 1 << 40, 1))
    yield "pause", paused + generation() + feed(1, when(1_000_100), op(PAUSE_END, 3), op(PAUSE, 2, 0), op(IDLE, 4))
    yield "slots", bytes([13 << 2]) + generation(1) + bytes([13 << 2]) + feed(3, when(5), op(IDLE, 1))
    yield (
        "wide",
        feed(1, when(10), string(1, b"x" * 1024), stack(9, *((1, 1, n) for n in range(128))), op(BEGIN, 1, 9, 0, 9)),
    )


# --- fuzz_gather: commands -------------------------------------------------------------------------


def to_pipe(which: int, data: bytes) -> bytes:
    return bytes([which, len(data)]) + data


def block(which: int, gen: int, number: int, data: bytes, announced: int | None = None) -> bytes:
    size = len(data) if announced is None else announced
    return bytes([which | 1 << 2]) + struct.pack("<bHHH", gen, number, size, len(data)) + data


def word(gen: int, on: bool, number: int, position: int) -> bytes:
    return struct.pack("<bHH", gen, number << 1 | on, position)


def set_word(which: int, *fields: int) -> bytes:
    return bytes([which | 2 << 2]) + word(fields[0], bool(fields[1]), *fields[2:])


def set_left(which: int, place: int, *fields: int) -> bytes:
    return bytes([which | 3 << 2, place]) + word(fields[0], bool(fields[1]), *fields[2:])


def buffer(which: int, parity: int, at: int, data: bytes) -> bytes:
    return bytes([which | 4 << 2, parity]) + struct.pack("<HH", at, len(data)) + data


ADVANCE = bytes([5 << 2])


def gone(which: int, how: int) -> bytes:
    return bytes([which | 6 << 2, how])


def queue(gen: int, number: int, data: bytes) -> bytes:
    return bytes([3 | 7 << 2]) + struct.pack("<bHH", gen, number, len(data)) + data


GUEST = bytes([14 << 2])


def guest_block(gen: int, number: int, data: bytes) -> bytes:
    return bytes([15 << 2]) + struct.pack("<bHHH", gen, number, len(data), len(data)) + data


def owner(entry: int, value: int) -> bytes:
    return bytes([13 << 2, entry]) + struct.pack("<I", value)


def thread_ends(gen: int) -> bytes:
    return bytes([3 | 8 << 2]) + struct.pack("<b", gen)


def gather_seeds() -> Iterable[tuple[str, bytes]]:
    start = bytes([3, 2 | 5 << 2, 1])  # one worker runs a unit when the trace begins
    data = op(TIME, 1000) + names() + unit(50, 0)
    in_buffer = buffer(0, 1, 0, data) + set_word(0, 0, 1, 0, len(data))  # the first generation is 5
    yield "pipe", start + block(0, 0, 0, data) + block(0, 0, 1, unit(51, 0)) + block(1, 1, 0, data) + ADVANCE + ADVANCE
    yield "arena", start + in_buffer + ADVANCE + buffer(0, 0, 0, data) + set_left(0, 0, 0, 1, 0, len(data)) + ADVANCE
    yield "both", start + block(0, 0, 0, data) + in_buffer + ADVANCE + block(0, -1, 0, data)
    yield "gone", start + in_buffer + gone(0, 1) + block(0, 0, 0, data) + gone(0, 3) + gone(1, 0) + ADVANCE
    thread_data = op(TIME, 1000) + names() + thread()
    yield (
        "guest",
        start
        + GUEST
        + guest_block(0, 0, thread_data)
        + guest_block(1, 0, thread_data)
        + ADVANCE
        + guest_block(0, 1, b""),
    )
    yield (
        "guest-lost",
        start + GUEST + guest_block(0, 0, thread_data) + ADVANCE + gone(0, 1) + GUEST + owner(5, 0) + ADVANCE,
    )
    yield "gone-early", start + block(0, 1, 0, data) + gone(0, 1) + ADVANCE  # its slot must not be used any more
    yield "thread-early", start + queue(1, 0, data) + thread_ends(0) + ADVANCE + queue(0, 0, data)
    yield (
        "queue",
        start + queue(0, 0, op(TIME, 1000) + names() + thread()) + queue(1, 0, data) + thread_ends(1) + ADVANCE,
    )
    yield (
        "nonsense",
        start + to_pipe(0, b"no block at all, but more than a header") + block(1, 0, 0, b"\xff\xff") + ADVANCE,
    )
    yield "cut", start + block(1, 0, 0, data, announced=500) + ADVANCE + to_pipe(1, b"x" * 200) + ADVANCE


# --- fuzz_parts: a pickle --------------------------------------------------------------------------

CALL, ITEMS, ROWS = range(3)


def pickled(kind: int, body: bytes, *sizes: int, protocol: int = 5) -> bytes:
    head = struct.pack(f"<B{len(sizes)}H", kind | len(sizes) << 2, *sizes)
    return head + bytes([0x80, protocol]) + body + b"."


def parts_seeds() -> Iterable[tuple[str, bytes]]:
    """By hand: what Python's picklers put into the memo depends on the version."""
    text, blob = b"\x8c\5hello\x94", b"B\4\0\0\0blob"
    several = b"](K\1M\2\2J\3\0\0\0G\0\0\0\0\0\0\0\0\x8a\1\5e"
    kwds = b"}\x94(\x8c\1a\x94K\1h\0N\x8c\1bj\1\0\0\0u"
    thing = b"cnowhere\nThing\nq\5)\x81}X\1\0\0\0xK\1sb"
    row = text + b"N\x86\x94"
    yield "call", pickled(CALL, b"\x95\x20" + bytes(7) + b"(" + text + blob + several + b"h\0t" + kwds + b"\x86\x94")
    yield "short", pickled(CALL, b"X\1\0\0\0aq\0" + thing + b"\x86q\1}h\0Ns\x86", protocol=2)
    yield "list", pickled(CALL, b"]" + text + b"aN\x85a}\x86")
    yield "items", pickled(ITEMS, b"(" + text + several + b"\x8f(K\1\x90(K\2\x91\x88\x89t\x94")
    yield "rows", pickled(ROWS, b"](" + row + b"h\1](" + text + b"NNNe)(K\1NNNte\x94")
    yield "three", pickled(ROWS, row + b"]K\1a](" + text + b"Ne\x87")
    yield "beside", pickled(CALL, b"\x97\x98N\x97\x87}\x86", 9, 60_000)
    yield "beside-items", pickled(ROWS, b"\x97\x85\x97N\x86\x86", 9, 60_000)
    yield "knot", pickled(CALL, b"N]\x94h\0\x85\x94a0h\1(NNN]\x94(NNNh\2t\x94a1h\3\x87}\x86")
    aside = b"cnowhere\nset\nh\0N\x86R0"
    yield "aside", pickled(CALL, b"(" + text + thing + aside + b"}\x94h\6" + text + b"Ns0h\0t}\x86")


def main() -> None:
    targets = (("fuzz_merge", merge_seeds()), ("fuzz_gather", gather_seeds()), ("fuzz_parts", parts_seeds()))
    for target, seeds in targets:
        directory = HERE / target
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in seeds:
            header = b"\3" if target == "fuzz_merge" else b""
            (directory / name).write_bytes(header + data)


if __name__ == "__main__":
    main()
