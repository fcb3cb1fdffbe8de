"""Profiles for pprof: what is in them, by a decoder of our own and by Go's tool."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import gotool
import profiles
import pytest
import sampled
from profiles import Entry

from pooltrace.export.pprof import NO_STACK, Profile
from pooltrace.format.generation import Frame
from pooltrace.format.order import Summary
from pooltrace.format.raw import open_trace
from pooltrace.reader.samples import Sample, SampleReader

Judge = Callable[[str | os.PathLike[str]], Summary]
LIMIT = 300.0  # two of Go's tools may have to be built in the first test
LEAF, ROOT = Frame(1, "m.leaf", "m.py", 3), Frame(2, "m.root", "m.py", 9)
MS = 1_000_000
BEGAN = 1_700_000_000_000_000_000


def tick(*frames: Frame, m: int = 7, p: int = 1, unit: str | None = "m.root", item: str | None = None) -> Sample:
    return Sample(5, m, p, 2, frames, unit, item)


def profile_of(*samples: Sample, period_ns: int = 10 * MS) -> bytes:
    profile = Profile()
    for one in samples:
        profile.add(one, period_ns)
    return profile.encode(wall_ns=BEGAN, duration_ns=2_000 * MS)


@pytest.fixture
def made(tmp_path: Path, judge: Judge) -> Path:
    """The profile of the trace with two units."""
    trace = sampled.write(tmp_path / "t.trace", sampled.units())
    judge(trace)
    path = tmp_path / "t.pb.gz"
    with open_trace(trace) as file:
        reader, profile = SampleReader(file), Profile()
        for one in reader:
            profile.add(one, reader.period_ns)
    path.write_bytes(profile.encode(wall_ns=reader.wall_ns, duration_ns=reader.duration_ns))
    return path


# --- what is in it --------------------------------------------------------------------------------


def test_the_profile_of_a_trace(made: Path) -> None:
    got = profiles.read(made)
    assert got.types == [("samples", "count"), ("cpu", "nanoseconds")]
    assert got.period == ("cpu", "nanoseconds", 4 * MS)
    assert (got.time, got.duration) == (sampled.SECOND * 10**9 - 99, 20_990)
    assert (got.total(0), got.total(1)) == (16, 64 * MS)
    assert got.by("unit") == {"main.work": 11, "main.other": 2, "main.<module>": 1, None: 2}
    quotes, strange, brackets = sampled.ODD.values()
    strange = strange.replace("\udce9", "\ufffd")
    assert got.by("item") == {"main.work": 5, "inner": 2, "unpickle": 1, strange: 1, None: 7}
    assert got.by("proc") == {"1": 14, "0": 1, None: 1}
    assert got.by("thread") == {"200": 15, "100": 1}
    deep = (("main.deep", "lib.py", 7), ("main.work", "main.py", 12))
    labels = (("unit", "main.work"), ("item", "main.work"), ("proc", "1"), ("thread", "200"))
    assert Entry(deep, labels, (4, 16 * MS)) in got.entries
    odd = ((quotes, strange, 1), (strange, quotes, 3), (brackets, "main.py", 4))
    assert [entry.values for entry in got.entries if entry.stack == odd] == [(1, 4 * MS)]
    assert [entry.values for entry in got.entries if entry.stack == ((NO_STACK, "", 0),)] == [(1, 4 * MS)]


def test_equal_samples_are_one_entry() -> None:
    """Equal in stack and labels: time and G are no matter, nor is a PC."""
    same = tick(LEAF, ROOT)
    other_pc = same._replace(frames=(LEAF._replace(pc=99), ROOT), time_ns=99, g=3)
    differ = [
        tick(ROOT),
        tick(LEAF),
        tick(ROOT, LEAF),
        tick(LEAF._replace(line=4), ROOT),
        tick(LEAF._replace(file="n.py"), ROOT),
        tick(LEAF, ROOT, m=8),
        tick(LEAF, ROOT, p=2),
        tick(LEAF, ROOT, unit="m.other"),
        tick(LEAF, ROOT, item="m.root"),
        tick(LEAF, ROOT, unit=None, item="m.root"),
        tick(LEAF, ROOT, p=-1),
    ]
    got = profiles.decode(profile_of(same, *differ, other_pc, same))
    assert [entry.values for entry in got.entries] == [(3, 30 * MS)] + [(1, 10 * MS)] * len(differ)


def test_labels_that_are_none_are_left_out() -> None:
    got = profiles.decode(profile_of(tick(LEAF, m=-1, p=-1, unit=None), tick(LEAF, m=0, p=0, unit="", item="")))
    assert [entry.labels for entry in got.entries] == [(), (("proc", "0"), ("thread", "0"))]


def test_ticks_of_several_rates(tmp_path: Path) -> None:
    """The period is that of the first; time is what it is."""
    profile = Profile()
    profile.add(tick(LEAF), 10 * MS)
    profile.add(tick(LEAF), 1 * MS)
    got = profiles.decode(profile.encode(wall_ns=None, duration_ns=0))
    assert (profile.samples, profile.cpu_ns) == (2, 11 * MS)
    assert got.entries[0].values == (2, 11 * MS)
    assert (got.period[2], got.time, got.duration) == (10 * MS, 0, 0)


def test_large_numbers() -> None:
    """A line is what the file says; a time that does not fit is cut."""
    profile = Profile()
    for line in (0, (1 << 64) - 1, 1 << 40):
        profile.add(tick(LEAF._replace(line=line)), 100 * 10**9)
    got = profiles.decode(profile.encode(wall_ns=(1 << 63) - 1, duration_ns=1 << 70))
    assert [entry.stack[0][2] for entry in got.entries] == [0, -1, 1 << 40]
    assert (got.time, got.duration) == ((1 << 63) - 1, (1 << 63) - 1)
    many = [tick(*[LEAF._replace(line=line + depth) for depth in range(128)], unit=f"f{line}") for line in range(300)]
    decoded = profiles.decode(profile_of(*many))
    assert [len(entry.stack) for entry in decoded.entries] == [128] * 300
    assert decoded.entries[299].labels[0] == ("unit", "f299")
    assert decoded.entries[299].stack[127][2] == 299 + 127


def test_equal_profiles_are_equal_files() -> None:
    data = profile_of(tick(LEAF, ROOT), tick(ROOT))
    assert data == profile_of(tick(LEAF, ROOT), tick(ROOT))
    assert data[:8] == b"\x1f\x8b\x08\0\0\0\0\0"  # no name, no time


# --- what Go's tool makes of it -------------------------------------------------------------------


def top(path: Path, *options: str) -> dict[str, tuple[str, str]]:
    """What ``-top`` shows: by function, the value in itself and with all that it calls."""
    rows = re.findall(r"^ +(\S+) +\S+% +\S+% +(\S+) +\S+%  (.*)$", gotool.pprof(path, "-top", *options), re.MULTILINE)
    return {name: (flat, cum) for flat, cum, name in rows}


def test_go_shows_the_functions(made: Path) -> None:
    shown = top(made)
    assert shown["main.deep"] == ("24ms", "24ms")
    assert shown["main.work"] == ("16ms", "40ms")
    assert shown[NO_STACK] == ("4ms", "4ms")
    assert top(made, "-sample_index=samples")["main.work"] == ("4", "10")
    text = gotool.pprof(made, "-top")
    assert "Type: cpu\n" in text
    assert "Duration: 20.99us, Total samples = 64ms " in text


def test_go_shows_names_as_they_are(tmp_path: Path) -> None:
    """It would shorten what it takes for C++, or Go."""
    names = ["<listcomp>", "m.<locals>.<lambda>", "m.f[int]", "a::b", "operator()", "_ZN3foo3barEv", "x.(*T).y", "wörk"]
    path = tmp_path / "t.pb.gz"
    path.write_bytes(profile_of(*(tick(LEAF._replace(function=name)) for name in names)))
    assert sorted(top(path)) == sorted(names)


def test_go_shows_the_tags(made: Path) -> None:
    text = gotool.pprof(made, "-tags")
    assert set(re.findall(r"^ *(\w+): Total", text, re.MULTILINE)) == {"unit", "item", "proc", "thread"}
    rows = re.findall(r"^ +(\S+) \( *\S+%\): (.*)$", text, re.MULTILINE)
    assert {("44ms", "main.work"), ("8ms", "main.other"), ("4ms", "unpickle"), ("56ms", "1"), ("4ms", "0")} <= {*rows}
    assert top(made, "-tagfocus=item=^unpickle$") == {"main.work": ("4ms", "4ms")}
    assert top(made, "-tagfocus=unit=^main.other$")["main.other"] == ("4ms", "4ms")


def test_go_reads_every_sample(made: Path) -> None:
    text = gotool.pprof(made, "-raw")
    assert "PeriodType: cpu nanoseconds\nPeriod: 4000000\nTime: 2023-11-14 22:13:19.999999901 +0000 UTC\n" in text
    rows = re.findall(r"^ +(\d+) +(\d+): ([\d ]+)$", text, re.MULTILINE)
    entries = profiles.read(made).entries
    assert [(int(n), int(ns), len(ids.split())) for n, ns, ids in rows] == [
        (*entry.values, len(entry.stack)) for entry in entries
    ]
    assert re.search(r"^ +\d+: 0x0 M=1 main\.deep lib\.py:7:0 s=0\(\)$", text, re.MULTILINE)


def test_go_refuses_what_is_cut_off(made: Path) -> None:
    """So that what is accepted above means something."""
    made.write_bytes(made.read_bytes()[:-20])
    with pytest.raises(AssertionError, match="pprof refuses"):
        gotool.pprof(made, "-raw")
