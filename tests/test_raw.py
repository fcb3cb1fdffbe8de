"""Bytes, batches and text: exact both ways, bounded, and never another error than BadTraceError."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
from golden_files import GOLDENS, Golden, named, one_line
from hypothesis import given
from hypothesis import strategies as st

from pooltrace.errors import BadTraceError
from pooltrace.format import raw, spec, text
from pooltrace.format.raw import Batch, RawEvent

U64 = st.integers(0, 2**64 - 1)
SMALL = st.one_of(st.integers(0, 300), U64)
WHOLE = [golden for golden in GOLDENS if golden.outcome == "good"]
SAMPLE = named("good-header-1.26")


def make_event(draw: st.DrawFn, header: spec.Header) -> RawEvent:
    banned = ("EventBatch", "ExperimentalBatch", "EndOfGeneration")
    rows = [row for row in spec.EVENTS if header.knows(row) and row.name not in banned]
    row = draw(st.sampled_from(rows))
    args = tuple(draw(SMALL) for _ in row.args)
    if row.has_text:
        return RawEvent(row, args, text=draw(st.binary(max_size=40)))
    if row.has_frames:
        frames = tuple(draw(st.lists(st.tuples(SMALL, SMALL, SMALL, SMALL), max_size=4)))
        return RawEvent(row, (args[0], len(frames)), frames=frames)
    return RawEvent(row, args)


@st.composite
def traces(draw: st.DrawFn) -> tuple[spec.Header, list[Batch]]:
    """Any header and any well-formed batches, with no sense in them."""
    header = draw(st.sampled_from(list(spec.HEADERS.values())))
    batches = []
    for _ in range(draw(st.integers(0, 4))):
        if header.end_of_generation and draw(st.booleans()):
            batches.append(Batch(0, -1, 0, b"", end=True))
            continue
        events = [make_event(draw, header) for _ in range(draw(st.integers(0, 5)))]
        gen, m, time = draw(SMALL), raw.signed(draw(SMALL)), draw(SMALL)
        batches.append(Batch(gen, m, time, raw.encode_events(events)))
    return header, batches


def encode(header: spec.Header, batches: list[Batch]) -> bytes:
    return header.magic + b"".join(map(raw.encode_batch, batches))


def to_text(data: bytes) -> str:
    return "".join(text.read_text(io.BytesIO(data)))


def to_bytes(lines: str, *, limits: bool = True) -> bytes:
    return b"".join(text.parse_text(lines.splitlines(), limits=limits))


@given(U64)
def test_numbers_round_trip(value: int) -> None:
    assert raw.parse_uvarint(raw.uvarint(value), 0) == (value, len(raw.uvarint(value)))
    assert raw.uvarint(raw.signed(value)) == raw.uvarint(value)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9 + b"\x02", b"\x80" * 10 + b"\x00"])
def test_bad_numbers(data: bytes) -> None:
    with pytest.raises(BadTraceError):
        raw.parse_uvarint(data, 0)


@given(traces())
def test_batches_round_trip(trace: tuple[spec.Header, list[Batch]]) -> None:
    data = encode(*trace)
    header, reader = raw.read_batches(io.BytesIO(data))
    batches = list(reader)
    assert header == trace[0]
    assert [batch._replace(offset=0) for batch in batches] == trace[1]
    assert reader.offset == len(data)
    for batch in batches:
        assert raw.encode_events(raw.read_events(batch, header)) == batch.data


@given(traces())
def test_bytes_to_text_to_bytes_is_exact(trace: tuple[spec.Header, list[Batch]]) -> None:
    data = encode(*trace)
    lines = to_text(data)
    assert to_bytes(lines) == data
    assert to_text(to_bytes(lines)) == lines


@given(st.binary(max_size=200))
def test_strings_are_quoted_exactly(data: bytes) -> None:
    quoted = text.quote(data)
    assert quoted.isascii()
    assert quoted.isprintable()
    assert text.unquote(quoted[1:-1]) == data


@pytest.mark.parametrize("golden", WHOLE, ids=lambda golden: golden.name)
def test_golden_text_is_stable(golden: Golden) -> None:
    lines = "".join(line + "\n" for line in golden.text.splitlines() if not line.startswith("#"))
    assert to_text(golden.data()) == lines


def test_padded_numbers_come_back_short() -> None:
    padded = bytes([spec.BY_NAME["HeapAlloc"].number, 0x81, 0x80, 0x00, 0x05])
    header = spec.HEADERS["1.26"]
    lines = to_text(encode(header, [Batch(1, 1, 1, padded)]))
    assert "\tHeapAlloc dt=1 bytes=5\n" in lines
    assert to_bytes(lines) == encode(header, [Batch(1, 1, 1, bytes([spec.BY_NAME["HeapAlloc"].number, 1, 5]))])


def read_all(data: bytes) -> None:
    for _ in text.read_text(io.BytesIO(data)):
        pass


def test_cut_at_every_byte() -> None:
    data = SAMPLE.data()
    whole = {0: raw.NotATraceError}
    _, reader = raw.read_batches(io.BytesIO(data))
    borders = {batch.offset for batch in reader} | {len(data)}
    for size in range(len(data)):
        if size in borders:
            read_all(data[:size])  # whole batches: nothing is missing as far as this level knows
            continue
        with pytest.raises(whole.get(size, raw.CutTraceError)):
            read_all(data[:size])


def test_cut_says_where() -> None:
    data = SAMPLE.data()
    with pytest.raises(raw.CutTraceError, match="in the middle of the batch of generation 1 at offset 16") as caught:
        read_all(data[:30])
    assert (caught.value.offset, caught.value.gen) == (16, 1)


@given(st.integers(0, 2**16), st.integers(0, 255))
def test_any_byte_changed(where: int, value: int) -> None:
    data = bytearray(SAMPLE.data())
    data[where % len(data)] = value
    try:
        read_all(bytes(data))
    except BadTraceError as error:
        one_line(error)


@given(st.binary(max_size=300), st.sampled_from(list(spec.HEADERS.values())))
def test_rubbish_behind_a_header(data: bytes, header: spec.Header) -> None:
    try:
        read_all(header.magic + data)
    except BadTraceError as error:
        one_line(error)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", raw.NotATraceError, "empty"),
        (b"hello, this is some other file", raw.NotATraceError, "not a Go execution trace"),
        (b"go 1.21 trace\0\0\0 more", raw.NotATraceError, "version 1.21"),
        (b"go 1.2", raw.CutTraceError, "cut off in the header"),
        (spec.HEADERS["1.26"].magic + b"x", BadTraceError, "no batch at offset 16"),
        (spec.HEADERS["1.26"].magic + bytes([49, 1, 1, 1, 1, 0]), BadTraceError, "experimental"),
        (spec.HEADERS["1.22"].magic + bytes([49, 1, 1, 1, 1, 0]), BadTraceError, "no batch"),
    ],
)
def test_what_is_no_trace(data: bytes, error: type[BadTraceError], says: str) -> None:
    with pytest.raises(error, match=says):
        read_all(data)


def strings(size: int) -> list[RawEvent]:
    return [RawEvent(spec.BY_NAME["Strings"], ()), RawEvent(spec.BY_NAME["String"], (1,), text=b"x" * size)]


def stack(frames: int) -> list[RawEvent]:
    row = RawEvent(spec.BY_NAME["Stack"], (1, frames), frames=((1, 0, 0, 1),) * frames)
    return [RawEvent(spec.BY_NAME["Stacks"], ()), row]


@pytest.mark.parametrize(
    ("data", "good"),
    [
        (raw.encode_events(strings(spec.MAX_STRING_SIZE)), True),
        (raw.encode_events(strings(spec.MAX_STRING_SIZE + 1)), False),
        (raw.encode_events(stack(spec.MAX_STACK_FRAMES)), True),
        (raw.encode_events(stack(spec.MAX_STACK_FRAMES + 1)), False),
        (bytes([spec.BY_NAME["ProcStop"].number, 0]) * (spec.MAX_BATCH_SIZE // 2), True),
        (bytes([spec.BY_NAME["ProcStop"].number, 0]) * (spec.MAX_BATCH_SIZE // 2 + 1), False),
    ],
)
def test_limits(data: bytes, good: bool) -> None:
    trace = encode(spec.HEADERS["1.26"], [Batch(1, 1, 1, data)])
    if good:
        assert to_bytes(to_text(trace)) == trace
        return
    with pytest.raises(BadTraceError, match="more than"):
        read_all(trace)


class Meter(io.BytesIO):
    """Notes the largest read that was asked for."""

    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0
        self.largest = max(self.largest, size)
        return super().read(size)


def test_a_length_is_checked_before_it_is_used() -> None:
    file = Meter(spec.HEADERS["1.26"].magic + bytes([1, 1, 1, 1]) + raw.uvarint(2**40))
    with pytest.raises(BadTraceError, match="more than 65536"):
        list(raw.read_batches(file)[1])
    assert file.largest <= spec.MAX_BATCH_SIZE


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "no trace in text form"),
        ("go 1.21 trace", "line 1"),
        ("go 1.26 trace\n\tProcStop dt=1", "line 2: an event outside of a batch"),
        ("go 1.26 trace\nBatch", "line 2"),
        ("go 1.26 trace\nEventBatch gen=1 m=1", "line 2: wants gen=N m=N time=N"),
        ("go 1.26 trace\nEventBatch gen=1 m=1 time=1\n\tProcStop dt=x", "line 3: wants dt=N"),
        ("go 1.26 trace\nEventBatch gen=1 m=1 time=1\n\tProcStop", "line 3: wants dt=N"),
        ("go 1.26 trace\nEventBatch gen=1 m=1 time=1\n\tNonsense dt=1", "line 3: Nonsense is no event"),
        ("go 1.22 trace\nEventBatch gen=1 m=1 time=1\n\tSync", "line 3: Sync is no event of a 1.22"),
        ("go 1.22 trace\nEndOfGeneration", "line 2: EndOfGeneration in a 1.22"),
        ('go 1.26 trace\nEventBatch gen=1 m=1 time=1\n\tString id=1 "\n', "line 3: String wants"),
        ("go 1.26 trace\nEventBatch gen=1 m=1 time=1\n\tStack id=1 [pc=1]", "line 3: Stack wants"),
        (f"go 1.26 trace\nEventBatch gen=1 m=1 time=1\n\tProcStop dt={2**64}", "line 3: number"),
    ],
)
def test_bad_text(lines: str, says: str) -> None:
    with pytest.raises(BadTraceError, match=says):
        to_bytes(lines)


@given(st.text(max_size=60))
def test_any_text(lines: str) -> None:
    try:
        to_bytes("go 1.26 trace\nEventBatch gen=1 m=1 time=1\n\t" + lines)
    except BadTraceError as error:
        one_line(error)


# --- lz4 ----------------------------------------------------------------------------------------

Writer = Callable[[bytes], Path]


@pytest.fixture
def packed(tmp_path: Path) -> Writer:
    """Writes bytes to a file whose name does not say what it is."""

    def write(data: bytes) -> Path:
        path = tmp_path / "trace.out"
        path.write_bytes(data)
        return path

    return write


def test_lz4_is_known_by_its_magic(packed: Writer) -> None:
    data = SAMPLE.data() * 500  # more than one block; only the bytes matter here
    half = len(data) // 2
    for form in (lz4.frame.compress(data), lz4.frame.compress(data[:half]) + lz4.frame.compress(data[half:])):
        with raw.open_trace(packed(form)) as file:
            assert file.read() == data
    with raw.open_trace(packed(data)) as file:
        assert file.read() == data


def test_lz4_cut_at_every_byte(packed: Writer) -> None:
    form = lz4.frame.compress(SAMPLE.data())
    for size in range(4, len(form)):
        with raw.open_trace(packed(form[:size])) as file, pytest.raises(raw.CutTraceError):
            file.read()


def test_lz4_damaged(packed: Writer) -> None:
    form = bytearray(lz4.frame.compress(SAMPLE.data()))
    form[6] ^= 0xFF
    with raw.open_trace(packed(bytes(form))) as file, pytest.raises(BadTraceError, match="lz4"):
        file.read()


def test_lz4_bomb_takes_no_memory(packed: Writer) -> None:
    bomb = spec.HEADERS["1.26"].magic + bytes(20_000_000)
    form = lz4.frame.compress(bomb)
    del bomb
    tracemalloc.start()
    try:
        with raw.open_trace(packed(form)) as file, pytest.raises(BadTraceError, match="no batch at offset 16"):
            list(raw.read_batches(file)[1])
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        raw.open_trace(tmp_path / "none")
