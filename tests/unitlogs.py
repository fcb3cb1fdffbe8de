"""The figures that a trace tells of its units and processes, as a program can read them."""

from __future__ import annotations

import os
import re
from collections import defaultdict

from pooltrace.format import order
from pooltrace.format.order import Event

Figures = dict[str, int]
COORDINATOR = "pooltrace.coordinator"
_OURS = re.compile(
    r"(short units: )?(process cpu us|cpu us|(in)?voluntary switches|run delay us|(minor|major) faults"
    r"|blocks (read|written)|throttled us|gc (pauses|us|freed)( before)?"
    r"|(argument|result) bytes|rss (before|after|peak))"
    r"|short units|item (cpu us|rss)"
    r"|argument \S+ bytes|(parent|Proc \d+) (rss|threads|descriptors)|units waiting|cpu samples (per second|lost)"
)


def is_users(event: Event) -> bool:
    """A log that is no figure of ours."""
    return event.name == "UserLog" and not _OURS.fullmatch(event.string("key"))


def of_units(path: str | os.PathLike[str], function: str) -> list[Figures]:
    """What is told of each unit of that function, in the order in which they end; the key "wall us" is our own."""
    starts: dict[int, str] = {}
    began: dict[int, int] = {}
    figures: dict[int, Figures] = defaultdict(dict)
    found = []
    for event in order.read_events(path):
        if event.name == "GoCreate" and (frames := event.stack("new_stack")):
            starts[event.arg("new_g")] = frames[0].function
        elif event.name == "GoStart":
            began[event.arg("g")] = event.time
        elif event.name == "UserLog" and event.string("value").isdigit():
            key, value = event.string("key"), int(event.string("value"))
            if key.startswith("item "):
                continue
            assert key not in figures[event.g], f"{key} is told twice of one unit"
            figures[event.g][key] = value
        elif event.name == "GoDestroy" and starts.get(event.g) == function:
            found.append({**figures[event.g], "wall us": (event.time - began[event.g]) // 1000})
    return found


def by_generation(path: str | os.PathLike[str]) -> list[Figures]:
    """What the coordinator tells, generation by generation."""
    found: list[Figures] = []
    coordinators: set[int] = set()
    with order.open_trace(path) as file:
        for _, _, events in order.TraceReader(file).generations():
            here: Figures = {}
            for event in events:
                if event.name == "GoCreate" and (frames := event.stack("new_stack")):
                    if frames[0].function == COORDINATOR:
                        coordinators.add(event.arg("new_g"))
                elif event.name == "UserLog" and event.g in coordinators and event.string("value").isdigit():
                    here.setdefault(event.string("key"), int(event.string("value")))
            found.append(here)
    return found
