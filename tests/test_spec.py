"""The event table against Go's own sources, and against itself."""

from __future__ import annotations

import re
from pathlib import Path

import gotool
import pytest

from pooltrace.format import rules, spec


def go_file(name: str) -> str:
    root = gotool.require_go_source()
    return (Path(root) / "src" / "internal" / "trace" / name).read_text()


def go_events() -> dict[str, int]:
    """Names and numbers, as Go counts them in its constants."""
    block = re.search(r"EvNone EventType = iota.*?NumEvents", go_file("tracev2/events.go"), re.DOTALL)
    assert block
    names = re.findall(r"^\tEv(\w+)", block[0], re.MULTILINE)
    return {name: number for number, name in enumerate(["None", *(n for n in names if n != "None")]) if number}


def go_rows() -> dict[str, str]:
    """The text of each row of Go's table."""
    rows = re.findall(r"^\tEv(\w+): \{\n(.*?)^\t\},", go_file("tracev2/events.go"), re.MULTILINE | re.DOTALL)
    return dict(rows)


def numbers_in(row: str, field: str) -> set[int]:
    found = re.search(rf"{field}:\s*\[\]int\{{([\d, ]*)\}}", row)
    return set(map(int, found[1].split(","))) if found else set()


def test_names_and_numbers_are_gos() -> None:
    assert {event.name: event.number for event in spec.EVENTS} == go_events()


def test_arguments_are_gos() -> None:
    rows = go_rows()
    for event in spec.EVENTS:
        if event.name == "ExperimentalBatch":
            continue  # Go's table leaves its size to the raw reader
        row = rows[event.name]
        args = re.search(r"Args:\s*\[\]string\{(.*?)\}", row)
        names = re.findall(r'"(\w+)"', args[1]) if args else []
        assert len(event.args) == len(names), event.name
        assert event.timed == ("IsTimedEvent: true" in row), event.name
        assert set(event.strings) == numbers_in(row, "StringIDs"), event.name
        if event.name != "CPUSample":  # Go counts its stack without the time
            assert set(event.stacks) == numbers_in(row, "StackIDs"), event.name
        start = re.search(r"StartEv:\s*Ev(\w+)", row)
        assert event.start == (start[1] if start else None), event.name


def test_headers_know_what_gos_know() -> None:
    numbers = go_events()
    rows = re.findall(r"Go1(2\d): tracev2\.Specs\(\)(?:\[:tracev2\.Ev(\w+)\+1\])?", go_file("version/version.go"))
    assert {f"1.{minor}" for minor, _ in rows} == set(spec.HEADERS)
    for minor, last in rows:
        header = spec.HEADERS[f"1.{minor}"]
        known = {event.number for event in spec.EVENTS if header.knows(event)}
        assert known == set(range(1, numbers[last] + 1 if last else len(numbers) + 1)), minor


def test_limits_are_gos() -> None:
    source = go_file("tracev2/events.go")
    values = {name: eval(value) for name, value in re.findall(r"(Max\w+) = (\d+ << \d+|\d+)\n", source)}
    assert values["MaxBatchSize"] == spec.MAX_BATCH_SIZE
    assert values["MaxEventTrailerDataSize"] == spec.MAX_STRING_SIZE
    assert values["MaxFramesPerStack"] == spec.MAX_STACK_FRAMES


@pytest.mark.parametrize(("kind", "prefix"), [(spec.GoStatus, "Go"), (spec.ProcStatus, "Proc")])
def test_states_are_gos(kind: type[spec.GoStatus] | type[spec.ProcStatus], prefix: str) -> None:
    block = re.search(rf"\t{prefix}Bad {prefix}Status = iota\n(.*?)^\)", go_file("tracev2/events.go"), re.DOTALL | re.M)
    assert block
    names = re.findall(rf"^\t{prefix}(\w+)$", block[1], re.MULTILINE)
    ours = {state.name.replace("_", ""): state.value for state in kind}
    assert ours == {name.upper(): number for number, name in enumerate(names, 1)}


def test_rows_are_whole() -> None:
    assert [event.number for event in spec.EVENTS] == list(range(1, len(spec.EVENTS) + 1))
    assert set(spec.BY_NAME) == {event.name for event in spec.EVENTS}
    for event in spec.EVENTS:
        assert len(event.args) == len(event.types) == len(set(event.args))
        assert event.timed == (event.args[:1] == ("dt",))
        assert event.start is None or event.start in spec.BY_NAME


def test_each_timed_event_has_a_rule() -> None:
    timed = {event.name for event in spec.EVENTS if event.timed} - {"ClockSnapshot"}
    assert set(rules.RULES) == timed


def test_headers() -> None:
    assert spec.DEFAULT_HEADER == "1.26"
    for name, header in spec.HEADERS.items():
        assert header.name == name
        assert len(header.magic) == spec.HEADER_SIZE
    assert spec.HEADERS["1.26"].magic == b"go 1.26 trace\0\0\0"
    assert [name for name, header in spec.HEADERS.items() if header.status_stack] == ["1.23", "1.25", "1.26"]
    assert [name for name, header in spec.HEADERS.items() if header.clock_snapshot] == ["1.25", "1.26"]
    assert [name for name, header in spec.HEADERS.items() if header.end_of_generation] == ["1.26"]
