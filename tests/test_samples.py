"""The CPU samples of a trace, with the unit and item that each was taken in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import sampled
from golden_files import GOLDENS, Golden, one_line
from sampled import DEEP, ODD_STACK, OTHER, STACKS, WORK, create, generation, log, parent, sample, units, write

from pooltrace.errors import BadTraceError
from pooltrace.format import cut
from pooltrace.format.order import Summary
from pooltrace.format.raw import CutTraceError, NotATraceError, open_trace
from pooltrace.reader.samples import Sample, SampleReader

Judge = Callable[[str | os.PathLike[str]], Summary]
HEADERS = ("1.22", "1.23", "1.25", "1.26")


def read(path: Path) -> tuple[list[Sample], SampleReader]:
    with open_trace(path) as file:
        reader = SampleReader(file)
        return list(reader), reader


def read_up_to(path: Path) -> tuple[list[Sample], SampleReader, BadTraceError | None]:
    """What comes before the trace breaks, and why it does."""
    found: list[Sample] = []
    with open_trace(path) as file:
        reader = SampleReader(file)
        try:
            for one in reader:
                found.append(one)
        except BadTraceError as error:
            return found, reader, error
    return found, reader, None


def told(samples: list[Sample]) -> list[tuple[object, ...]]:
    """Time, M, P, G, unit, item."""
    return [(s.time_ns, s.m, s.p, s.g, s.unit, s.item) for s in samples]


def units_told(module: str | None, unit: str | None = "main.work") -> list[tuple[object, ...]]:
    odd = sampled.ODD[21].replace("\udce9", "\ufffd")
    return [
        (10_150, 200, -1, -1, None, None),
        (10_350, 200, 1, 2, unit, None),
        (10_450, 200, 1, 2, unit, "unpickle"),
        (10_650, 200, 1, 2, unit, "main.work"),
        (10_700, 200, 1, 2, unit, "inner"),
        (10_750, 200, 1, 2, unit, "inner"),
        (10_850, 200, 1, 2, unit, "main.work"),
        (10_850, 200, 1, 2, unit, "main.work"),
        (10_860, 200, 1, 2, unit, "main.work"),
        (10_870, 100, 0, 1, module, None),
        (20_400, 200, 1, 2, unit, "main.work"),
        (20_550, 200, 1, 2, unit, None),
        (20_600, 200, 1, 2, unit, None),
        (20_650, 200, 1, -1, None, None),
        (30_500, 200, 1, 3, "main.other", odd),
        (30_920, 200, 1, 3, "main.other", None),
    ]


@pytest.mark.parametrize("header", HEADERS)
def test_each_sample_has_its_unit_and_item(header: str, tmp_path: Path, judge: Judge) -> None:
    path = write(tmp_path / "t.trace", units(header), header)
    judge(path)
    samples, reader = read(path)
    assert told(samples) == units_told(None if header == "1.22" else "main.<module>")
    assert reader.generations == 3


def test_frames_are_those_of_the_stack_innermost_first(tmp_path: Path, judge: Judge) -> None:
    path = write(tmp_path / "t.trace", units())
    judge(path)
    samples = {s.time_ns: s.frames for s in read(path)[0]}
    assert [frame[1:] for frame in samples[10_650]] == [("main.deep", "lib.py", 7), ("main.work", "main.py", 12)]
    assert samples[10_860] == ()
    quotes, strange, brackets = sampled.ODD.values()
    strange = strange.replace("\udce9", "\ufffd")
    assert [frame[1:] for frame in samples[30_500]] == [
        (quotes, strange, 1),
        (strange, quotes, 3),
        (brackets, "main.py", 4),
    ]
    assert [frame.pc for frame in samples[30_500]] == [pc for pc, *_ in STACKS[ODD_STACK]]


@pytest.mark.parametrize("header", HEADERS)
def test_a_piece_names_the_units_of_what_was_before_it(header: str, tmp_path: Path, judge: Judge) -> None:
    """By its head; only the oldest header has no way to."""
    path = write(tmp_path / "t.trace", units(header), header)
    judge(path)
    piece = tmp_path / "piece.trace"
    piece.write_bytes(b"".join(cut.read_piece(path, cut.Piece(cut.read_borders(path), 1, 2))))
    samples, _ = read(piece)
    named_ = units_told(None, "main.work")[10:]
    if header == "1.22":
        named_ = [(*row[:4], None, row[5]) for row in named_]
    assert told(samples) == named_


def test_a_unit_is_known_by_its_outermost_frame(tmp_path: Path, judge: Judge) -> None:
    """As in Go: that is the frame that does not change. And a sample may be earlier than what names its G."""
    status = f"GoStatusStack dt=30 g=9 m=200 gstatus=2 stack={DEEP}"
    batches = {100: parent(), 200: ["ProcStatus dt=1 p=1 pstatus=1", status]}
    early = [sample(10_005, WORK, g=9), sample(10_050, WORK, g=9)]
    path = write(tmp_path / "t.trace", generation(1, 10_000, batches, early))
    judge(path)
    assert [s.unit for s in read(path)[0]] == ["main.work", "main.work"]


def test_a_name_is_that_of_its_own_unit(tmp_path: Path, judge: Judge) -> None:
    """Units end and others follow on the same M; what one left is not the next one's."""
    run = [
        "ProcStatus dt=99 p=1 pstatus=2", "ProcStart dt=1 p=1 p_seq=1",
        "GoStart dt=0 g=2 g_seq=1", sampled.begin(7), "GoDestroy dt=100",
        "GoStart dt=0 g=3 g_seq=1", "GoDestroy dt=100",
    ]  # fmt: skip
    batches = {100: [*parent(), create(2, WORK), create(3, OTHER)], 200: run}
    ticks = [sample(10_150, WORK), sample(10_250, OTHER, g=3), sample(10_260, OTHER, g=0)]
    path = write(tmp_path / "t.trace", generation(1, 10_000, batches, ticks))
    judge(path)
    assert [(s.unit, s.item) for s in read(path)[0]] == [("main.work", "inner"), ("main.other", None), (None, None)]


# --- the rate -------------------------------------------------------------------------------------


def with_logs(tmp_path: Path, judge: Judge, *logs: list[str], value: str = "250") -> list[float]:
    """The rate at each sample of a trace with these logs in its generations."""
    lines = [
        line
        for i, some in enumerate(logs, 1)
        for line in generation(
            i,
            i * 10_000,
            {100: [*parent(), *some]},
            [sample(i * 10_000 + 1, WORK, m=100, p=0, g=1)],
            strings={**sampled.STRINGS, 10: value, 30: "1000"},
        )
    ]
    path = write(tmp_path / "t.trace", lines)
    judge(path)
    with open_trace(path) as file:
        reader = SampleReader(file)
        return [reader.rate for _ in reader]


def test_the_rate_is_that_of_the_generation(tmp_path: Path, judge: Judge) -> None:
    """Also if its log comes behind the sample; one that does not tell has the one before."""
    assert with_logs(tmp_path, judge, [], [log()], [log(key=9)], [], [log(30)]) == [100, 250, 250, 250, 1000]


def test_logs_that_do_not_tell_the_rate(tmp_path: Path, judge: Judge) -> None:
    assert with_logs(tmp_path, judge, [log(task=1), log(key=9)]) == [100]


@pytest.mark.parametrize(
    ("value", "rate"), [("33.5", 33.5), ("1", 1), ("0.01", 0.01), *((v, 100) for v in ("0", "0.001", "-5", "x", "1e9"))]
)
def test_values_of_the_rate(value: str, rate: float, tmp_path: Path, judge: Judge) -> None:
    assert with_logs(tmp_path, judge, [log()], value=value) == [rate]


def test_other_values_of_the_rate(tmp_path: Path, judge: Judge) -> None:
    for value in ("", "nan", "inf", "9" * 400, "\u0661", "100\n"):
        assert with_logs(tmp_path, judge, [log()], value=value) == [100]


def test_the_period(tmp_path: Path, judge: Judge) -> None:
    path = write(tmp_path / "t.trace", units())
    judge(path)
    with open_trace(path) as file:
        reader = SampleReader(file)
        assert reader.period_ns == 10_000_000
        assert {reader.period_ns for _ in reader} == {4_000_000}


# --- clocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", HEADERS)
def test_when_it_began_and_how_long_it_lasts(header: str, tmp_path: Path, judge: Judge) -> None:
    path = write(tmp_path / "t.trace", units(header), header)
    judge(path)
    _, reader = read(path)
    wall = sampled.SECOND * 10**9 + 1 - 100
    assert reader.wall_ns == (wall if header in ("1.25", "1.26") else None)
    assert reader.duration_ns == 20_990


def test_units_of_another_clock(tmp_path: Path, judge: Judge) -> None:
    """At 250 MHz a unit is 4 ns."""
    ticks = [sample(10_500, WORK, m=100, p=0, g=1)]
    path = write(tmp_path / "t.trace", generation(1, 10_000, {100: parent()}, ticks, freq=250_000_000))
    judge(path)
    samples, reader = read(path)
    assert [s.time_ns for s in samples] == [42_000]
    assert reader.duration_ns == 2000
    assert reader.wall_ns == sampled.SECOND * 10**9 + 1 - 400


def test_a_wall_clock_that_cannot_be(tmp_path: Path, judge: Judge) -> None:
    for second in (0, -1):
        lines = generation(1, 10_000, {100: parent()}, [sample(10_001, WORK, m=100, p=0, g=1)])
        lines = [line.replace(f"sec={sampled.SECOND}", f"sec={second}") for line in lines]
        path = write(tmp_path / "t.trace", lines)
        judge(path)
        assert read(path)[1].wall_ns is None


# --- traces at fault ------------------------------------------------------------------------------


def test_a_trace_that_is_cut_off(tmp_path: Path, judge: Judge) -> None:
    """Samples of whole generations come first, and the clocks are theirs."""
    path = write(tmp_path / "t.trace", units())
    judge(path)
    whole, _ = read(path)
    path.write_bytes(path.read_bytes()[:-1])
    found, reader, error = read_up_to(path)
    assert found == whole[:14]
    assert isinstance(error, CutTraceError)
    assert "in generation 3" in str(error)
    assert (reader.generations, reader.duration_ns) == (2, 10_700)


def test_a_generation_that_is_broken_gives_no_samples(tmp_path: Path, judge: Judge) -> None:
    path = write(tmp_path / "t.trace", units())
    judge(path)
    lines = [line.replace("GoStart dt=100 g=3", "GoStart dt=100 g=7") for line in units()]
    assert lines != units()
    found, reader, error = read_up_to(write(path, lines))
    assert [s.time_ns for s in found] == [row[0] for row in units_told(None)[:14]]
    assert "G 7 does not exist" in str(error)
    assert (reader.generations, reader.duration_ns) == (2, 10_700)


def test_what_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"x" * 100)
    with open_trace(path) as file, pytest.raises(NotATraceError):
        SampleReader(file)


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)
def test_golden_traces(golden: Golden, tmp_path: Path) -> None:
    """Those that are broken are an error of their own."""
    path = tmp_path / "golden.trace"
    path.write_bytes(golden.data())
    try:
        samples, _ = read(path)
    except BadTraceError as error:
        assert golden.outcome in ("broken", "strict")
        one_line(error)
    else:
        assert golden.outcome in ("good", "misread")
        if golden.name == "good-samples":
            assert [s.time_ns for s in samples] == [1003, 1007, 1050]


def test_nothing_is_kept_of_units_that_have_ended(tmp_path: Path, judge: Judge) -> None:
    path = write(tmp_path / "t.trace", units())
    judge(path)
    _, reader = read(path)
    assert [*reader._origins.starts] == [1]
    assert not any(reader._origins.regions.values())
