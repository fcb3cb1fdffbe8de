"""``pooltrace export FILE --to pprof [-o OUT]``: a trace in the form of another viewer.

For pprof that is a CPU profile of the trace's samples. Exit status 0; 1 when the trace is broken or cut off (what comes
from its whole generations is written all the same), or has no samples (nothing is written); 2 when nothing was written,
or standard output cannot say so. OUT is there as a whole or not at all.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pooltrace.cli import outfile
from pooltrace.cli.check import complain, count, one_line
from pooltrace.errors import BadTraceError, MisuseError
from pooltrace.export.pprof import Profile
from pooltrace.format.raw import open_trace
from pooltrace.reader.samples import SampleReader

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="write a trace's CPU samples as a profile for pprof",
        description="Write a trace in the form of another viewer: for pprof, a CPU profile of its samples.",
        epilog="Exit status: 0; 1 if the trace is broken or cut off (what is whole is exported all the same) or has no "
        "samples; 2 if nothing was written.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="a trace, plain or lz4")
    parser.add_argument("--to", required=True, choices=("pprof",), help="the form: pprof")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="where it goes (default: FILE with .pb.gz instead of .trace)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exports one file. Returns the exit status."""
    try:
        file = open_trace(args.file)
    except OSError as error:
        return complain(args.file, error)
    with file:
        out = _beside(args.file) if args.output is None else args.output
        outfile.refuse_itself(out, args.file)
        if out.endswith(".lz4"):
            raise MisuseError(f"pprof reads no lz4: name {out.removesuffix('.lz4')!r} after -o (it is compressed)")
        try:
            export = _Export(SampleReader(file))
        except BadTraceError as error:
            return complain(args.file, error)
        try:
            outfile.write(out, export.pieces())
        except _NoSamplesError:
            if export.fault is not None:
                return complain(args.file, export.fault, "no CPU samples before that, so nothing is written")
            line = "no CPU samples in it; record it again with samples on (pooltrace run --cpu-rate 100)"
            print(one_line(f"{args.file}: {line}"), file=sys.stderr)
            return 1
    outfile.tell(out, f"{one_line(out)}: {export.describe()}; to look at it: {_viewer(out)}")
    if export.fault is not None:
        whole = count(export.reader.generations, "generation")
        return complain(args.file, export.fault, f"exported is what was before that: {whole}")
    return 0


class _NoSamplesError(Exception):
    """There is nothing to write."""


class _Export:
    """A trace on its way to a profile. ``fault``: why not all of it is in there."""

    def __init__(self, reader: SampleReader) -> None:
        self.reader = reader
        self.profile = Profile()
        self.fault: BadTraceError | None = None

    def pieces(self) -> Iterator[bytes]:
        """Reads the trace when the first piece is asked for. Raises _NoSamplesError."""
        reader, profile = self.reader, self.profile
        try:
            for sample in reader:
                profile.add(sample, reader.period_ns)
        except BadTraceError as error:
            self.fault = error
        if not profile.samples:
            raise _NoSamplesError
        yield profile.encode(wall_ns=reader.wall_ns, duration_ns=reader.duration_ns)

    def describe(self) -> str:
        return f"{count(self.profile.samples, 'CPU sample')}, {self.profile.cpu_ns / 1e9:,.2f} s"


def _beside(file: str) -> str:
    """Where the profile of a trace goes if nothing else is said."""
    if not os.path.isfile(file):
        raise MisuseError(f"{file!r} is no plain file: say where the profile goes with -o")
    return file.removesuffix(".lz4").removesuffix(".trace") + ".pb.gz"


def _viewer(out: str) -> str:
    return f"go tool pprof -top {one_line(shlex.quote(out))}"
