"""Where a trace's bytes go: a file, an lz4 file, or any object with ``write``.

Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import os
from typing import IO, Protocol, cast


class Writable(Protocol):
    """What a trace can be written to."""

    def write(self, data: bytes, /) -> object: ...


class Sink:
    """Bytes to a path (an lz4 frame when its name ends in ``.lz4``) or to a writable object.

    Opening raises OSError at once, so that a place which cannot be written is known before the job starts.
    """

    def __init__(self, target: str | os.PathLike[str] | Writable) -> None:
        self._raw: IO[bytes] | None = None
        self._file: Writable
        if not isinstance(target, (str, os.PathLike)):
            if not callable(getattr(target, "write", None)):
                raise TypeError(f"a trace goes to a path or to an object with write(), not to {type(target).__name__}")
            self._file = target
            return
        path = os.fspath(target)
        self._raw = open(path, "wb")  # noqa: SIM115 - closed by close()
        if path.endswith(".lz4"):
            import lz4.frame

            self._file = cast(Writable, lz4.frame.LZ4FrameFile(self._raw, "wb"))
        else:
            self._file = self._raw

    def write(self, data: bytes) -> None:
        """Writes all of data, to the file itself: a kill loses nothing of it. Raises what the file raises."""
        self._file.write(data)
        if self._raw is not None:
            self._file.flush()  # type: ignore[attr-defined]
            self._raw.flush()

    def close(self) -> None:
        """Flushes, and closes what this sink has opened; an object of the caller's is flushed only."""
        try:
            if self._raw is None:
                flush = getattr(self._file, "flush", None)
                if callable(flush):
                    flush()
            elif self._file is not self._raw:
                self._file.close()  # type: ignore[attr-defined]
        finally:
            if self._raw is not None:
                self._raw.close()
