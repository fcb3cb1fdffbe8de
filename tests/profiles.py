"""A small decoder of profile.proto, which shares nothing with the writer: what a profile says, by names."""

from __future__ import annotations

import gzip
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

Message = dict[int, list[int | bytes]]


class Entry(NamedTuple):
    """One sample of a profile: its stack, the leaf first, as (function, file, line), its labels and values."""

    stack: tuple[tuple[str, str, int], ...]
    labels: tuple[tuple[str, str], ...]
    values: tuple[int, ...]


class Decoded(NamedTuple):
    """A profile; times in ns, 0 for none."""

    types: list[tuple[str, str]]
    period: tuple[str, str, int]
    time: int
    duration: int
    entries: list[Entry]
    strings: list[str]

    def total(self, column: int) -> int:
        return sum(entry.values[column] for entry in self.entries)

    def by(self, label: str) -> Counter[str | None]:
        """Samples by the value of a label."""
        out: Counter[str | None] = Counter()
        for entry in self.entries:
            out[dict(entry.labels).get(label)] += entry.values[0]
        return out


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def message(data: bytes | int) -> Message:
    """The fields of a message by their numbers, each in its order."""
    assert isinstance(data, bytes)
    out: Message = defaultdict(list)
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        assert tag & 7 in (0, 2), f"wire type {tag & 7}"
        value, at = varint(data, at)
        if tag & 7 == 2:
            assert at + value <= len(data), "a field that is cut off"
            out[tag >> 3].append(data[at : at + value])
            at += value
        else:
            out[tag >> 3].append(value)
    return out


def number(fields: Message, field: int) -> int:
    """The one number of a field, 0 if it is left out."""
    values = fields.get(field, [0])
    assert len(values) == 1
    assert isinstance(values[0], int)
    return values[0] - (1 << 64) if values[0] >> 63 else values[0]


def packed(data: bytes | int) -> list[int]:
    assert isinstance(data, bytes)
    out, at = [], 0
    while at < len(data):
        value, at = varint(data, at)
        out.append(value)
    return out


def decode(data: bytes) -> Decoded:
    """A file's contents. Raises AssertionError where it is not as it should be."""
    profile = message(gzip.decompress(data))
    assert set(profile) <= {1, 2, 4, 5, 6, 9, 10, 11, 12}
    strings = [text.decode("utf-8") for text in profile[6] if isinstance(text, bytes)]
    assert strings[0] == ""
    assert len(set(strings)) == len(strings)

    def text(fields: Message, field: int) -> str:
        return strings[number(fields, field)]

    functions = {}
    for fields in map(message, profile[5]):
        assert set(fields) <= {1, 2, 4}
        functions[number(fields, 1)] = (text(fields, 2), text(fields, 4))
    places = {}
    for fields in map(message, profile[4]):
        assert set(fields) == {1, 4}
        (line,) = map(message, fields[4])
        places[number(fields, 1)] = (*functions[number(line, 1)], number(line, 2))
    for table, rows in ((functions, profile[5]), (places, profile[4])):
        assert 0 not in table
        assert len(set(table.values())) == len(table) == len(rows)
    entries = []
    for fields in map(message, profile[2]):
        assert set(fields) <= {1, 2, 3}
        stack = tuple(places[place] for place in packed(*fields[1]))
        labels = tuple((text(label, 1), text(label, 2)) for label in map(message, fields.get(3, [])))
        entries.append(Entry(stack, labels, tuple(packed(*fields[2]))))
    types = [(text(fields, 1), text(fields, 2)) for fields in map(message, profile[1])]
    (kind,) = map(message, profile[11])
    period = (text(kind, 1), text(kind, 2), number(profile, 12))
    return Decoded(types, period, number(profile, 9), number(profile, 10), entries, strings)


def read(path: Path) -> Decoded:
    return decode(path.read_bytes())
