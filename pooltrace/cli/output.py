"""What a command prints on standard output: what goes wrong there is no fault of the file that is read.

Knows no command. Errors are one line on standard error, printed by those who call.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from typing import TextIO

from pooltrace.errors import PooltraceError


class OutputError(PooltraceError):
    """Standard output cannot be written to."""


class _ClosedEarly(Exception):
    """Nobody reads the pipe any more."""


def put(lines: Iterable[str]) -> None:
    """Prints lines, which end as they are, and flushes. What getting them raises passes through, behind what came.

    A reader that closes the pipe early is no error. Raises OutputError for all else.
    """
    stream = sys.stdout
    if stream is None:
        raise OutputError("there is no standard output: redirect it to a file or a pipe")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # names of any language, whatever the terminal can show
    try:
        try:
            for line in lines:
                _do(stream, line)
        finally:
            _do(stream, None)
    except _ClosedEarly:
        return


def say(line: str) -> None:
    """Prints one line, its end added. Without a standard output it is not said. Raises OutputError."""
    if sys.stdout is not None:
        put([line + "\n"])


def is_same(path: str, other: str | int) -> bool:
    """Whether a path and another one, or an open descriptor, are one file. /dev/null is never the same."""
    try:
        same = os.path.samestat(os.stat(path), os.stat(other))
        return same and not os.path.samefile(path, os.devnull)
    except OSError:
        return False


def _do(stream: TextIO, line: str | None) -> None:
    """Writes the line, or flushes. After an error, what is left in the buffers goes nowhere: else the interpreter would
    try it again at its end."""
    try:
        if line is not None:
            stream.write(line)
        else:
            stream.flush()
    except (OSError, ValueError) as error:
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
        except (OSError, ValueError):
            pass  # it is closed
        if isinstance(error, BrokenPipeError):
            raise _ClosedEarly from None
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write to standard output: {reason}; redirect it to another place") from None
