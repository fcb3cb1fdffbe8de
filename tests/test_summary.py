"""The summary: golden texts, units, and names that try to steer the terminal."""

from __future__ import annotations

import io
import os
import re
import sys
import unicodedata
from typing import Any

import pytest

from pooltrace.cli import summary as module
from pooltrace.cli.summary import cells, coloured, cut, duration, escape, percent, plain, report, show, size

MS = 1_000_000
S = 1000 * MS


def function(name: str = "job.work", count: int = 100, each: int = 10 * MS, **more: int) -> dict[str, Any]:
    row = {"name": name, "count": count, "total_ns": count * each}
    return row | {"median_ns": each, "p99_ns": 3 * each, "max_ns": 5 * each} | more


def slot(p: int, life: int, items: int = 0, unpickle: int = 0, pickle: int = 0, send: int = 0, other: int = 0) -> Any:
    unit = items + unpickle + pickle + send + other
    parts = {"items_ns": items, "unpickle_ns": unpickle, "pickle_ns": pickle, "send_ns": send}
    return {"p": p, "life_ns": life, "unit_ns": unit, "idle_ns": life - unit} | parts


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
            slot(2, 10 * S, items=9 * S, unpickle=50 * MS, pickle=200 * MS, send=100 * MS),
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
  between them          10.0 ms   <1 %
  waiting for work       1.10 s    6 %  #

  slot   alive  busy  items  unpickling  pickling, sending  between  waiting
  1     10.0 s  96 %   90 %        <1 %                5 %     <1 %      4 %
  2     10.0 s  94 %   90 %        <1 %                3 %      0 %      6 %

pooltrace: wrote job.trace (212 kB); to look at it: go tool trace job.trace
"""
    )


def test_golden_all_is_not_well() -> None:
    slots = [slot(1, 10 * S, items=4 * S, pickle=3 * S), slot(2, 10 * S, items=S, pickle=2 * S)]
    summary = figures(
        workers_lost=1, lost_events=3, slots=slots, functions=[function(max_ns=6 * S)], units=1, jobs=1200
    )
    assert (
        plain(report(summary, "my job.trace.lz4"))
        == """
pooltrace: 10.0 s, 2 slots busy 50 % of the time: 1,200 jobs, 1 unit, 1,930 items
  ! 1 worker died
  ! 3 events could not be recorded: the trace has gaps
  ! moving data took 25 % of the slots' time: send less per item
  ! slots waited for work 50 % of the time
  ! one item took 6.00 s of the 10.0 s that a slot lived

  function  count   total   median      p99     max
  job.work    100  1.00 s  10.0 ms  30.0 ms  6.00 s

  slot time              total  share
  items                 5.00 s   25 %  #####
  unpickling              0 ns    0 %
  pickling and sending  5.00 s   25 %  #####
  between them            0 ns    0 %
  waiting for work      10.0 s   50 %  ##########

  slot   alive  busy  items  unpickling  pickling, sending  between  waiting
  1     10.0 s  70 %   40 %         0 %               30 %      0 %     30 %
  2     10.0 s  30 %   10 %         0 %               20 %      0 %     70 %

pooltrace: wrote my job.trace.lz4 (212 kB); to look at it: lz4 -d 'my job.trace.lz4' && go tool trace 'my job.trace'
"""
    )


def test_golden_no_pool() -> None:
    summary = figures(slots=[], functions=[], units=0, items=0, jobs=0, bytes=480, wall_ns=1_500_000)
    assert (
        plain(report(summary, "x.trace"))
        == """
pooltrace: no process pool was used in 1.50 ms
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
    shown = [int(line.split()[0]) for line in lines if re.match(r" +\d+ +10\.0 s", line)]
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
    bare = re.sub(r"\x1b\[[0-9;]*m", "", shown)
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
