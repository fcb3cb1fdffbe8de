"""``pooltrace export``: where the profile goes, what is said, and what happens with traces at fault."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gotool
import lz4.frame
import profiles
import pytest
import sampled
from golden_files import GOLDENS, Golden, named

from pooltrace.cli.__main__ import main
from pooltrace.format.order import Summary

Judge = Callable[[str | os.PathLike[str]], Summary]
Capture = pytest.CaptureFixture[str]
LIMIT = 300.0  # two of Go's tools may have to be built in the first test
SAYS = "16 CPU samples, 0.06 s; to look at it: go tool pprof -top"


def export(*words: object) -> int:
    return main(["export", "--to", "pprof", *map(str, words)])


def error(capsys: Capture) -> str:
    """The one line on standard error, and nothing else anywhere."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err[:-1]


@pytest.fixture
def trace(tmp_path: Path, judge: Judge) -> Path:
    path = sampled.write(tmp_path / "t.trace", sampled.units())
    judge(path)
    return path


# --- outputs --------------------------------------------------------------------------------------


def test_beside_the_trace(trace: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "t.pb.gz"
    for _ in range(2):  # the second takes the first's place
        assert export(trace) == 0
        assert capsys.readouterr() == (f"{out}: {SAYS} {out}\n", "")
        assert sorted(os.listdir(tmp_path)) == ["t.pb.gz", "t.trace"]
    got = profiles.read(out)
    assert (got.total(0), got.total(1), got.duration) == (16, 64_000_000, 20_990)
    assert got.time == sampled.SECOND * 10**9 - 99
    assert "main.work" in gotool.pprof(out, "-top")


@pytest.mark.parametrize(
    ("name", "out"), [("a.trace.lz4", "a.pb.gz"), ("a.lz4", "a.pb.gz"), ("a", "a.pb.gz"), ("a.b.trace", "a.b.pb.gz")]
)
def test_the_name_of_the_profile(name: str, out: str, trace: Path, tmp_path: Path) -> None:
    data = trace.read_bytes()
    (tmp_path / name).write_bytes(lz4.frame.compress(data) if name.endswith(".lz4") else data)
    assert export(tmp_path / name) == 0
    assert profiles.read(tmp_path / out).total(0) == 16
    assert sorted(os.listdir(tmp_path)) == sorted([name, out, "t.trace"])


def test_another_place(trace: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "my profile\x1b"
    assert export(trace, "-o", out) == 0
    shown = str(out).replace("\x1b", "\\x1b")
    assert capsys.readouterr().out == f"{shown}: {SAYS} '{shown}'\n"
    assert profiles.read(out).total(0) == 16
    assert sorted(os.listdir(tmp_path)) == sorted([out.name, "t.trace"])


def test_the_same_trace_gives_the_same_bytes(trace: Path, tmp_path: Path) -> None:
    for name in "ab":
        assert export(trace, "-o", tmp_path / name) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("header", ["1.22", "1.23"])
def test_older_traces_have_no_wall_clock(header: str, tmp_path: Path, judge: Judge) -> None:
    path = sampled.write(tmp_path / "t.trace", sampled.units(header), header)
    judge(path)
    assert export(path) == 0
    got = profiles.read(tmp_path / "t.pb.gz")
    assert (got.time, got.duration, got.total(0)) == (0, 20_990, 16)


def shell(words: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "pooltrace.cli", "export", "--to", "pprof", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(["sh", "-c", f'exec "$@" {words}', "sh", *command], env=env, capture_output=True)


def test_to_standard_output_the_profile_is_alone_there(trace: Path) -> None:
    ended = shell("| cat", trace, "-o", "/dev/stdout")
    assert profiles.decode(ended.stdout).total(0) == 16
    assert ended.stderr.decode() == f"/dev/stdout: {SAYS} /dev/stdout\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_place_that_is_full(trace: Path, tmp_path: Path) -> None:
    ended = shell("", trace, "-o", "/dev/full")
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.startswith(b"pooltrace export: [Errno 28] No space left on device")
    assert ended.stderr.count(b"\n") == 1
    ended = shell("> /dev/full", trace)
    assert (ended.returncode, ended.stderr.count(b"\n")) == (2, 1)
    assert b"cannot write to standard output" in ended.stderr
    assert profiles.read(tmp_path / "t.pb.gz").total(0) == 16  # the profile is written, only nothing says so


# --- misuse ---------------------------------------------------------------------------------------


def test_places_that_cannot_be(trace: Path, tmp_path: Path, capsys: Capture) -> None:
    before = trace.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(trace)
    for out, says in (
        (trace, "is the trace itself; name another file after -o"),
        (link, "is the trace itself; name another file after -o"),
        (tmp_path / "none" / "x", "No such file or directory; choose another place with -o"),
        (tmp_path, "Is a directory; choose another place with -o"),
        (tmp_path / "x.pb.gz.lz4", "x.pb.gz' after -o (it is compressed)"),
        ("", "cannot write to '': it is no name; choose another place with -o"),
    ):
        assert export(trace, "-o", out) == 2
        line = error(capsys)
        assert line.startswith("pooltrace export: ")
        assert line.endswith(says)
    assert trace.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["link", "t.trace"]


def test_a_trace_that_is_no_plain_file_needs_a_place(trace: Path, tmp_path: Path) -> None:
    ended = shell(f"< {trace}", "/dev/stdin", "-o", tmp_path / "out")
    assert (ended.returncode, ended.stderr) == (0, b"")
    ended = shell("", "/dev/null")
    assert ended.returncode == 2
    assert ended.stderr == b"pooltrace export: '/dev/null' is no plain file: say where the profile goes with -o\n"
    assert not os.path.exists("/dev/null.pb.gz")


def test_words_that_it_does_not_know(trace: Path, capsys: Capture) -> None:
    for words, says in (
        ([trace], "the following arguments are required: --to"),
        ([trace, "--to", "perfetto"], "invalid choice: 'perfetto'"),
        (["--to", "pprof"], "the following arguments are required: FILE"),
        ([trace, "--to", "pprof", "--wire"], "unknown arguments: --wire"),
    ):
        with pytest.raises(SystemExit) as raised:
            main(["export", *map(str, words)])
        assert raised.value.code == 2
        line = error(capsys)
        assert says in line
        assert line.startswith("pooltrace export: ")


# --- traces at fault ------------------------------------------------------------------------------


def test_what_cannot_be_read(tmp_path: Path, capsys: Capture) -> None:
    for name, contents, status, says in (
        ("none", None, 2, "No such file or directory: give the path of a trace file"),
        (".", None, 2, "Is a directory: give the path of a trace file"),
        ("text", b"hello, this is no trace", 2, "not a Go execution trace: give a file that pooltrace run -o wrote"),
        ("empty", b"", 2, "the file is empty: give a file that pooltrace run -o wrote"),
        ("begin", b"go 1.26", 1, "cut off in the header, nothing is left to read"),
        ("x.lz4", b"\x04\x22\x4d\x18damaged", 1, "damaged: not a valid lz4 frame"),
    ):
        path = tmp_path / name
        if contents is not None:
            path.write_bytes(contents)
        assert export(path) == status
        line = error(capsys)
        assert line.startswith(f"{path}: ")
        assert line.endswith(says)
        if contents is not None:
            path.unlink()
    assert os.listdir(tmp_path) == []


def test_no_samples(tmp_path: Path, capsys: Capture, judge: Judge) -> None:
    path, out = tmp_path / "t.trace", tmp_path / "t.pb.gz"
    path.write_bytes(named("good-header-1.26").data())
    judge(path)
    out.write_bytes(b"of an earlier trace")
    capsys.readouterr()  # the judge's
    assert export(path) == 1
    says = "no CPU samples in it; record it again with samples on (pooltrace run --cpu-rate 100)"
    assert error(capsys) == f"{path}: {says}"
    assert out.read_bytes() == b"of an earlier trace"
    out.unlink()
    assert export(path) == 1
    assert os.listdir(tmp_path) == ["t.trace"]


def test_a_trace_that_is_cut_off(trace: Path, tmp_path: Path, capsys: Capture) -> None:
    """What comes from its whole generations is written; without any sample in these nothing is."""
    data, out = trace.read_bytes(), tmp_path / "t.pb.gz"
    trace.write_bytes(data[:-1])
    assert export(trace) == 1
    said, complaint = capsys.readouterr()
    assert said == f"{out}: 14 CPU samples, 0.06 s; to look at it: go tool pprof -top {out}\n"
    whole = "exported is what was before that: 2 generations"
    assert complaint == f"{trace}: cut off in generation 3, before its EndOfGeneration; {whole}\n"
    got = profiles.read(out)
    assert (got.total(0), got.duration) == (14, 10_700)
    assert gotool.pprof(out, "-raw")
    out.unlink()
    trace.write_bytes(data[:300])
    assert export(trace) == 1
    line = error(capsys)
    assert line.startswith(f"{trace}: cut off ")
    assert line.endswith("; no CPU samples before that, so nothing is written")
    assert os.listdir(tmp_path) == ["t.trace"]


def test_an_lz4_file_that_is_cut_off(trace: Path, tmp_path: Path, capsys: Capture) -> None:
    data = trace.read_bytes()
    end = data.rindex(b"\x34", 0, -1) + 1  # the last but one EndOfGeneration
    packed = tmp_path / "p.trace.lz4"
    packed.write_bytes(lz4.frame.compress(data[:end]) + lz4.frame.compress(data[end:])[:-20])
    assert export(packed) == 1
    said, complaint = capsys.readouterr()
    assert said.startswith(f"{tmp_path / 'p.pb.gz'}: 14 CPU samples")
    assert "cut off: the lz4 frame has no end; exported is what was before that: 2 generations\n" in complaint


def test_a_trace_that_is_broken(trace: Path, tmp_path: Path, capsys: Capture) -> None:
    lines = [line.replace("GoDestroy dt=100", "GoStart dt=100 g=9 g_seq=1") for line in sampled.units()]
    assert lines != sampled.units()
    sampled.write(trace, lines)
    assert export(trace) == 1
    said, complaint = capsys.readouterr()
    assert said.startswith(f"{tmp_path / 't.pb.gz'}: 10 CPU samples")
    assert complaint.startswith(f"{trace}: broken: generation 2, M 200, GoStart at 20600 ns: ")
    assert complaint.endswith("; exported is what was before that: 1 generation\n")


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)
def test_golden_traces(golden: Golden, tmp_path: Path, capsys: Capture) -> None:
    """One line, whatever is wrong with a trace, and a profile if there are samples."""
    path = tmp_path / "golden.trace"
    path.write_bytes(golden.data())
    status = export(path)
    if golden.name == "good-samples":
        assert status == 0
        assert capsys.readouterr().err == ""
        assert profiles.read(tmp_path / "golden.pb.gz").total(0) == 3
    else:
        assert status == 1
        assert golden.says in error(capsys) or golden.outcome == "misread"
        assert os.listdir(tmp_path) == ["golden.trace"]
