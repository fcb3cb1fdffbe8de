r"""The text form of a trace: one event per line, and back; no meaning attached.

    go 1.26 trace
    EventBatch gen=1 m=-1 time=900
        Strings
        String id=1 "main"
        Stacks
        Stack id=1 [pc=1 func=1 file=2 line=7] [pc=2 func=3 file=2 line=12]
    EndOfGeneration

The first line is the header, a batch's events are indented by a tab. Sizes and numbers of frames are not written: they
follow from the contents. Numbers from 2**63 on are written as negative ones (-1: no M). A string is in double quotes,
plain ASCII, every other byte as ``\xNN``. Empty lines and lines that begin with # are left out when reading.

bytes -> text -> bytes is exact for a canonical file (padded numbers come back short), text -> bytes -> text always, but
for what reading leaves out. Golden traces are kept in this form, so it does not change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

from pooltrace.errors import BadTraceError
from pooltrace.format import spec
from pooltrace.format.raw import Batch, RawEvent, encode_batch, encode_event, read_batches, read_events, signed
from pooltrace.format.spec import EventSpec, Header

_ESCAPES: Final = {byte: chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in range(256)}
_ESCAPES[ord('"')] = '\\"'
_ESCAPES[ord("\\")] = "\\\\"
_UNESCAPE: Final = re.compile(rb'\\(?:x([0-9a-f]{2})|(["\\]))')
_QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\]|\\x[0-9a-f]{2})*)"')
_FRAME: Final = re.compile(r"\[" + " ".join(rf"{name}=(-?\d+)" for name in spec.FRAME_ARGS) + r"\]")
_WORD: Final = re.compile(r"(\w+)=(-?\d+)")
_HIDDEN: Final = frozenset(("size", "nframes"))


def quote(text: bytes) -> str:
    """Bytes in double quotes, as plain ASCII."""
    return '"' + "".join(map(_ESCAPES.__getitem__, text)) + '"'


def unquote(text: str) -> bytes:
    """What ``quote`` was given, without its quotes."""
    return _UNESCAPE.sub(lambda found: bytes([int(found[1], 16)]) if found[1] else found[2], text.encode("ascii"))


def format_event(event: RawEvent) -> str:
    """One event in one line, not indented."""
    words = [event.spec.name]
    words += [f"{name}={signed(value)}" for name, value in zip(event.spec.args, event.args) if name not in _HIDDEN]
    if event.spec.has_text:
        words.append(quote(event.text))
    for frame in event.frames:
        words.append("[" + " ".join(f"{name}={signed(value)}" for name, value in zip(spec.FRAME_ARGS, frame)) + "]")
    return " ".join(words)


def format_batch(batch: Batch, header: Header) -> Iterator[str]:
    """The lines of one batch, or the one of an EndOfGeneration, with their line ends."""
    if batch.end:
        yield "EndOfGeneration\n"
        return
    yield f"EventBatch gen={signed(batch.gen)} m={batch.m} time={signed(batch.time)}\n"
    for event in read_events(batch, header):
        yield f"\t{format_event(event)}\n"


def read_text(file: BinaryIO) -> Iterator[str]:
    """The lines of a binary trace, batch by batch. Raises BadTraceError when it comes to what is broken or missing."""
    header, batches = read_batches(file)
    yield f"go {header.name} trace\n"
    for batch in batches:
        yield from format_batch(batch, header)


# --- text to bytes --------------------------------------------------------------------------------


class _TextError(Exception):
    """Why a line cannot be read."""


def parse_text(lines: Iterable[str], *, limits: bool = True) -> Iterator[bytes]:
    """The bytes of a trace in text form, in pieces: header, then batch by batch.

    Without ``limits`` too long strings, stacks and batches, and events that the header does not know, are written all
    the same: so golden traces of broken files can be made. Raises BadTraceError with the number of the line that is
    wrong.
    """
    header: Header | None = None
    batch: Batch | None = None
    parts: list[bytes] = []
    number = 0
    try:
        for raw in lines:
            number += 1
            line = raw.rstrip("\n")
            if not line.strip() or line.startswith("#"):
                continue
            if header is None:
                header = _parse_header(line)
                yield header.magic
            elif line[0] in "\t ":
                if batch is None:
                    raise _TextError("an event outside of a batch")
                parts.append(_parse_event(line.strip(), header, limits))
            else:
                if batch is not None:
                    yield _close(batch, parts, limits)
                batch, parts = _parse_batch(line, header, limits), []
                if batch.end:
                    yield encode_batch(batch)
                    batch = None
        if batch is not None:
            yield _close(batch, parts, limits)
    except (_TextError, ValueError) as error:
        raise BadTraceError(f"line {number}: {error}") from None
    if header is None:
        raise BadTraceError("no trace in text form: the first line is not 'go 1.26 trace'")


def _parse_header(line: str) -> Header:
    for header in spec.HEADERS.values():
        if line == f"go {header.name} trace":
            return header
    raise _TextError("not 'go 1.26 trace', or another version that is known")


def _parse_batch(line: str, header: Header, limits: bool) -> Batch:
    name, _, rest = line.partition(" ")
    if name == "EndOfGeneration" and not rest:
        if limits and not header.end_of_generation:
            raise _TextError(f"EndOfGeneration in a {header.name} trace")
        return Batch(0, spec.NONE, 0, b"", end=True)
    if name != "EventBatch":
        raise _TextError("neither EventBatch nor EndOfGeneration, and not indented")
    gen, m, time = _parse_args(rest, ("gen", "m", "time"))
    return Batch(gen, m, time, b"")


def _close(batch: Batch, parts: list[bytes], limits: bool) -> bytes:
    data = b"".join(parts)
    if limits and len(data) > spec.MAX_BATCH_SIZE:
        raise _TextError(f"the batch that ends above has {len(data)} bytes, more than {spec.MAX_BATCH_SIZE}")
    return encode_batch(batch._replace(data=data))


def _parse_event(line: str, header: Header, limits: bool) -> bytes:
    name, _, rest = line.partition(" ")
    event = spec.BY_NAME.get(name)
    if event is None or (limits and not header.knows(event)):
        raise _TextError(f"{name} is no event of a {header.name} trace")
    if event.has_text:
        return _parse_string(event, rest, limits)
    if event.has_frames:
        return _parse_stack(event, rest, limits)
    return encode_event(RawEvent(event, _parse_args(rest, event.args)))


def _parse_string(event: EventSpec, rest: str, limits: bool) -> bytes:
    number, _, quoted = rest.partition(" ")
    found = _QUOTED.fullmatch(quoted)
    if not found:
        raise _TextError("String wants id=N and a quoted text")
    text = unquote(found[1])
    if limits and len(text) > spec.MAX_STRING_SIZE:
        raise _TextError(f"a string of {len(text)} bytes, more than {spec.MAX_STRING_SIZE}")
    return encode_event(RawEvent(event, _parse_args(number, ("id",)), text=text))


def _parse_stack(event: EventSpec, rest: str, limits: bool) -> bytes:
    number, _, tail = rest.partition(" ")
    frames = tuple(tuple(map(int, found.groups())) for found in _FRAME.finditer(tail))
    if _FRAME.sub("", tail).strip():
        raise _TextError(
            f"Stack wants id=N and frames, each like [{' '.join(f'{name}=N' for name in spec.FRAME_ARGS)}]"
        )
    if limits and len(frames) > spec.MAX_STACK_FRAMES:
        raise _TextError(f"a stack of {len(frames)} frames, more than {spec.MAX_STACK_FRAMES}")
    return encode_event(RawEvent(event, (*_parse_args(number, ("id",)), len(frames)), frames=frames))


def _parse_args(text: str, names: tuple[str, ...]) -> tuple[int, ...]:
    words = [_WORD.fullmatch(word) for word in text.split(" ")] if text else []
    if [word and word[1] for word in words] != list(names):
        raise _TextError(f"wants {' '.join(f'{name}=N' for name in names) or 'no arguments'}, has {text or 'none'}")
    return tuple(int(word[2]) for word in words if word)
