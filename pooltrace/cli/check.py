"""``pooltrace check FILE``: does Go read this trace, and does it show what was written?

Exit status 0: yes. 1: the trace is broken, cut off or misread; the line on standard error names the event, M and
generation. 2: there is no trace to check, or no place for the answer.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pooltrace.cli.output import say
from pooltrace.errors import BadTraceError
from pooltrace.format import order, raw

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "check",
        help="check that a trace is whole and in order",
        description="Check that Go's tools read a trace, and show what was written.",
        epilog="Exit status: 0 if so; 1 if it is broken, cut off or misread (the line on standard error names event, M "
        "and generation); 2 if there is no trace to check.",
    )
    parser.add_argument("file", metavar="FILE", help="a trace, plain or lz4")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Checks one file. Returns the exit status."""
    try:
        summary = order.check(args.file)
    except (OSError, BadTraceError) as error:
        return complain(args.file, error)
    say(one_line(f"{args.file}: {describe(summary)}"))
    return 0


def complain(file: str, error: OSError | BadTraceError, more: str = "") -> int:
    """One line on standard error for what is wrong with a file, and the exit status that goes with it.

    ``more``: what else is to be said in the same line.
    """
    if isinstance(error, OSError):
        line, status = f"{file}: {error.strerror or error}: give the path of a trace file", 2
    elif isinstance(error, raw.NotATraceError):
        line, status = f"{file}: {error}: give a file that pooltrace run -o wrote", 2
    elif isinstance(error, (raw.CutTraceError, order.MisreadError)):
        line, status = f"{file}: {error}", 1
    else:
        line, status = f"{file}: broken: {error}", 1
    print(one_line(f"{line}; {more}" if more else line), file=sys.stderr)
    return status


def one_line(text: str) -> str:
    """A text from a trace or a path, safe for a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def describe(summary: order.Summary) -> str:
    """A summary in one line."""
    parts = (
        count(summary.generations, "generation"),
        count(summary.events, "event"),
        count(len(summary.ms), "M"),
        count(len(summary.ps), "P"),
        count(summary.gs, "G"),
        count(summary.tasks, "task"),
    )
    return f"in order: go {summary.header} trace, {', '.join(parts)}"


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
