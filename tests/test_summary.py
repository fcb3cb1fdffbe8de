"""The summary: golden texts, units, and names that try to steer the terminal."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import sys
import time
import unicodedata
from typing import Any

import pytest
from crew import crew

import pooltrace
from pooltrace.cli import summary as module
from pooltrace.cli.summary import cells, coloured, cut, duration, escape, percent, plain, report, show, size

MS = 1_000_000
S = 1000 * MS


def function(name: str = "job.work", count: int = 100, each: int = 10 * MS, **more: int) -> dict[str, Any]:
    row = {"name": name, "count": count, "total_ns": count * each}
    return row | {"median_ns": each, "p99_ns": 3 * each, "max_ns": 5 * each} | more


def slot(p: int, life: int, items: int = 0, other: int = 0, start: int = 0, **data: int) -> Any:
    parts = {"items_ns": items} | {f"{name}_ns": data.get(name, 0) for name in ("unpickle", "pickle", "send")}
    unit = sum(parts.values()) + other
    return {"p": p, "life_ns": life, "start_ns": start, "unit_ns": unit, "idle_ns": life - unit - start} | parts


def figures(**changes: Any) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "wall_ns": 10 * S,
        "units": 40,
        "items": 1930,
        "jobs": 1,
        "workers_lost": 0,
        "generations": 11,
        "events": 5000,
        "bytes": 212_345,
        "lost_events": 0,
        "functions": [function(count=1930)],
        "slots": [
            slot(1, 10 * S, items=9 * S, unpickle=40 * MS, pickle=300 * MS, send=200 * MS, other=10 * MS),
            slot(2, 10 * S, items=9 * S, unpickle=50 * MS, pickle=200 * MS, send=100 * MS, start=300 * MS),
        ],
    }
    return summary | changes


def test_golden_all_is_well() -> None:
    assert (
        plain(report(figures(), "job.trace"))
        == """
pooltrace: 10.0 s, 2 slots busy 94 % of the time: 1 job, 40 units, 1,930 items

  function  count   total   median      p99      max
  job.work  1,930  19.3 s  10.0 ms  30.0 ms  50.0 ms

  slot time               total  share
  items                  18.0 s   90 %  ##################
  unpickling            90.0 ms   <1 %
  pickling and sending   800 ms    4 %  #
  overhead              10.0 ms   <1 %
  starting workers       300 ms    2 %
  waiting for work       800 ms    4 %  #

  slot     alive  busy  items  unpickling  sending  overhead  starting  waiting
  Proc 1  10.0 s  96 %   90 %        <1 %      5 %      <1 %       0 %      4 %
  Proc 2  10.0 s  94 %   90 %        <1 %      3 %       0 %       3 %      4 %

pooltrace: wrote job.trace (212 kB); to look at it: go tool trace job.trace
"""
    )


def test_golden_all_is_not_well() -> None:
    slots = [slot(1, 10 * S, items=6 * S, pickle=3 * S), slot(2, 10 * S, items=S, pickle=2 * S)]
    summary = figures(
        workers_lost=1, lost_events=3, slots=slots, functions=[function(max_ns=6 * S)], units=1, jobs=1200
    )
    assert (
        plain(report(summary, "my job.trace.lz4"))
        == """
pooltrace: 10.0 s, 2 slots busy 60 % of the time: 1,200 jobs, 1 unit, 1,930 items
  ! 1 worker died
  ! 3 events could not be recorded: the trace has gaps
  ! moving data took 25 % of the slots' time: send less per item
  ! slots waited for work 40 % of the time
  ! one item took 6.00 s of the 10.0 s that a slot lived

  function  count   total   median      p99     max
  job.work    100  1.00 s  10.0 ms  30.0 ms  6.00 s

  slot time              total  share
  items                 7.00 s   35 %  #######
  unpickling              0 ns    0 %
  pickling and sending  5.00 s   25 %  #####
  overhead                0 ns    0 %
  starting workers        0 ns    0 %
  waiting for work      8.00 s   40 %  ########

  slot     alive  busy  items  unpickling  sending  overhead  starting  waiting
  Proc 1  10.0 s  90 %   60 %         0 %     30 %       0 %       0 %     10 %
  Proc 2  10.0 s  30 %   10 %         0 %     20 %       0 %       0 %     70 %

pooltrace: wrote my job.trace.lz4 (212 kB); to look at it: lz4 -d 'my job.trace.lz4' && go tool trace 'my job.trace'
"""
    )


def test_golden_no_pool() -> None:
    summary = figures(slots=[], functions=[], units=0, items=0, jobs=0, bytes=480, wall_ns=1_500_000)
    assert (
        plain(report(summary, "x.trace"))
        == """
pooltrace: no multiprocessing.Pool was traced in 1.50 ms
pooltrace: wrote x.trace (480 bytes); to look at it: go tool trace x.trace
"""
    )


def test_a_pool_without_work() -> None:
    text = plain(report(figures(slots=[slot(1, 0)], functions=[], units=0, items=0, jobs=0), "x.trace"))
    assert "1 slot busy 0 % of the time: 0 jobs, 0 units, 0 items" in text
    assert "function" not in text


def test_many_functions_and_slots_are_not_all_shown() -> None:
    functions = [function(f"job.f{number}") for number in range(100)]
    slots = [slot(p, 10 * S, items=p * S // 10) for p in range(1, 101)]
    lines = plain(report(figures(functions=functions, slots=slots), "x.trace")).splitlines()
    assert len(lines) < 50
    assert "  and 88 functions more, 88.0 s in all" in lines
    assert "  and 84 slots between them, busy 9 % to 92 %" in lines
    shown = [int(line.split()[1]) for line in lines if re.match(r" +Proc \d+ +10\.0 s", line)]
    assert shown == [*range(100, 92, -1), *range(8, 0, -1)]


HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "bell\x07\b\r\nline",
    "\x9b2J",
    "\u202egnp.exe",
    "\u2066isolate\u2069",
    "\u200fmark",
    "zero\u200bwidth\ufeff",
    "para\u2029graph",
    "lone\ud800",
    "tag\U000e0041",
    "[bold red]markup[/bold red]",
    "\x1b]8;;http://example.com\x1b\\link",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_do_not_reach_the_terminal(name: str) -> None:
    summary = figures(functions=[function(name)])
    text = plain(report(summary, name))
    assert all(c == "\n" or unicodedata.category(c)[0] not in "CZ" or c == " " for c in text)
    shown = coloured(report(summary, name), 200)
    bare = without_colours(shown)
    assert all(c == "\n" or unicodedata.category(c)[0] not in "CZ" or c == " " for c in bare)
    assert cut(escape(name)) in bare
    if "\x1b" in name:
        assert "\\x1b" in bare
        assert not re.search(r"\x1b\[31m *red", shown)


def test_wide_and_long_names_are_cut_and_stay_aligned() -> None:
    functions = [function("模块.函数" * 20), function("a" * 3000), function("e\u0301" * 10), function("short")]
    lines = plain(report(figures(functions=functions), "x.trace")).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  function"))
    table = lines[start : start + 5]
    assert {cells(line) for line in table} == {cells(table[0])}
    assert all(cells(line) < 100 for line in table)
    assert table[2].lstrip().startswith("..aaa")


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("name", ["some.module.with.many.words.SomeClass.some_method_of_it", "模块.函数" * 9, "short"])
@pytest.mark.parametrize("width", [80, 76])
def test_a_narrow_terminal_cuts_names_and_no_number(name: str, width: int) -> None:
    long = [function(name, count=1_234_567, each=65 * S, max_ns=999 * S)]
    slots = [slot(p, 4000 * S, items=3000 * S, start=S) for p in range(98, 101)]
    shown = report(figures(functions=long, slots=slots), "x.trace")
    bare = without_colours(coloured(shown, width))
    tables = [line for line in bare[bare.index("function") :].splitlines() if line][:-1]
    assert len(tables) == 2 + 7 + 4
    assert max(cells(line) for line in tables) <= width
    for table in shown.tables:
        for row in table.rows:
            assert any(line.split()[-len(" ".join(row[1:]).split()) :] == " ".join(row[1:]).split() for line in tables)
    assert name[-8:].lstrip(".") in bare
    for least in (1, 20):  # too narrow for the numbers: the terminal wraps them
        assert without_colours(coloured(shown, least)).count("1,234,567") == 1


def test_a_trace_that_is_not_complete() -> None:
    text = plain(report(figures(), "x.trace", fault="OSError: disk\x1b full"))
    assert "  ! nothing could be recorded after 10.0 s: the figures are of the time before\n" in text
    end = "pooltrace: the trace in x.trace is not complete: OSError: disk\\x1b full\n"
    assert text.endswith(end)
    assert "wrote" not in text


def test_the_size_is_that_of_the_file() -> None:
    assert "wrote x.trace.lz4 (1.50 kB);" in plain(report(figures(), "x.trace.lz4", written=1500))
    assert "wrote x.trace.lz4 (0 bytes);" in plain(report(figures(), "x.trace.lz4", written=0))


def test_hints_on_starts_and_on_what_is_no_item() -> None:
    slots = [slot(p, 10 * S, items=2 * S, start=7 * S) for p in (1, 2)]
    functions = [function("job.initializer", max_ns=6 * S), function(max_ns=S)]
    shown = report(figures(slots=slots, functions=functions), "x.trace")
    assert shown.hints == ["starting workers took 70 % of the slots' time: start fewer, or keep one pool"]
    slots = [slot(p, 10 * S, items=2 * S, start=5 * S) for p in (1, 2)]
    shown = report(figures(slots=slots, functions=functions), "x.trace")
    assert shown.hints[1:] == ["slots waited for work 30 % of the time"]  # no word of an item of 6 s


# What the figures are of


def spend(ns: int) -> None:
    """Takes so long."""
    end = time.perf_counter_ns() + ns
    while time.perf_counter_ns() < end:
        pass


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_start_is_no_unit_and_an_initializer_no_item(method: str) -> None:
    context = multiprocessing.get_context(method)
    with (
        pooltrace.trace(io.BytesIO()),
        pooltrace.StdPool(2, spend, (30 * MS,), maxtasksperchild=2, context=context) as pool,
    ):
        pool.map(spend, [MS] * 12, chunksize=2)  # units for three workers at least
        pool.close()
        pool.join()
    figures = pooltrace.summary()
    assert figures is not None
    assert (figures["units"], figures["items"], figures["jobs"]) == (6, 12, 1)
    (row,) = figures["functions"]
    starts = row["count"] - 12
    assert starts >= 3
    slots = figures["slots"]
    started, unit, items = (sum(slot[key] for slot in slots) for key in ("start_ns", "unit_ns", "items_ns"))
    assert started >= starts * 30 * MS
    assert row["total_ns"] >= starts * 30 * MS + items
    assert 12 * MS <= items <= unit
    for slot in slots:
        assert slot["life_ns"] == slot["start_ns"] + slot["unit_ns"] + slot["idle_ns"]
    assert "6 units, 12 items" in plain(report(figures, "x.trace"))


@pytest.mark.parametrize("older", [False, True])
def test_a_worker_that_never_comes_to_its_start_up_is_starting(older: bool) -> None:
    with contextlib.ExitStack() as stack:
        if older:  # then it has had its start-up, and waits
            stack.enter_context(crew(1))
        stack.enter_context(pooltrace.trace(io.BytesIO()))
        if not older:
            stack.enter_context(crew(1))
    figures = pooltrace.summary()
    assert figures is not None
    (row,) = figures["slots"]
    assert row["life_ns"] > 0
    assert (row["start_ns"], row["idle_ns"]) == ((0, row["life_ns"]) if older else (row["life_ns"], 0))


def test_of_one_call_all_figures_are_the_same() -> None:
    with pooltrace.trace(io.BytesIO()), pooltrace.StdPool(1) as pool:
        for function in (hex, oct, bin, abs):
            pool.apply(function, (7,))
    figures = pooltrace.summary()
    assert figures is not None
    rows = figures["functions"]
    assert len(rows) == 4
    for row in rows:
        assert row["total_ns"] == row["median_ns"] == row["p99_ns"] == row["max_ns"]


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("job.work", "job.<lambda>", "job.f.<locals>.größe", "模块.函数", "e\u0301", "a b"):
        assert escape(name) == name


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1.00 us"),
        (999_400, "999 us"),
        (999_600, "1.00 ms"),
        (12_345_678, "12.3 ms"),
        (999_600_000, "1.00 s"),
        (59 * S, "59.0 s"),
        (99 * S, "99.0 s"),
        (100 * S, "1 min 40 s"),
        (3599 * S, "59 min 59 s"),
        (3600 * S, "1 h 00 min"),
        (100_000 * 3600 * S, "100,000 h 00 min"),
    ],
)
def test_duration(ns: int, text: str) -> None:
    assert duration(ns) == text


def test_size_and_percent() -> None:
    counts = (0, 999, 1000, 999_499, 999_500, 5_000_000_000, 5e12)
    assert [size(n) for n in counts] == ["0 bytes", "999 bytes", "1.00 kB", "999 kB", "1.00 MB", "5.00 GB", "5,000 GB"]
    assert [percent(*p) for p in ((0, 0), (0, 9), (1, 900), (1, 2), (9, 9))] == ["0 %", "0 %", "<1 %", "50 %", "100 %"]


class _Stream(io.StringIO):
    """A stand-in for standard error: text goes to its descriptor."""

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        super().__init__()
        self._descriptor = descriptor
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


def test_a_file_gets_plain_text_and_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(sys, "__stderr__", _Stream(write, "ascii"))
    show(figures(functions=[function("größe")]), "x.trace")
    text = os.read(read, 1 << 16).decode()
    assert "gr\\xf6\\xdfe" in text
    assert "\x1b" not in text
    os.close(read)
    os.close(write)

    terminal, standard_error = os.openpty()
    monkeypatch.setattr(sys, "__stderr__", _Stream(standard_error))
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((90, 25)))
    show(figures(), "x.trace")
    text = os.read(terminal, 1 << 16).decode()
    assert "\x1b[" in text
    assert "busy 94 % of the time" in text
    os.close(terminal)
    os.close(standard_error)


@pytest.mark.parametrize("state", ["none", "closed", "bad descriptor"])
def test_no_standard_error_is_no_error(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    stream = _Stream(write)
    if state == "closed":
        stream.close()
    monkeypatch.setattr(sys, "__stderr__", None if state == "none" else stream)
    module.write("text")
    show(figures(), "x.trace")
