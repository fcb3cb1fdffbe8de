"""The file that a command makes: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pooltrace.cli import outfile
from pooltrace.errors import MisuseError


def failing() -> Iterator[bytes]:
    yield b"half"
    raise KeyboardInterrupt


def test_it_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.pb.gz"
    seen: list[list[str]] = []

    def pieces() -> Iterator[bytes]:
        yield b"one "
        seen.append(sorted(os.listdir(tmp_path)))
        yield b"two"

    for there in ([], ["out.pb.gz"]):
        outfile.write(str(path), pieces())
        assert seen.pop() == [*there, f"out.pb.part-{os.getpid()}.gz"]
        assert path.read_bytes() == b"one two"
        assert os.listdir(tmp_path) == ["out.pb.gz"]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        outfile.write(str(path), failing())
    assert os.listdir(tmp_path) == []
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        outfile.write(str(path), failing())
    assert os.listdir(tmp_path) == ["out"]
    assert path.read_bytes() == b"before"


def test_a_place_that_cannot_be_opened_is_known_before_any_work(tmp_path: Path) -> None:
    def never() -> Iterator[bytes]:
        pytest.fail("asked for data")
        yield b""

    for path, why in ((str(tmp_path / "none" / "out"), "No such file or directory"), ("", "it is no name")):
        with pytest.raises(MisuseError, match=f"{why}; choose another place with -o"):
            outfile.write(path, never())


def test_the_trace_itself_is_refused_by_whatever_name(tmp_path: Path) -> None:
    trace, link = tmp_path / "a.trace", tmp_path / "link"
    outfile.refuse_itself(str(link), str(trace))
    trace.write_bytes(b"")
    link.symlink_to(trace)
    for path in (trace, link):
        with pytest.raises(MisuseError, match="is the trace itself; name another file"):
            outfile.refuse_itself(str(path), str(trace))
    outfile.refuse_itself(str(tmp_path / "b"), str(trace))
