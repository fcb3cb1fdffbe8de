"""``pooltrace check``: exit status and the one line."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
from golden_files import GOLDENS, Golden, named

from pooltrace.cli import check
from pooltrace.errors import BadTraceError
from pooltrace.format import order, raw, spec


def run(path: str | Path) -> int:
    parser = argparse.ArgumentParser()
    check.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["check", str(path)])
    status = args.run(args)
    assert isinstance(status, int)
    return status


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "some.trace"
        path.write_bytes(data)
        return path

    return write


FileOf = Callable[[bytes], Path]
Capture = pytest.CaptureFixture[str]


def one_line(text: str) -> str:
    assert text.index("\n") == len(text) - 1, text
    return text[:-1]


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)
def test_status(golden: Golden, file_of: FileOf, capsys: Capture) -> None:
    path = file_of(golden.data())
    status = run(path)
    out, err = capsys.readouterr()
    if golden.outcome == "good":
        assert (status, err) == (0, "")
        assert one_line(out).startswith(f"{path}: in order: go 1.")
    else:
        assert (status, out) == (1, "")
        assert golden.says in one_line(err)
        assert ("misread" in err) == (golden.outcome == "misread")


def test_what_it_says_of_a_good_one(file_of: FileOf, capsys: Capture) -> None:
    path = file_of(named("good-header-1.26").data())
    assert run(path) == 0
    counts = "2 generations, 15 events, 2 Ms, 2 Ps, 1 G, 1 task"
    assert capsys.readouterr().out == f"{path}: in order: go 1.26 trace, {counts}\n"


def test_a_broken_one_is_named_by_event_m_and_generation(file_of: FileOf, capsys: Capture) -> None:
    path = file_of(named("broken-no-status").data())
    assert run(path) == 1
    assert f"{path}: broken: generation 2, M 200, GoStart at 2013 ns: " in one_line(capsys.readouterr().err)


def test_cut(file_of: FileOf, capsys: Capture) -> None:
    data = named("good-header-1.26").data()
    assert run(file_of(data[:-20])) == 1
    line = one_line(capsys.readouterr().err)
    assert "cut off" in line
    assert "generation 2" in line
    assert line.endswith("whole before that: 1 generation with 13 events")


@pytest.mark.parametrize("header", spec.HEADERS)
def test_cut_before_the_first_generation_is_whole(header: str, file_of: FileOf, capsys: Capture) -> None:
    data = named(f"good-header-{header}").data()
    sync = next(iter(raw.BatchReader(io.BytesIO(data[16:]), spec.HEADERS[header])))
    for size in (16, 16 + len(raw.encode_batch(sync))):
        assert run(file_of(data[:size])) == 1
        assert "cut off" in one_line(capsys.readouterr().err)
        assert order_says(file_of(data[:size])) == "CutTraceError"


def order_says(path: Path) -> str:
    try:
        order.check(path)
    except BadTraceError as error:
        return type(error).__name__
    return "in order"


def test_cut_lz4(file_of: FileOf, capsys: Capture) -> None:
    assert run(file_of(lz4.frame.compress(named("good-header-1.26").data())[:-10])) == 1
    assert "the lz4 frame has no end" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("data", [b"", b"no trace at all", b"go 1.19 trace\0\0\0"])
def test_no_trace(data: bytes, file_of: FileOf, capsys: Capture) -> None:
    assert run(file_of(data)) == 2
    assert "give a file that" in one_line(capsys.readouterr().err)


def test_no_file(tmp_path: Path, capsys: Capture) -> None:
    assert run(tmp_path / "none") == 2
    assert "No such file" in one_line(capsys.readouterr().err)
    assert run(tmp_path) == 2
    assert "directory" in one_line(capsys.readouterr().err)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_no_permission(file_of: FileOf, capsys: Capture) -> None:
    path = file_of(b"")
    path.chmod(0)
    assert run(path) == 2
    assert "ermission" in one_line(capsys.readouterr().err)


def test_names_from_a_trace_are_safe_for_a_terminal(file_of: FileOf, capsys: Capture) -> None:
    evil = named("broken-region-end").data().replace(b"item", b"\x1b[2J")
    assert run(file_of(evil)) == 1
    assert "\x1b" not in one_line(capsys.readouterr().err)
