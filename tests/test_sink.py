"""Where the bytes of a trace go: what was there before, what a kill or a failure leaves."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import lz4.frame
import pytest

import pooltrace
from pooltrace.format import order, raw
from pooltrace.tracer.sink import Sink


def test_what_was_there_stays_until_the_first_write(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    path.write_bytes(b"something longer than what comes")
    sink = Sink(path)
    assert path.read_bytes() == b"something longer than what comes"
    sink.write(b"new")
    assert path.read_bytes() == b"new"
    sink.write(b"er")
    sink.close()
    assert path.read_bytes() == b"newer"


def test_a_file_that_was_never_written_to_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    monkeypatch.chdir(tmp_path)
    for name in ("old", "new", "new.lz4"):
        sink = Sink(name)
        os.chdir("/")
        sink.close()
        os.chdir(tmp_path)
    assert (old.read_bytes(), new.exists()) == (b"old", False)
    assert os.listdir(tmp_path) == ["old"]


def test_links_lead_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for text in (b"made by this", b"there already"):
        sink = Sink(tmp_path / "link")
        sink.write(text)
        sink.close()
        assert (tmp_path / "file").read_bytes() == text


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    sink = Sink(tmp_path / "a")
    sink.write(b"x")
    sink.close()
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("name", ["a.trace", "a.trace.lz4"])
def test_a_kill_loses_nothing_that_was_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    code = (
        "import os, sys; from pooltrace.tracer.sink import Sink; sink = Sink(sys.argv[1])\n"
        "sink.write(b'first '); sink.write(b'second'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == -9
    with lz4.frame.open(path) if name.endswith(".lz4") else open(path, "rb") as file:
        assert file.read() == b"first second"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_place_is_an_error_of_the_write() -> None:
    sink = Sink("/dev/full")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        sink.write(b"x")
    with pytest.raises(OSError, match="No space left"):
        sink.close()


def test_places_that_cannot_be_opened_are_errors_at_once(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        Sink(tmp_path)
    with pytest.raises(FileNotFoundError):
        Sink(tmp_path / "none" / "a.trace")
    with pytest.raises(TypeError, match="object with write"):
        Sink(3)  # type: ignore[arg-type]


def test_an_object_of_the_callers_is_written_to_flushed_and_left_open() -> None:
    class Kept(io.BytesIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    kept = Kept()
    sink = Sink(kept)
    sink.write(b"ab")
    sink.close()
    assert (kept.getvalue(), kept.flushed, kept.closed, sink.opened) == (b"ab", 1, False, False)


# What start() makes of it


def test_a_trace_into_a_full_place_never_starts(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        pooltrace.start("/dev/full")
    with pytest.raises(pooltrace.MisuseError, match="no trace is on"):
        pooltrace.stop()
    assert not caplog.records  # it was raised
    with pooltrace.trace(tmp_path / "a.trace"):  # the next one does
        pass
    assert order.check(tmp_path / "a.trace").generations == 1


@pytest.mark.parametrize("header", ["1.22", "1.26"])
@pytest.mark.parametrize("name", ["a.trace", "a.trace.lz4"])
def test_the_header_is_in_the_file_when_start_returns(tmp_path: Path, name: str, header: str) -> None:
    code = "import os, sys, pooltrace; pooltrace.start(sys.argv[1], header=sys.argv[2]); os.kill(os.getpid(), 9)"
    environment = {**os.environ, "POOLTRACE_DIR": str(tmp_path)}
    for _ in range(5):
        subprocess.run([sys.executable, "-c", code, tmp_path / name, header], env=environment)
        with raw.open_trace(tmp_path / name) as file:
            assert raw.read_header(file).name == header


def test_a_file_survives_a_trace_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.trace"
    path.write_bytes(b"yesterday's")
    with pooltrace.trace(io.BytesIO()), pytest.raises(pooltrace.MisuseError, match="on already"):
        pooltrace.start(path)
    with pytest.raises(pooltrace.MisuseError, match="no header"):
        pooltrace.start(path, header="1.24")
    monkeypatch.setenv("POOLTRACE_DIR", str(tmp_path / "none"))
    for target in (path, tmp_path / "new"):
        with pytest.raises(FileNotFoundError):
            pooltrace.start(target)
    assert path.read_bytes() == b"yesterday's"
    assert os.listdir(tmp_path) == ["a.trace"]
