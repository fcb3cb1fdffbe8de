"""The file that a command makes: it is there as a whole or not at all, and never the trace that is read.

Knows no command, and nothing of what is in the file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from pooltrace.cli.output import is_same, say
from pooltrace.errors import MisuseError
from pooltrace.tracer.sink import Sink


def refuse_itself(path: str, trace: str) -> None:
    """Raises MisuseError if the file to be made is the trace that is read, by whatever name."""
    if os.path.exists(path) and os.path.exists(trace) and os.path.samefile(path, trace):
        raise MisuseError(f"{path!r} is the trace itself; name another file after -o")


def write(path: str, data: Iterable[bytes]) -> None:
    """To a file beside, which takes its place when it is whole; to what is no plain file (a pipe, say) at once.

    The place is opened before the first piece is asked for. Raises MisuseError if it cannot be; what the data raises,
    or a full disk, passes through, and leaves what was there before.
    """
    if not path:
        raise MisuseError("cannot write to '': it is no name; choose another place with -o")
    plain = not os.path.exists(path) or os.path.isfile(path)
    stem, extension = os.path.splitext(path)
    part = f"{stem}.part-{os.getpid()}{extension}" if plain else path
    try:
        sink = Sink(part)
    except OSError as error:
        raise MisuseError(f"cannot write to {path!r}: {error.strerror}; choose another place with -o") from None
    try:
        try:
            for piece in data:
                sink.write(piece)
        finally:
            sink.close()
        if plain:
            os.replace(part, path)
    except BaseException:
        if plain and os.path.exists(part):
            os.unlink(part)
        raise


def tell(path: str, line: str) -> None:
    """Says what was written: on standard error if the file is standard output itself. Raises OutputError."""
    if is_same(path, 1):
        print(line, file=sys.stderr)
    else:
        say(line)
