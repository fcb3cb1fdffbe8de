"""``pooltrace dump``: both texts, and a pipe that is closed early."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from golden_files import GOLDENS, Golden, named

from pooltrace.cli import dump
from pooltrace.format import order, raw, text

Capture = pytest.CaptureFixture[str]


def run(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    dump.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["dump", *map(str, words)])
    status = args.run(args)
    assert isinstance(status, int)
    return status


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.trace"
    path.write_bytes(named("good-header-1.26").data())
    return path


def test_wire_is_the_text_form(good: Path, capsys: Capture) -> None:
    assert run("--wire", good) == 0
    out = capsys.readouterr().out
    assert b"".join(text.parse_text(out.splitlines())) == good.read_bytes()


def test_events(good: Path, capsys: Capture) -> None:
    assert run(good) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "go 1.26 trace"
    assert lines[1] == "generation 1 frequency=1000000000 wall=1700000000.000000009"
    assert lines[2] == "1001 m=100 p=- g=- ProcStatus p=0 pstatus=running"
    assert '1003 m=100 p=0 g=1 UserTaskBegin task=1 parent=0 name="map(work)"' in lines
    at = lines.index("1013 m=100 p=0 g=1 GoCreate new_g=2")
    assert lines[at + 1 : at + 3] == ["\tnew_stack:", "\t\tmain.work main.py:7"]
    assert lines[at + 3 : at + 6] == ["\tstack:", "\t\titem main.py:9", "\t\tmain.work main.py:7"]
    events = [line for line in lines[1:] if line and not line.startswith(("\t", "generation"))]
    assert len(events) == order.check(good).events


def test_what_a_terminal_would_not_print_is_escaped(good: Path, capsys: Capture) -> None:
    data = good.read_bytes().replace(b"map(work)", 'm\u00e9"\\\x1b\u202e'.encode()[:9])
    good.write_bytes(data)
    assert run(good) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert 'name="m\u00e9\\"\\\\\\x1b' in out


def test_a_broken_trace_is_printed_up_to_there(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "broken.trace"
    path.write_bytes(named("broken-no-status").data())
    assert run(path) == 1
    out, err = capsys.readouterr()
    assert "GoCreate new_g=2" in out
    assert "GoStart" not in out
    assert err.count("\n") == 1
    assert "generation 2, M 200, GoStart" in err
    path.write_bytes(named("good-header-1.26").data()[:-5])
    assert run("--wire", path) == 1
    out, err = capsys.readouterr()
    assert out.count("EndOfGeneration") == 1
    assert err.count("\n") == 1
    assert "cut off" in err


@pytest.mark.parametrize("golden", [golden for golden in GOLDENS if golden.outcome != "good"], ids=lambda g: g.name)
def test_the_status_is_that_of_check(golden: Golden, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "bad.trace"
    path.write_bytes(golden.data())
    assert run(path) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert golden.says in err
    if golden.outcome == "misread":  # and all of it is printed
        assert len([line for line in out.splitlines()[1:] if line[:1].isdigit()]) >= events_of(path)


def events_of(path: Path) -> int:
    with raw.open_trace(path) as file:
        return sum(not event.spec.implied for event in order.TraceReader(file).events())


def test_no_trace(tmp_path: Path, capsys: Capture) -> None:
    assert run(tmp_path / "none") == 2
    (tmp_path / "other").write_text("something else altogether")
    assert run(tmp_path / "other") == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize("option", [[], ["--wire"]])
def test_a_pipe_closed_early_is_quiet(tmp_path: Path, option: list[str]) -> None:
    path = tmp_path / "long.trace"
    regions = "\tUserRegionBegin dt=1 task=1 name=4 stack=1\n\tUserRegionEnd dt=50 task=1 name=4 stack=0\n" * 5000
    lines = named("good-samples").text.replace("\tHeapAlloc", regions + "\tHeapAlloc")
    path.write_bytes(b"".join(text.parse_text(io.StringIO(lines))))
    words = [sys.executable, "-m", "pooltrace.cli", "dump", *option, str(path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"go 1.26 trace\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
