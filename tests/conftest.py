"""Fixtures that all tests share: the judge of every trace that any test makes."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import faults
import gotool
import pieces
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

from pooltrace.format import order
from pooltrace.format.order import Summary

# What a shell's background or nohup ignores, the programs of the tests would ignore as well.
for _signal, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGXCPU, signal.SIG_DFL),
):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _usual)


@pytest.fixture(autouse=True)
def bounded(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that hangs ends the run, with every thread's stack: after a module's `LIMIT` seconds, or the usual one."""
    limit = getattr(request.module, "LIMIT", faults.LIMIT)
    stderr = request.config.stash.get(fault_handler_stderr_fd_key, 2)  # the one that is not captured
    faulthandler.dump_traceback_later(limit, exit=True, file=stderr)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def fifos(tmp_path: Path) -> faults.Fifos:
    made = faults.Fifos(tmp_path / "begun", tmp_path / "go")
    for path in made:
        os.mkfifo(path)
    return made


@pytest.fixture
def judge(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | os.PathLike[str]], Summary]:
    """Checks a trace: our ordering check and Go's reader accept it, and read the same events at the times written.

    The same holds of a piece that is cut out of it at a random border. Returns the counts. Without Go the first half is
    still done, then the test is skipped (or fails, with POOLTRACE_CI=1). Under a sanitizer (scripts/sanitize) the first
    half is all.
    """

    def check_and_compare(path: str | os.PathLike[str]) -> Summary:
        summary = order.check(path)
        if os.environ.get("POOLTRACE_SANITIZER"):
            return summary  # it is the writing that is looked at, and Python is slow there
        gotool.require_go()
        gotool.compare(path)
        pieces.cut_somewhere(path, Path(tmp_path_factory.mktemp("piece")))
        return summary

    return check_and_compare
