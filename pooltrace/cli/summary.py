"""The summary after a run: what the slots did with their time, per function and per slot, as text.

Knows only the dictionary that ``session.summary()`` returns (all times in ns) and the terminal. Function names come
from the program that ran: what could steer a terminal is escaped before it is shown.
"""

from __future__ import annotations

import os
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

NAME_CELLS: Final = 44
"""The widest function name; longer ones lose their beginning."""
LEAST_NAME_CELLS: Final = 12
"""What is left of a name at least where a terminal is narrow."""
MOST_FUNCTIONS: Final = 12
MOST_SLOTS: Final = 16
BAR_CELLS: Final = 20
BUSY_ENOUGH: Final = 0.8
"""Slots that are busy less than this share of the time are worth a hint."""
_BYTES: Final = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
TOO_MUCH: Final = 0.2
"""The share of the slots' time from which moving data, or starting workers, is worth a hint."""


@dataclass(frozen=True)
class Table:
    """Aligned columns: the first to the left, the others to the right, a last one of ``left`` to the left again."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    more: str = ""
    """What was left out, if anything was."""
    names: bool = False
    """Whether the first column is of names: only these may be cut."""


@dataclass
class Report:
    """What is shown, before it is laid out: a headline, hints, facts and tables."""

    headline: str
    warnings: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    end: str = ""


# Words and numbers


def escape(text: str, most: int = 400) -> str:
    """The text without anything that steers a terminal: control and format characters (colours, right-to-left marks),
    separators, lone surrogates and what is no character are shown by their numbers; cut at ``most`` characters."""
    text = text if len(text) <= most else text[:most] + ".."
    return "".join(c if c == " " or unicodedata.category(c)[0] not in "CZ" else _by_number(c) for c in text)


def _by_number(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cells(text: str) -> int:
    """How many columns of a terminal the text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(name: str, most: int = NAME_CELLS) -> str:
    """The name in at most so many columns: its end says more than its beginning."""
    if cells(name) <= most:
        return name
    while name and cells(name) > most - 2:
        name = name[1:]
    return ".." + name


def duration(ns: float) -> str:
    """A time with three digits in the unit that a person would use."""
    if ns < 1000:
        return f"{ns:.0f} ns"
    for limit, size, unit in ((1e6, 1e3, "us"), (1e9, 1e6, "ms"), (1e11, 1e9, "s")):
        value = ns / size
        if round(ns) < limit and float(f"{value:.3g}") < limit / size:
            return f"{value:#.3g}".rstrip(".") + f" {unit}"
    seconds = round(ns / 1e9)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600:,} h {seconds % 3600 // 60:02} min"


def size(count: float) -> str:
    """Bytes, in units of 1000."""
    if count < 1000:
        return f"{count:.0f} bytes"
    unit = "kB" if count < 999.5e3 else "MB" if count < 999.5e6 else "GB"
    value = count / _BYTES[unit]
    return (f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:,.0f}") + f" {unit}"


def percent(part: float, whole: float) -> str:
    """A share; something that is there is never shown as nothing."""
    share = 100 * part / whole if whole > 0 else 0.0
    return "<1 %" if share > 0 and round(share) == 0 else f"{share:.0f} %"


def plural(count: int, word: str) -> str:
    """A count and its word."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


# What is said


def report(summary: dict[str, Any], where: str, written: int | None = None, fault: str = "") -> Report:
    """Everything that is worth saying about a trace that went to ``where``.

    ``written``: the size of the file in bytes (default: that of the trace). ``fault``: why the trace is not complete.
    """
    wall = duration(summary["wall_ns"])
    result = Report(headline="")
    if fault:
        result.end = f"the trace in {escape(where)} is not complete: {escape(fault)}"
        result.warnings.append(f"nothing could be recorded after {wall}: the figures are of the time before")
    else:
        written = summary["bytes"] if written is None else written
        result.end = f"wrote {escape(where)} ({size(written)}); to look at it: {_viewer(where)}"
    lost = summary["workers_lost"]
    if lost:
        result.warnings.append(f"{plural(lost, 'worker')} died")
    if summary["lost_events"]:
        result.warnings.append(f"{plural(summary['lost_events'], 'event')} could not be recorded: the trace has gaps")
    slots = summary["slots"]
    if not slots:
        result.headline = f"no multiprocessing.Pool was traced in {wall}"
        return result
    life = sum(slot["life_ns"] for slot in slots)
    busy = percent(sum(slot["unit_ns"] for slot in slots), life)
    result.headline = f"{wall}, {plural(len(slots), 'slot')} busy {busy} of the time: " + ", ".join(
        plural(summary[key], key.removesuffix("s")) for key in ("jobs", "units", "items")
    )
    result.tables = [_functions(summary["functions"]), _times(slots, life), _slots(slots)]
    result.tables = [table for table in result.tables if table.rows]
    result.hints = list(_hints(summary, slots, life))
    return result


def _viewer(where: str) -> str:
    """The command that shows the file: Go's tools read no compressed one."""
    bare = where.removesuffix(".lz4")
    unpack = f"lz4 -d {escape(shlex.quote(where))} && " if bare != where else ""
    return f"{unpack}go tool trace {escape(shlex.quote(bare))}"


def _functions(functions: Sequence[dict[str, Any]]) -> Table:
    header = ("function", "count", "total", "median", "p99", "max")
    times = ("total_ns", "median_ns", "p99_ns", "max_ns")
    rows = [
        (cut(escape(entry["name"])), f"{entry['count']:,}", *(duration(entry[key]) for key in times))
        for entry in functions[:MOST_FUNCTIONS]
    ]
    rest = functions[MOST_FUNCTIONS:]
    more = (
        f"and {plural(len(rest), 'function')} more, {duration(sum(f['total_ns'] for f in rest))} in all" if rest else ""
    )
    return Table(header, rows, more, names=True)


def _parts(slots: Iterable[dict[str, Any]]) -> list[tuple[str, float]]:
    """Where the slots' time went: in units, and outside of them."""
    names = ("items_ns", "unpickle_ns", "pickle_ns", "send_ns", "unit_ns", "start_ns", "idle_ns")
    slots = list(slots)
    items, unpickle, pickle, send, unit, start, idle = (sum(slot[name] for slot in slots) for name in names)
    return [
        ("items", items),
        ("unpickling", unpickle),
        ("pickling and sending", pickle + send),
        ("overhead", max(0, unit - items - unpickle - pickle - send)),
        ("starting workers", start),
        ("waiting for work", idle),
    ]


def _times(slots: Sequence[dict[str, Any]], life: float) -> Table:
    header = ("slot time", "total", "share", "")
    bar: Callable[[float], str] = lambda part: "#" * round(BAR_CELLS * min(1.0, part / life)) if life > 0 else ""
    return Table(header, [(name, duration(part), percent(part, life), bar(part)) for name, part in _parts(slots)])


def _slots(slots: Sequence[dict[str, Any]]) -> Table:
    """One row per slot; of very many the busiest and the idlest."""
    share: Callable[[dict[str, Any]], float] = lambda slot: (
        slot["unit_ns"] / slot["life_ns"] if slot["life_ns"] else 0.0
    )
    more = ""
    if len(slots) > MOST_SLOTS:
        ranked = sorted(slots, key=share, reverse=True)
        half = MOST_SLOTS // 2
        between = ranked[half:-half]
        low, high = (percent(share(slot), 1) for slot in (between[-1], between[0]))
        more = f"and {plural(len(between), 'slot')} between them, busy {low} to {high}"
        slots = ranked[:half] + ranked[-half:]
    rows = []
    for slot in slots:
        parts = [part for _, part in _parts([slot])]
        shares = [percent(part, slot["life_ns"]) for part in parts]
        busy = percent(slot["unit_ns"], slot["life_ns"])
        rows.append((f"Proc {slot['p']}", duration(slot["life_ns"]), busy, *shares))  # as the viewer calls it
    header = ("slot", "alive", "busy", "items", "unpickling", "sending", "overhead", "starting", "waiting")
    return Table(header, rows, more)


def _hints(summary: dict[str, Any], slots: Sequence[dict[str, Any]], life: float) -> Iterable[str]:
    """What a tired reader should look at first; nothing when all is well."""
    if life <= 0:
        return
    part = dict(_parts(slots))
    moving = part["unpickling"] + part["pickling and sending"]
    if moving > TOO_MUCH * life:
        yield f"moving data took {percent(moving, life)} of the slots' time: send less per item"
    starting = part["starting workers"]
    if starting > TOO_MUCH * life:
        yield f"starting workers took {percent(starting, life)} of the slots' time: start fewer, or keep one pool"
    waiting = part["waiting for work"]
    if waiting > (1 - BUSY_ENOUGH) * life:
        yield f"slots waited for work {percent(waiting, life)} of the time"
        most = max(slot["items_ns"] for slot in slots)  # what took longer was no item but an initializer
        longest = max((entry["max_ns"] for entry in summary["functions"] if entry["max_ns"] <= most), default=0)
        mean = life / len(slots)
        if len(slots) > 1 and summary["items"] > 1 and longest > mean / 2:
            yield f"one item took {duration(longest)} of the {duration(mean)} that a slot lived"


# How it is shown


def plain(shown: Report) -> str:
    """The report as text for a file."""
    lines = ["", f"pooltrace: {shown.headline}"]
    lines += [f"  ! {text}" for text in shown.warnings + shown.hints]
    for table in shown.tables:
        lines += ["", *(f"  {line}" for line in _aligned(table))]
        lines += [f"  {table.more}"] if table.more else []
    return "\n".join([*lines, *([""] if shown.tables else []), f"pooltrace: {shown.end}", ""])


def _aligned(table: Table, room: int | None = None) -> Iterable[str]:
    """The header and the rows. In ``room`` columns names are cut, then the gaps are smaller; no number ever is cut."""
    lines = [table.header, *table.rows]
    widths = [max(cells(line[column]) for line in lines) for column in range(len(table.header))]
    gap = 2
    over = 0 if room is None else sum(widths) + gap * (len(widths) - 1) - room
    if over > 0 and table.names:
        least = min(widths[0], LEAST_NAME_CELLS)
        widths[0], over = max(least, widths[0] - over), over - (widths[0] - least)
    if over > 0:
        gap = 1
    for line in lines:
        first = cut(line[0], widths[0]) if table.names else line[0]
        texts = [_pad(text, width, _left(table, i)) for i, (text, width) in enumerate(zip((first, *line[1:]), widths))]
        yield (" " * gap).join(texts).rstrip()


def _left(table: Table, column: int) -> bool:
    return column == 0 or not table.header[column]


def _pad(text: str, width: int, left: bool) -> str:
    space = " " * (width - cells(text))
    return text + space if left else space + text


def coloured(shown: Report, width: int) -> str:
    """The report as text for a terminal of so many columns. The one place that needs rich."""
    from rich.console import Console
    from rich.text import Text

    console = Console(force_terminal=True, width=max(40, width), highlight=False, soft_wrap=False)
    with console.capture() as capture:
        console.print()
        console.print(Text.assemble(("pooltrace: ", "bold"), shown.headline))
        for style, texts in (("bold red", shown.warnings), ("yellow", shown.hints)):
            for text in texts:
                console.print(Text(f"  ! {text}", style=style))
        for table in shown.tables:
            console.print()
            header, *rows = _aligned(table, width)
            console.print(Text(header, style="bold"), soft_wrap=True)
            for row in rows:
                console.print(Text(row), soft_wrap=True)
            if table.more:
                console.print(Text(f"  {table.more}", style="dim"))
        console.print()
        console.print(Text.assemble(("pooltrace: ", "bold"), shown.end), soft_wrap=True)
    return capture.get()


def show(summary: dict[str, Any], where: str, written: int | None = None, fault: str = "") -> None:
    """Write the summary to standard error, in colour if that is a terminal. Arguments as of ``report``."""
    shown = report(summary, where, written, fault)
    stream = sys.__stderr__
    try:
        width = os.get_terminal_size(stream.fileno()).columns if stream is not None and stream.isatty() else 0
    except (OSError, ValueError):
        width = 0
    write(coloured(shown, width) if width else plain(shown))


def write(text: str) -> None:
    """Write to the standard error that python began with, if it is still there.

    To the descriptor: a signal handler may come here while the stream's own buffer is in use.
    """
    stream = sys.__stderr__
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError, RuntimeError):
        pass
    try:
        data = text.encode(stream.encoding, "backslashreplace")
        while data:
            data = data[os.write(stream.fileno(), data) :]
    except (OSError, ValueError):
        return
