"""Standard output that is full, closed, or cannot show a name: one line, and no fault of the trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from golden_files import named

from pooltrace.cli import output

FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.trace"
    path.write_bytes(named("good-header-1.26").data())
    return path


def command(good: Path, name: str) -> list[str]:
    words = ["cut", "-o", str(good.parent / "piece.trace")] if name == "cut" else name.split()
    return [sys.executable, "-m", "pooltrace.cli", *words, str(good)]


def run(words: list[str], to: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the words with a shell's redirection of standard output behind them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **env}
    environment.pop("PYTHONUNBUFFERED", None)  # it would leave nothing for the interpreter's end
    line = f'exec "$@" {to}'
    return subprocess.run(["sh", "-c", line, "sh", *words], env=environment, capture_output=True, text=True)


@FULL
@pytest.mark.parametrize("name", ["check", "dump", "dump --wire", "cut"])
def test_full(good: Path, name: str) -> None:
    ended = run(command(good, name), "> /dev/full")
    said = "cannot write to standard output: No space left on device; redirect it to another place"
    assert (ended.returncode, ended.stderr) == (2, f"pooltrace {name.split()[0]}: {said}\n")


@FULL
def test_full_is_not_what_is_said_of_a_trace_that_cannot_be_read(good: Path) -> None:
    for name in ("check", "dump"):
        ended = run(command(good.parent, name), "> /dev/full")
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert "Is a directory" in ended.stderr


@pytest.mark.parametrize("name", ["check", "cut"])
def test_closed_where_only_the_status_matters(good: Path, name: str) -> None:
    ended = run(command(good, name), ">&-")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    if name == "cut":
        assert (good.parent / "piece.trace").exists()


@pytest.mark.parametrize("name", ["dump", "dump --wire"])
def test_closed_where_it_is_all_that_matters(good: Path, name: str) -> None:
    ended = run(command(good, name), ">&-")
    said = "pooltrace dump: there is no standard output: redirect it to a file or a pipe\n"
    assert (ended.returncode, ended.stderr) == (2, said)


def test_names_that_it_cannot_encode(good: Path) -> None:
    good.write_bytes(good.read_bytes().replace(b"map(work)", "größe()".encode()))
    ended = run(command(good, "dump"), "", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert 'name="gr\\xf6\\xdfe()"' in ended.stdout
    assert 'name="größe()"' in run(command(good, "dump"), "", PYTHONIOENCODING="utf-8").stdout


def test_a_piece_to_standard_output_is_alone_there(good: Path) -> None:
    words = [sys.executable, "-m", "pooltrace.cli", "cut", "-o", "/dev/stdout", str(good)]
    ended = subprocess.run(words, capture_output=True)
    assert ended.stdout == good.read_bytes()
    assert ended.stderr.startswith(b"/dev/stdout: 2 generations")


def test_same_files(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("")
    other.symlink_to(path)
    assert output.is_same(str(path), str(other))
    assert not output.is_same(str(path), str(tmp_path))
    assert not output.is_same(str(path), "")
    assert not output.is_same(str(tmp_path / "none"), str(path))
    assert not output.is_same(os.devnull, os.devnull)
    with open(path) as file:
        assert output.is_same(str(other), file.fileno())
