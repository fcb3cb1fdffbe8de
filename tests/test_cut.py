"""A piece of a trace stands alone: with the names, jobs, regions and waiting units of what was before it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pieces
import pytest
from crew import crew, run_unit
from golden_files import GOLDENS, Golden, one_line

from pooltrace import trace
from pooltrace.cli import cut as command
from pooltrace.errors import BadTraceError, MisuseError
from pooltrace.format import cut, order
from pooltrace.format.raw import CutTraceError
from pooltrace.tracer import emit, session

Judge = Callable[[str | os.PathLike[str]], order.Summary]
Capture = pytest.CaptureFixture[str]
LONG = [golden for golden in GOLDENS if golden.outcome == "good" and golden.text.count("\tSync") > 1]
GENERATIONS = 6


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["cut", *map(str, words)])
    status = args.run(args)
    assert isinstance(status, int)
    return status


def write_trace(path: Path, header: str = "1.26") -> None:
    """Six generations over which a worker runs an item in a region, units wait, a thread is blocked, jobs go on."""
    with crew(1) as (worker,), trace(path, header=header, period=3600.0):
        emit.task_begin(7, 0, "map(item)", None)
        emit.task_begin(8, 7, "map(other)", None)
        worker.order(begin_item, emit.new_g())
        worker.answer()
        for _ in range(3):
            emit.go_create(emit.new_g(), emit.frame("crew.item", "crew.py", 1), None)
        g = emit.new_g()
        created = emit.go_create(g, emit.frame("crew.later", "crew.py", 2), None)
        for _ in range(GENERATIONS - 2):
            assert session.advance()
        worker.order(end_item)
        worker.answer()
        worker.order(run_unit, g, created, 2)
        worker.answer()
        assert session.advance()
        emit.task_end(8)


def begin_item(g: int) -> None:
    """In a worker: a unit, and in it an item that goes on."""
    emit.unit_begin(g, 0, emit.frame("crew.first", "crew.py", 3))
    emit.region_begin(emit.ITEM, 7, "crew.first", emit.frame("crew.first", "crew.py", 3))
    emit.region_begin(emit.REGION, 7, "inner", emit.frame("crew.inner", "crew.py", 4))


def end_item() -> None:
    emit.region_end()
    emit.unit_end()


@pytest.fixture
def long(tmp_path: Path) -> Path:
    path = tmp_path / "long.trace"
    write_trace(path)
    return path


@pytest.mark.parametrize("header", ["1.22", "1.23", "1.25", "1.26"])
def test_each_piece_says_what_the_whole_says_there(header: str, tmp_path: Path, judge: Judge) -> None:
    path, piece = tmp_path / "long.trace", tmp_path / "piece.trace"
    write_trace(path, header)
    judge(path)
    count = len(cut.read_borders(path).generations)
    assert count >= GENERATIONS
    for first in range(count):
        for last in range(first, count):
            pieces.agree(path, pieces.write_piece(path, piece, first, last), first, last)


@pytest.mark.parametrize("header", ["1.22", "1.23", "1.25", "1.26"])
def test_the_head_names_what_was_before(header: str, tmp_path: Path) -> None:
    path, piece = tmp_path / "long.trace", tmp_path / "piece.trace"
    write_trace(path, header)
    pieces.write_piece(path, piece, 3, 3)
    begin, _ = pieces.between(path, 3, 3)
    head = [event for event in order.read_events(piece) if event.time < begin]
    tasks = {event.arg("task"): event for event in head if event.name == "UserTaskBegin"}
    assert {number: (task.string("name"), task.arg("parent")) for number, task in tasks.items()} == {
        7: ("map(item)", 0),
        8: ("map(other)", 7),
    }
    assert any("write_trace" in frame.function for frame in tasks[7].stack())
    regions = [event for event in head if event.name == "UserRegionBegin"]
    assert [(region.string("name"), region.arg("task")) for region in regions] == [("crew.first", 7), ("inner", 7)]
    statuses = [event for event in head if event.name.startswith("GoStatus") and event.m == -1]
    assert [event.arg("gstatus") for event in statuses] == [1, 1, 1, 1]
    if header != "1.22":  # which has no status with a stack
        names = [event.stack()[0].function for event in statuses]
        assert names == ["crew.item"] * 3 + ["crew.later"]


def test_tasks_alone_come_with_a_g_of_their_own(tmp_path: Path) -> None:
    """Where no G has been destroyed yet, one is made for it, with an M and a P that nobody has."""
    golden = next(golden for golden in GOLDENS if golden.name == "good-task-over-border")
    path, piece = tmp_path / "golden.trace", tmp_path / "piece.trace"
    path.write_bytes(golden.data())
    pieces.agree(path, pieces.write_piece(path, piece, 1, 1), 1, 1)
    assert any(event.name == "UserTaskBegin" for event in order.read_events(piece))


@pytest.mark.parametrize("golden", LONG, ids=lambda golden: golden.name)
def test_golden_traces_in_pieces(golden: Golden, tmp_path: Path) -> None:
    path, piece = tmp_path / "golden.trace", tmp_path / "piece.trace"
    path.write_bytes(golden.data())
    count = len(cut.read_borders(path).generations)
    for first in range(1, count):
        pieces.agree(path, pieces.write_piece(path, piece, first, count - 1), first, count - 1)


def test_many_units_and_jobs_that_wait(tmp_path: Path, judge: Judge) -> None:
    """More than fit into one batch; the times of the piece are not moved by them."""
    path, count = tmp_path / "long.trace", 10_000
    with trace(path, period=3600.0):
        item, here = emit.frame("crew.item", "crew.py", 1), emit.frame("main", "main.py", 1)
        for number in range(count):
            emit.task_begin(number + 1, 0, f"job {number % 3000}", here)
            emit.go_create(emit.new_g(), item, here)
        assert session.advance()
        emit.log(0, "after", "the border")
    judge(path)
    piece = pieces.write_piece(path, tmp_path / "piece.trace", 1, 1)
    pieces.agree(path, piece, 1, 1)
    counts = order.check(piece).by_name
    assert (counts["UserTaskBegin"], counts["GoStatusStack"]) == (count, count + 2)  # the running G: by head and M


def test_a_thread_that_waits_over_the_border_keeps_its_name(tmp_path: Path, judge: Judge) -> None:
    """Its generation says that it waits, and not what it is called."""
    path = tmp_path / "t.trace"
    with trace(path, period=3600.0):
        ticket = emit.go_block("waiting", None)
        assert session.advance()
        emit.go_resume(ticket)
    judge(path)
    (first,) = (e for e in order.read_events(path) if e.gen == 1 or e.name == "GoStatusStack")
    piece = pieces.write_piece(path, tmp_path / "piece.trace", 1, 1)
    pieces.agree(path, piece, 1, 1)
    named = [(e.arg("g"), e.stack()) for e in order.read_events(piece) if e.name == "GoStatusStack"]
    assert named == [(first.arg("g"), first.stack())]


# --- the command ----------------------------------------------------------------------------------


def test_the_command(long: Path, tmp_path: Path, capsys: Capture) -> None:
    borders = cut.read_borders(long)
    starts = [border.start for border in borders.generations]
    out = tmp_path / "piece.trace"
    for begin, end, first, last in (
        (None, None, 0, len(starts) - 1),
        (starts[2], starts[3], 2, 2),
        (starts[2] - 1, starts[3] + 1, 1, 3),
        (starts[4], None, 4, len(starts) - 1),
        (None, 1, 0, 0),
    ):
        words = [*(["--from", f"{begin}ns"] if begin is not None else []), *(["--to", f"{end}ns"] if end else [])]
        assert run(long, *words, "-o", out) == 0
        text, err = capsys.readouterr()
        assert text.startswith(f"{out}: {last - first + 1} generation")
        assert err == ""
        assert out.read_bytes() == b"".join(cut.read_piece(long, cut.Piece(borders, first, last)))
    assert run(long, "-o", tmp_path / "whole.trace") == 0
    assert [*map(pieces.told, order.read_events(long))] == [
        *map(pieces.told, order.read_events(tmp_path / "whole.trace"))
    ]
    assert sorted(os.listdir(tmp_path)) == ["long.trace", "piece.trace", "whole.trace"]


def test_lz4_in_and_out(long: Path, tmp_path: Path) -> None:
    packed, again = tmp_path / "long.trace.lz4", tmp_path / "piece.trace.lz4"
    packed.write_bytes(lz4.frame.compress(long.read_bytes()))
    assert run(packed, "-o", again) == 0
    assert again.read_bytes()[:4] == b"\x04\x22\x4d\x18"
    assert order.check(again).events == order.check(long).events


@pytest.mark.parametrize(
    ("text", "ns"),
    [("90", 90 * 10**9), ("1.5s", 1500 * 10**6), ("20ms", 2 * 10**7), ("2m", 12 * 10**10), (".5us", 500)],
)
def test_times(text: str, ns: int) -> None:
    assert command._time(text) == ns


@pytest.mark.parametrize("text", ["", "x", "-1", "1 day", "1e3", "nan"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"write 90, 1\.5s"):
        command._time(text)


def test_what_cannot_be_cut(long: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "piece.trace"
    for words in (["--from", "1h"], ["--from", "2ns", "--to", "1ns"], ["--to", "0"]):
        assert run(long, *words, "-o", out) == 2
        assert "nothing of the trace is in that time: it lasts 0." in capsys.readouterr().err
    with pytest.raises(MisuseError, match="is the trace itself"):
        run(long, "-o", long)
    with pytest.raises(MisuseError, match="No such file or directory; choose another place"):
        run(long, "-o", tmp_path / "none" / "piece.trace")
    assert run(tmp_path / "none", "-o", out) == 2
    assert not out.exists()


def test_a_trace_that_was_cut_off(long: Path, tmp_path: Path, capsys: Capture) -> None:
    """What is whole is written, and the line says what is missing; an error in the piece's way leaves no file."""
    out = tmp_path / "piece.trace"
    data = long.read_bytes()
    long.write_bytes(data[:-30])
    count = len(cut.read_borders(long).generations)
    assert run(long, "-o", out) == 1
    assert "cut off" in capsys.readouterr().err
    assert len(cut.read_borders(out).generations) == count
    order.check(out)
    assert run(long, "--to", "1ns", "-o", out) == 0  # the fault lies behind it
    long.write_bytes(data[:20])
    out.unlink()
    assert run(long, "-o", out) == 1
    assert not out.exists()
    assert os.listdir(tmp_path) == ["long.trace"]


@pytest.mark.parametrize("golden", [g for g in GOLDENS if g.outcome != "good"], ids=lambda golden: golden.name)
def test_a_broken_trace_is_an_error_of_its_own(golden: Golden, tmp_path: Path) -> None:
    path = tmp_path / "broken.trace"
    path.write_bytes(golden.data())
    try:
        borders = cut.read_borders(path)
        for data in cut.read_piece(
            path, cut.Piece(borders, len(borders.generations) - 1, len(borders.generations) - 1)
        ):
            assert data
    except BadTraceError as error:
        one_line(error)


def test_a_file_that_changes_meanwhile(long: Path) -> None:
    borders = cut.read_borders(long)
    with pytest.raises(CutTraceError, match="has changed"):
        for _ in cut.read_piece(long, cut.Piece(borders, 0, len(borders.generations))):
            pass
