"""Holds a trace against what the program itself noted: every item where, when and in the order in which it ran."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from jobs import Note

from pooltrace.format import order


class Item(NamedTuple):
    """One item's region in a trace."""

    m: int
    g: int
    begin: int
    end: int


class Found(NamedTuple):
    """Items by worker in the order of the trace; creations (unit ids) and starts (worker, unit id)."""

    items: dict[int, list[Item]]
    created: list[int]
    started: list[tuple[int, int]]


def read(path: str | os.PathLike[str], function: str, whole: bool = True) -> Found:
    """The items of one function; not `whole`: the trace may end within some, which are left out."""
    items: dict[int, list[Item]] = defaultdict(list)
    open_at: dict[int, int] = {}
    created, started = [], []
    for event in order.read_events(path):
        if event.name == "UserRegionBegin" and event.string("name") == function:
            open_at[event.g] = event.time
        elif event.name == "UserRegionEnd" and event.g in open_at and event.string("name") == function:
            items[event.m].append(Item(event.m, event.g, open_at.pop(event.g), event.time))
        elif event.name == "GoCreate" and (frames := event.stack("new_stack")) and frames[0].function == function:
            created.append(event.arg("new_g"))
        elif event.name == "GoStart":
            started.append((event.m, event.arg("g")))
    assert not (whole and open_at), "an item's region was not ended"
    return Found(items, created, started)


def agree(path: str | os.PathLike[str], function: str, notes: Iterable[Note], *, units: int) -> list[int]:
    """Asserts that trace and notes tell the same; returns by how many ns each item's duration differs.

    Each worker's items are those that it noted, in that order; each note's times lie inside its item's region; every
    unit was created once and started once.
    """
    noted: dict[int, list[Note]] = defaultdict(list)
    for one in notes:
        noted[one.pid].append(one)
    for mine in noted.values():
        mine.sort(key=lambda one: one.begin)
    found = read(path, function)
    assert {pid: len(mine) for pid, mine in noted.items()} == {m: len(items) for m, items in found.items.items()}
    differences = []
    for pid, mine in noted.items():
        for one, item in zip(mine, found.items[pid]):
            assert item.begin <= one.begin <= one.end <= item.end, (one, item)
            differences.append((item.end - item.begin) - (one.end - one.begin))
    assert len(found.created) == len(set(found.created)) == units
    mine_started = [g for _, g in found.started if g in set(found.created)] if units < 1000 else None
    if mine_started is not None:
        assert sorted(mine_started) == sorted(found.created)
    return differences
