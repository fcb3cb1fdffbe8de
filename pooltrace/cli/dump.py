"""``pooltrace dump FILE``: a trace as text.

The events in their order with names and stacks, or, with --wire, what is in the file.

Exit status as of ``pooltrace check`` (with --wire only what cannot be read counts, and not what it means); the text
ends where the trace breaks. A reader that closes the pipe early is no error.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pooltrace.cli.check import complain, one_line
from pooltrace.cli.output import put
from pooltrace.errors import BadTraceError
from pooltrace.format import raw, text
from pooltrace.format.generation import Frame
from pooltrace.format.order import Event, TraceReader

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "dump",
        help="print a trace as text",
        description="Print a trace as text: the events in their order with names and stacks, or what is in the file.",
        epilog="The text ends where the trace breaks. Exit status: 0 if it is whole; 1 if it is broken, cut off or "
        "misread; 2 if there is no trace to print, or no place for the text.",
    )
    parser.add_argument("file", metavar="FILE", help="a trace, plain or lz4")
    parser.add_argument("--wire", action="store_true", help="print batches and tables as they are in the file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints one file. Returns the exit status."""
    try:
        with raw.open_trace(args.file) as file:
            put(text.read_text(file) if args.wire else read_parsed(TraceReader(file)))
    except (OSError, BadTraceError) as error:
        return complain(args.file, error)
    return 0


def read_parsed(reader: TraceReader) -> Iterator[str]:
    """The lines of the ordered events: time, M, P, G, event, arguments, and under it the stacks, one frame a line.

    Raises BadTraceError where the trace breaks, and behind the last line MisreadError.
    """
    yield f"go {reader.header.name} trace\n"
    for generation, _, events in reader.generations():
        snapshot = generation.tables.snapshot
        clock = f" wall={snapshot.sec}.{snapshot.nsec:09}" if snapshot else ""
        yield f"generation {generation.gen} frequency={generation.tables.frequency}{clock}\n"
        for event in events:
            yield from format_event(event)
    reader.verdict()


def format_event(event: Event) -> Iterator[str]:
    """The lines of one event. Texts are quoted, and escaped where a terminal would not just print them."""
    context = " ".join(
        f"{name}={'-' if value < 0 else value}" for name, value in zip("mpg", (event.m, event.p, event.g))
    )
    words = [str(event.time), context, event.name]
    stacks: list[tuple[str, tuple[Frame, ...]]] = []
    for name, value in event.values().items():
        if isinstance(value, tuple):
            if value:
                stacks.append((name, value))
        elif isinstance(value, str) and name not in ("gstatus", "pstatus"):
            words.append(f"{name}={quote(value)}")
        else:
            words.append(f"{name}={value}")
    if event.spec.implied:
        words.append("(implied)")
    yield " ".join(words) + "\n"
    for name, frames in stacks:
        yield f"\t{name}:\n"
        for frame in frames:
            yield f"\t\t{one_line(frame.function)} {one_line(frame.file)}:{frame.line}\n"


def quote(value: str) -> str:
    """A text in double quotes."""
    return '"' + one_line(value.replace("\\", "\\\\").replace('"', '\\"')) + '"'
