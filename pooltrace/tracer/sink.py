"""Where a trace's bytes go: a file, an lz4 file, or any object with ``write``.

Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import IO, Protocol


class Writable(Protocol):
    """What a trace can be written to."""

    def write(self, data: bytes, /) -> object: ...


class Sink:
    """Bytes to a path (lz4 frames when its name ends in ``.lz4``, one for each write) or to a writable object.

    Opening raises OSError at once, so that a place which cannot be opened is known before the job starts. A file that
    is there already keeps its contents until the first write, and one that was never written to goes away again.
    """

    def __init__(self, target: str | os.PathLike[str] | Writable) -> None:
        self._file: Writable
        self._raw: IO[bytes] | None = None  # what this sink has opened
        self._pack: Callable[[bytes], bytes] | None = None
        self._path = ""  # absolute
        self._made = False  # the file was not there before
        self.begun = False  # something was written to what this sink has opened
        if not isinstance(target, (str, os.PathLike)):
            if not callable(getattr(target, "write", None)):
                raise TypeError(f"a trace goes to a path or to an object with write(), not to {type(target).__name__}")
            self._file = target
            return
        path = os.fspath(target)
        if path.endswith(".lz4"):
            import lz4.frame

            self._pack = lambda data: bytes(lz4.frame.compress(data, store_size=False))
        self._path = os.path.abspath(path)
        descriptor, self._made = _open(path)
        self._file = self._raw = open(descriptor, "wb")  # noqa: SIM115 - closed by close()

    @property
    def opened(self) -> bool:
        """Whether it goes to a path, and not to an object of the caller's."""
        return self._raw is not None

    def write(self, data: bytes) -> None:
        """Writes all of data, to the file itself: a kill loses nothing of it. Raises what the file raises, by name."""
        if self._raw is None:
            while data:  # an unbuffered file takes less than it is given when it is nearly full
                taken = self._file.write(data)
                data = data[taken:] if isinstance(taken, int) and 0 < taken < len(data) else b""
            return
        try:
            if not self.begun and stat.S_ISREG(os.fstat(self._raw.fileno()).st_mode):
                os.ftruncate(self._raw.fileno(), 0)
            self._raw.write(self._pack(data) if self._pack else data)
            self._raw.flush()
        except OSError as error:
            error.filename = error.filename or self._path
            raise
        self.begun = True

    def close(self) -> None:
        """Flushes, and closes what this sink has opened; an object of the caller's is flushed only."""
        if self._raw is None:
            flush = getattr(self._file, "flush", None)
            if callable(flush):
                flush()
            return
        try:
            self._raw.close()
        finally:
            if self._made and not self.begun:
                with contextlib.suppress(OSError):
                    os.unlink(self._path)


def _open(path: str) -> tuple[int, bool]:
    """A descriptor to write to, nothing truncated; and whether the file was made by this."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_EXCL, 0o666), True
    except FileExistsError:  # or a link, to what may not be there yet
        return os.open(path, flags, 0o666), False
