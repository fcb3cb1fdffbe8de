"""``pooltrace-batch``: a job that runs again and again (from cron, a timer, a scheduler), each run with its trace.

    pooltrace-batch --dir DIR [--keep N] [--name JOB] -- SCRIPT args...
    pooltrace-batch --dir DIR [--keep N] [--name JOB] -- -m MODULE args...

Each run's trace is DIR/JOB-TIME-PID.trace.lz4, TIME being when it began (UTC). Of one job's traces the newest N stay,
the one of this run among them. The job runs in this process, by ``pooltrace run``: so signals, output and exit status
are its own, and there is nobody between it and who watches it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pooltrace.cli.__main__ import MISUSE, OneLineParser
from pooltrace.cli.__main__ import main as run
from pooltrace.cli.run import part_module
from pooltrace.cli.summary import escape
from pooltrace.errors import MisuseError

KEEP: Final = 30
_TRACE: Final = re.compile(r"-(\d{8}T\d{6}Z)-(\d+)\.trace\.lz4")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(
        prog="pooltrace-batch",
        usage="%(prog)s --dir DIR [--keep N] [--name JOB] -- (SCRIPT | -m MODULE) [ARG ...]",
        description="Run a Python job with its process pools traced, and keep the traces of its newest runs. Signals, "
        "output and exit status are the job's own.",
        allow_abbrev=False,
    )
    parser.add_argument("--dir", required=True, metavar="DIR", help="where the traces go; made if it is not there")
    parser.add_argument("--keep", type=_count, default=KEEP, metavar="N", help=f"traces to keep of a job ({KEEP})")
    parser.add_argument("--name", metavar="JOB", help="what the job is called (default: its script or module)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make room for the trace and run the job. Whatever it raises passes through, as with ``pooltrace run``."""
    args = build_parser().parse_args(argv)
    try:
        command = _command(args.command)
        job = re.sub(r"[^\w.+-]", "_", args.name or _job(command))
        directory = Path(args.dir)
        directory.mkdir(parents=True, exist_ok=True)
        make_room(directory, job, args.keep - 1)
        path = directory / trace_name(job, time.time(), os.getpid())
    except MisuseError as error:
        print(f"pooltrace-batch: {escape(str(error))}", file=sys.stderr)
        return MISUSE
    except OSError as error:
        line = f"{error.filename}: {error.strerror}; name another directory after --dir"
        print(f"pooltrace-batch: {escape(line)}", file=sys.stderr)
        return MISUSE
    return run(["run", "-o", str(path), *command])


def _command(words: list[str]) -> list[str]:
    if words[:1] == ["--"]:
        words = words[1:]
    words = part_module(words)
    if not words or words == ["-m"]:
        raise MisuseError("no job: name a script after --, or -m and a module (see 'pooltrace-batch --help')")
    if words[0].startswith("-") and words[0] != "-m":
        raise MisuseError(f"no job but an option, {words[0]!r}: put -- before the script or -m")
    if re.fullmatch(r"python(\d(\.\d+)?)?", os.path.basename(words[0])) and not os.path.exists(words[0]):
        raise MisuseError(f"name the script itself, or -m and its module, without {words[0]!r}")
    return words


def _job(command: list[str]) -> str:
    if command[0] == "-m":
        return command[1]
    return Path(os.path.abspath(command[0])).stem


def trace_name(job: str, began: float, pid: int) -> str:
    """The file of one run. ``began``: seconds since the epoch."""
    return f"{job}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(began))}-{pid}.trace.lz4"


def make_room(directory: Path, job: str, keep: int) -> None:
    """Removes the oldest traces of a job so that so many stay; those of runs that still go on are let be."""
    runs = []
    for name in os.listdir(directory):
        found = _TRACE.fullmatch(name, len(job)) if name.startswith(job) else None
        if found:
            runs.append((found[1], int(found[2]), name))
    for _, pid, name in sorted(runs)[: max(0, len(runs) - keep)]:
        if not os.path.exists(f"/proc/{pid}"):
            with contextlib.suppress(FileNotFoundError):  # another run was here first
                os.unlink(directory / name)


def _count(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of traces to keep: write 1 or more")
    return value
