"""Bytes to batches to raw events, and back; no meaning attached.

A trace is a header of 16 bytes and batches; 1.26 has EndOfGeneration bytes between them:

    batch   | 1 | generation | M | time | size | size bytes of contents |       numbers are unsigned LEB128
    events  | type | argument ... |      String: + length, bytes      Stack: + 4 numbers a frame

Reading holds one batch at a time and checks each length before it is used. Writing is canonical: the shortest form of
each number. A file with padded numbers (our own tables have 3-byte ids) reads the same, but is not written the same.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple, cast

from pooltrace.errors import BadTraceError
from pooltrace.format import spec
from pooltrace.format.spec import EventSpec, Header

_EVENT_BATCH: Final = spec.BY_NAME["EventBatch"].number
_EXPERIMENTAL_BATCH: Final = spec.BY_NAME["ExperimentalBatch"].number
_END_OF_GENERATION: Final = spec.BY_NAME["EndOfGeneration"].number
_LZ4_MAGIC: Final = b"\x04\x22\x4d\x18"
_CHUNK: Final = 1 << 16


class NotATraceError(BadTraceError):
    """The file is something else, or a trace of a version that is not read here."""


class CutTraceError(BadTraceError):
    """The file ends too early.

    ``offset`` is where what is whole ends, ``gen`` the generation that was being read, if known.
    """

    def __init__(self, message: str, *, offset: int | None = None, gen: int | None = None) -> None:
        super().__init__(message, gen=gen)
        self.offset = offset


class Batch(NamedTuple):
    """One batch. ``m`` is signed (-1: no M); ``offset`` is where it begins in the (uncompressed) file.

    ``end`` marks the EndOfGeneration between two generations, which is no batch: all else is empty then.
    """

    gen: int
    m: int
    time: int
    data: bytes
    offset: int = 0
    end: bool = False

    @property
    def mark(self) -> int:
        """The type of the first event: says what kind of batch it is. 0 for an empty batch."""
        return self.data[0] if self.data else 0


class RawEvent(NamedTuple):
    """One event as it stands in a batch. ``text`` is a String's bytes, ``frames`` a Stack's (pc, func, file, line)."""

    spec: EventSpec
    args: tuple[int, ...]
    text: bytes = b""
    frames: tuple[tuple[int, ...], ...] = ()


def signed(value: int) -> int:
    """The signed meaning of an unsigned 64-bit number: Go's ids of Ms, Ps and Gs, with -1 for none."""
    return value - (1 << 64) if value >> 63 else value


def uvarint(value: int) -> bytes:
    """The shortest LEB128 form of an unsigned number; negative numbers count as 64-bit two's complement."""
    if value < 0:
        value += 1 << 64
    if not 0 <= value < 1 << 64:
        raise ValueError("number does not fit into 64 bits")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def parse_uvarint(data: bytes, pos: int) -> tuple[int, int]:
    """The number at ``pos`` and the position behind it.

    Raises BadTraceError if it does not end, or not fit into 64 bits.
    """
    value = shift = 0
    while pos < len(data) and shift < 70:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, pos
        shift += 7
    raise BadTraceError("a number does not end, or does not fit into 64 bits")


# --- files ----------------------------------------------------------------------------------------


class _Lz4Source(io.RawIOBase):
    """Reads the contents of lz4 frames, one after the other, with bounded memory.

    A frame that ends early raises CutTraceError.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        try:
            from lz4.frame import LZ4FrameDecompressor
        except ImportError:
            raise NotATraceError("an lz4 file: install lz4 to read it (pip install lz4)") from None
        self._new = LZ4FrameDecompressor
        self._frame = LZ4FrameDecompressor()
        self._file = file
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if self._frame.eof:
                self._left = self._frame.unused_data or self._file.read(_CHUNK)
                if not self._left:
                    return 0
                self._frame = self._new()
            elif self._frame.needs_input and not self._left:
                self._left = self._file.read(_CHUNK)
                if not self._left:
                    raise CutTraceError("cut off: the lz4 frame has no end")
            given, self._left = self._left, b""
            try:
                out = self._frame.decompress(given, len(buffer))
            except (RuntimeError, EOFError):
                raise BadTraceError("damaged: not a valid lz4 frame") from None
            if out:
                buffer[: len(out)] = out
                return len(out)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_trace(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a trace for reading. One that begins with lz4's magic number is decompressed, whatever its name."""
    file = open(path, "rb")  # noqa: SIM115 - handed to the caller
    try:
        if file.peek(4)[:4] == _LZ4_MAGIC:
            return cast(BinaryIO, io.BufferedReader(_Lz4Source(file), _CHUNK))
    except BaseException:
        file.close()
        raise
    return file


def _read_up_to(file: BinaryIO, size: int) -> bytes:
    """``size`` bytes, or less at the end of the file."""
    data = file.read(size)
    while 0 < len(data) < size:
        more = file.read(size - len(data))
        if not more:
            break
        data += more
    return data


def read_header(file: BinaryIO) -> Header:
    """Reads the first 16 bytes. Raises NotATraceError or CutTraceError."""
    data = _read_up_to(file, spec.HEADER_SIZE)
    for header in spec.HEADERS.values():
        if data == header.magic:
            return header
    if not data:
        raise NotATraceError("the file is empty")
    if any(header.magic.startswith(data) for header in spec.HEADERS.values()):
        raise CutTraceError("cut off in the header, nothing is left to read", offset=0)
    other = re.fullmatch(rb"go (1\.\d+) trace\0+", data)
    if other:
        known = ", ".join(spec.HEADERS)
        raise NotATraceError(f"a Go trace of version {other[1].decode()}, which is not read here (only {known})")
    raise NotATraceError("not a Go execution trace")


class BatchReader:
    """Iterates over the batches of a trace whose header was read.

    ``offset`` is the position in the uncompressed file.
    """

    def __init__(self, file: BinaryIO, header: Header, offset: int = spec.HEADER_SIZE) -> None:
        self.header = header
        self.offset = offset
        self._file = file

    def __iter__(self) -> Iterator[Batch]:
        while True:
            start = self.offset
            first = self._file.read(1)
            if not first:
                return
            self.offset += 1
            yield self._batch(first[0], start)

    def _batch(self, kind: int, start: int) -> Batch:
        if kind == _END_OF_GENERATION and self.header.end_of_generation:
            return Batch(0, spec.NONE, 0, b"", start, end=True)
        if kind == _EXPERIMENTAL_BATCH and kind in _rows(self.header):
            raise BadTraceError(f"experimental batch at offset {start}: these are not read here")
        if kind != _EVENT_BATCH:
            raise BadTraceError(f"no batch at offset {start}, but a byte {kind}")
        gen = self._number(start, None)
        m = self._number(start, gen)
        time = self._number(start, gen)
        size = self._number(start, gen)
        if size > spec.MAX_BATCH_SIZE:
            where = f"generation {gen}, M {signed(m)}, batch at offset {start}"
            why = f"{where}: {size} bytes, more than {spec.MAX_BATCH_SIZE}"
            raise BadTraceError(why, event="EventBatch", m=signed(m), gen=gen)
        data = _read_up_to(self._file, size)
        self.offset += len(data)
        if len(data) < size:
            raise _cut(start, gen)
        return Batch(gen, signed(m), time, data, start)

    def _number(self, start: int, gen: int | None) -> int:
        value = 0
        for shift in range(0, 7 * spec.MAX_VARINT_SIZE, 7):
            byte = self._file.read(1)
            if not byte:
                raise _cut(start, gen)
            self.offset += 1
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                if value >> 64:
                    break
                return value
        raise BadTraceError(f"header of the batch at offset {start}: a number does not fit into 64 bits", gen=gen)


def _cut(start: int, gen: int | None) -> CutTraceError:
    where = "" if gen is None else f" of generation {gen}"
    return CutTraceError(f"cut off in the middle of the batch{where} at offset {start}", offset=start, gen=gen)


def read_batches(file: BinaryIO) -> tuple[Header, BatchReader]:
    """The header, and the batches to iterate over, of a binary file."""
    header = read_header(file)
    return header, BatchReader(file, header)


def encode_batch(batch: Batch) -> bytes:
    """A batch with its header, or the EndOfGeneration that it stands for. Limits are the caller's business."""
    if batch.end:
        return bytes([_END_OF_GENERATION])
    head = b"".join(uvarint(number) for number in (batch.gen, batch.m, batch.time, len(batch.data)))
    return bytes([_EVENT_BATCH]) + head + batch.data


# --- events ---------------------------------------------------------------------------------------

_ROWS: Final[dict[int, dict[int, EventSpec]]] = {
    header.minor: {event.number: event for event in spec.EVENTS if header.knows(event)}
    for header in spec.HEADERS.values()
}


def _rows(header: Header) -> dict[int, EventSpec]:
    return _ROWS[header.minor]


def read_events(batch: Batch, header: Header) -> Iterator[RawEvent]:
    """The events of one batch, of whatever kind.

    Raises BadTraceError for what is cut, over a limit, or not known to the header.
    """
    rows = _rows(header)
    data = batch.data
    pos = 0
    while pos < len(data):
        start = pos
        event = rows.get(data[pos])
        if event is None or event.number in (_EVENT_BATCH, _EXPERIMENTAL_BATCH, _END_OF_GENERATION):
            raise _bad(batch, start, f"byte {data[pos]} is no event of a {header.name} trace", None)
        pos += 1
        args = []
        try:
            for _ in event.args:
                value, pos = parse_uvarint(data, pos)
                args.append(value)
            if event.has_text:
                text, pos = _read_text(data, pos)
                yield RawEvent(event, tuple(args), text=text)
            elif event.has_frames:
                frames, pos = _read_frames(data, pos, args[1])
                yield RawEvent(event, tuple(args), frames=frames)
            else:
                yield RawEvent(event, tuple(args))
        except BadTraceError as error:
            raise _bad(batch, start, str(error), event.name) from None


def _bad(batch: Batch, pos: int, why: str, event: str | None) -> BadTraceError:
    what = "" if event is None else f" in {event}"
    return BadTraceError(
        f"generation {batch.gen}, M {batch.m}, byte {pos} of the batch at offset {batch.offset}{what}: {why}",
        event=event,
        m=batch.m,
        gen=batch.gen,
    )


def _read_text(data: bytes, pos: int) -> tuple[bytes, int]:
    size, pos = parse_uvarint(data, pos)
    if size > spec.MAX_STRING_SIZE:
        raise BadTraceError(f"a string of {size} bytes, more than {spec.MAX_STRING_SIZE}")
    if size > len(data) - pos:
        raise BadTraceError(f"a string of {size} bytes, where only {len(data) - pos} are left")
    return data[pos : pos + size], pos + size


def _read_frames(data: bytes, pos: int, count: int) -> tuple[tuple[tuple[int, ...], ...], int]:
    if count > spec.MAX_STACK_FRAMES:
        raise BadTraceError(f"a stack of {count} frames, more than {spec.MAX_STACK_FRAMES}")
    frames = []
    for _ in range(count):
        frame = []
        for _ in spec.FRAME_ARGS:
            value, pos = parse_uvarint(data, pos)
            frame.append(value)
        frames.append(tuple(frame))
    return tuple(frames), pos


def encode_event(event: RawEvent) -> bytes:
    """The canonical bytes of one event."""
    out = bytearray([event.spec.number])
    for value in event.args:
        out += uvarint(value)
    if event.spec.has_text:
        out += uvarint(len(event.text))
        out += event.text
    for frame in event.frames:
        for value in frame:
            out += uvarint(value)
    return bytes(out)


def encode_events(events: Iterable[RawEvent]) -> bytes:
    """The contents of a batch."""
    return b"".join(map(encode_event, events))
