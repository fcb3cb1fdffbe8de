"""``pooltrace run``: runs a program unchanged in this process, with its pools traced, and sums up afterwards.

How the program runs is ``program``'s business, what a trace is the session's, what is said at the end ``summary``'s.
Here is only when the trace begins and ends:

1. The program is found and the file opened before anything of the job runs: both may fail, with one line and status 2.
2. Our exit handler is registered before those of multiprocessing and of the program. Exit handlers run last in, first
   out: so ours comes after the one that ends multiprocessing's pools, and python has by then waited for the program's
   threads. The trace is whole however the program ends: by return, exception, ``sys.exit`` or Ctrl-C.
3. SIGTERM ends a program at once, without exit handlers; so do a hang-up and a limit of CPU time. So we handle them,
   end the trace, give the arena back, and die by them all the same. A program with a handler of its own has its own
   way, and what is ignored (by nohup, say) stays ignored. A forked child gets the default back before it runs any
   code: a worker that is busy in C must die of ``terminate()`` at once, as it does without us.
4. CPython 3.12 and later warn of a fork while there are several threads. Ours are no concern of the program's.
5. A program that traces itself runs unchanged, too: what it records goes into our trace.
6. Once the program runs, nothing that goes wrong on our side changes its output or its exit status: it is one line.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import math
import os
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from pooltrace.cli import program as programs
from pooltrace.cli.output import is_same
from pooltrace.cli.summary import escape, show, write
from pooltrace.errors import MisuseError, PooltraceError
from pooltrace.format.spec import DEFAULT_HEADER, HEADERS

MISUSE = 2
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)
USAGE = """pooltrace run [-o FILE] [--header H] [--period S] [--cpu-rate HZ] SCRIPT [ARG ...]
       pooltrace run [-o FILE] [--header H] [--period S] [--cpu-rate HZ] -m MODULE [ARG ...]"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command's options."""
    parser = subparsers.add_parser(
        "run",
        usage=USAGE,
        allow_abbrev=False,
        help="run a program with its process pools traced",
        description="Run a Python program as python would, with its process pools traced, and sum up afterwards. "
        "The exit status is the program's own. SCRIPT may be a directory or a zip file, too; MODULE is found as by "
        "python -m. All that follows them is the program's.",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="where the trace goes; .lz4 at the end of the name compresses it (default: pooltrace-NAME-PID.trace here)",
    )
    parser.add_argument(
        "--header",
        metavar="H",
        choices=list(HEADERS),
        default=DEFAULT_HEADER,
        help=f"version of the trace format, for tools that do not read the newest: {', '.join(HEADERS)} "
        f"(default: {DEFAULT_HEADER})",
    )
    parser.add_argument(
        "--period",
        metavar="S",
        type=_seconds,
        default=1.0,
        help="seconds from one part of the trace to the next; a program that is killed loses the last one (default: 1)",
    )
    parser.add_argument(
        "--cpu-rate",
        metavar="HZ",
        type=int,
        default=100,
        help="CPU samples of each second that a thread computes, 0 for none (default: 100)",
    )
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def part_module(words: Sequence[str]) -> list[str]:
    """The command line with a ``-mMODULE`` of ours, which python takes too, in two words."""
    words = list(words)
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "--"):
        if words[at].startswith("-m"):
            return [*words[:at], "-m", words[at][2:], *words[at + 1 :]]
        at += 2 if words[at] in ("-o", "--output", "--header", "--period", "--cpu-rate") else 1
    return words


def run(args: argparse.Namespace) -> int:
    """Run the program. Whatever it raises, SystemExit too, passes through; our own failures before it return 2."""
    try:
        program = _find(args.module, args.program)
        tracing = Tracing(args.output or f"pooltrace-{program.name}-{os.getpid()}.trace", program)
    except PooltraceError as error:
        return _misuse(str(error))
    except OSError as error:
        return _misuse(f"the working directory is not there: {error.strerror}; go to another one")
    try:
        tracing.start(args.header, args.period, args.cpu_rate)
    except PooltraceError as error:
        return _misuse(str(error))
    except OSError as error:
        what = repr(error.filename) if error.filename else "shared memory"
        return _misuse(f"cannot make {what}: {error.strerror}; set POOLTRACE_DIR to a writable directory with room")
    programs.execute(program)
    return 0


class Tracing:
    """The trace of this process, from just before the program's first line to after its last exit handler."""

    def __init__(self, path: str, program: programs.Program) -> None:
        if path.endswith(os.sep) or os.path.isdir(path):
            raise MisuseError(f"{path!r} is a directory; name a file in it after -o")
        for other, what in ((program.filename, ""), (1, "'s standard output"), (2, "'s standard error")):
            if is_same(path, other):
                raise MisuseError(f"{path!r} is the program{what}; name another file after -o")
        self._given = path
        self._path = os.path.abspath(path)
        self._pid = os.getpid()
        self._finishing = False  # main thread only, as all of these
        self._killed_by = 0  # the signal of which we are about to die
        self._said = False  # any thread: what _say_once says

    def start(self, header: str, period: float, cpu_rate: int) -> None:
        """Open the file and have the program's pools traced. Raises PooltraceError, or OSError without an arena."""
        from pooltrace.pool import patch
        from pooltrace.tracer import session

        logging.getLogger("pooltrace").propagate = False  # what goes wrong is said once, by _finish
        logging.getLogger("pooltrace").addHandler(logging.NullHandler())
        try:
            session.start(self._path, header=header, period=period, cpu_rate=cpu_rate)
        except OSError as error:
            if error.filename != self._path:
                raise
            raise MisuseError(f"cannot write the trace to {self._given!r}: {_reason(error)}") from None
        if session.missing():
            _say(session.missing())
        session.share(self._say_once)
        _register_first(self._finish)
        patch.install()
        _ignore_our_threads()
        handled = [signum for signum in ENDING if signal.getsignal(signum) is signal.SIG_DFL]
        for signum in handled:
            signal.signal(signum, self._on_signal)
        os.register_at_fork(after_in_child=lambda: self._forget_signals(handled))

    def _finish(self) -> None:
        """End the trace and sum up; in the process that began it, once. Never raises, whatever the program left."""
        if self._finishing or os.getpid() != self._pid:
            return
        self._finishing = True
        from pooltrace.tracer import arena, session

        fault = ""
        try:
            session.share(None)
            before = session.missing()
            session.stop()
            if session.missing() != before:
                _say(session.missing())
        except BaseException as error:
            fault = _reason(error)
        try:
            show(session.summary() or {}, self._shown(), self._size(), fault)
        except BaseException as error:
            _say(f"no summary, the trace is in {self._shown()}: {fault or _reason(error)}")
        if self._killed_by:
            arena.discard()
            _die_by(self._killed_by)

    def _say_once(self) -> None:
        """The program has started a trace of its own."""
        if not self._said:
            _say(f"run is tracing already: what the program itself traces goes into {self._shown()}")
        self._said = True

    def _size(self) -> int | None:
        """Bytes of the file; None of what has no size."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def _shown(self) -> str:
        """The file's name as the user gave it, unless the program has changed its working directory."""
        return self._given if os.path.abspath(self._given) == self._path else self._path

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            _die_by(signum)
        self._killed_by = self._killed_by or signum
        self._finish()

    def _forget_signals(self, handled: list[signal.Signals]) -> None:
        for signum in handled:
            if signal.getsignal(signum) == self._on_signal:
                signal.signal(signum, signal.SIG_DFL)


def _find(module: list[str] | None, words: list[str]) -> programs.Program:
    """The program that the command line names: argparse leaves all words after -m, or after the script, as they are."""
    if module is not None:
        words = [*module, *words]
    elif words[:1] == ["--"]:
        del words[0]
    if not words:
        raise MisuseError("no program: name a script, or a module after -m (see 'pooltrace run --help')")
    return programs.find_module(words[0], words[1:]) if module is not None else programs.find(words[0], words[1:])


def _register_first(handler: Callable[[], None]) -> None:
    """Have the exit handler run after those with which multiprocessing ends its pools, imported by now or later."""
    loaded = [sys.modules[name] for name in ("multiprocessing.util", "multiprocess.util") if name in sys.modules]
    for util in loaded:
        atexit.unregister(util._exit_function)
    atexit.register(handler)
    for util in loaded:
        atexit.register(util._exit_function)


class _ForkWithOurThreads:
    """Matches the warning of a fork in a process with several threads if the program itself has only one.

    Takes a regular expression's place in ``warnings.filters``, so it is asked only when there is something to warn of.
    """

    def match(self, message: str) -> bool:
        threads = [thread for thread in threading.enumerate() if not thread.name.startswith("pooltrace-")]
        return "multi-threaded, use of fork" in message and len(threads) <= 1


def _ignore_our_threads() -> None:
    if sys.version_info >= (3, 12):
        warnings.filterwarnings("ignore", "This process", DeprecationWarning)
        filters: Any = warnings.filters
        filters[0] = ("ignore", _ForkWithOurThreads(), DeprecationWarning, None, 0)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _die_by(signum: int) -> None:
    """End as without us: buffers of the program's streams are lost, and the parent sees a death by this signal."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}; choose another place with -o"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _say(text: str) -> None:
    """One line on standard error, whatever the program did to it."""
    write(f"pooltrace: {escape(text)}\n")


def _misuse(message: str) -> int:
    write(f"pooltrace run: {escape(message)}\n")
    return MISUSE
