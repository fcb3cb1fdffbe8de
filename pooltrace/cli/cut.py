"""``pooltrace cut FILE --from T --to T -o OUT``: a piece of a trace, which stands alone.

It begins and ends where generations do (one a second, mostly), so that all of the time asked for is in it. Exit status
0; 1 when the trace is broken or cut off: what is whole of the piece is written all the same; 2 when nothing was
written, or standard output cannot say so. OUT is there as a whole or not at all.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Final

from pooltrace.cli import outfile
from pooltrace.cli.check import complain, count, one_line
from pooltrace.errors import BadTraceError
from pooltrace.format import cut

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_UNITS: Final = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "cut", help="cut a piece out of a trace", description="Cut a piece out of a trace, which stands alone.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help="a trace, plain or lz4")
    when = "since the trace began, like 90, 1.5s, 20ms, 2m or 1h"
    parser.add_argument("--from", dest="begin", metavar="T", type=_time, help=f"from T on: {when} (default: all)")
    parser.add_argument("--to", dest="end", metavar="T", type=_time, help="up to T, likewise (default: all)")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="where it goes; .lz4 at the end compresses it"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Cuts one file. Returns the exit status."""
    outfile.refuse_itself(args.output, args.file)
    try:
        borders = cut.read_borders(args.file)
        piece = cut.choose(borders, args.begin, args.end)
    except cut.NoSuchPieceError as error:
        print(f"{one_line(args.file)}: {error}: it lasts {_seconds(borders.end)}", file=sys.stderr)
        return 2
    except (OSError, BadTraceError) as error:
        return complain(args.file, error)
    try:
        outfile.write(args.output, cut.read_piece(args.file, piece))
    except BadTraceError as error:
        return complain(args.file, error)
    first, last = borders.generations[piece.first].start, _end(piece)
    number = piece.last - piece.first + 1
    line = f"{one_line(args.output)}: {count(number, 'generation')}, {_seconds(first)} to {_seconds(last)}"
    outfile.tell(args.output, line)
    if borders.fault is not None and piece.last == len(borders.generations) - 1:
        return complain(args.file, borders.fault)
    return 0


def _end(piece: cut.Piece) -> int:
    after = piece.last + 1
    generations = piece.borders.generations
    return generations[after].start if after < len(generations) else piece.borders.end


def _seconds(ns: int) -> str:
    return f"{ns / 1e9:.3f} s"


def _time(text: str) -> int:
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(ns|us|ms|s|m|h|)", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 90, 1.5s, 20ms, 2m or 1h")
    return round(float(found[1]) * _UNITS[found[2]])
