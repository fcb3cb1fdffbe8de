"""CPU samples as a profile for pprof: a gzip'd ``profile.proto``, written without a library.

Knows of the format what a CPU profile needs (its source is google/pprof's proto/profile.proto):

    Profile  | sample_type = 1 * | sample = 2 * | location = 4 * | function = 5 * | string_table = 6 * |
             | time_nanos = 9 | duration_nanos = 10 | period_type = 11 | period = 12 |
    Sample   | location_id = 1, packed, the leaf first | value = 2, packed: ticks, CPU time in ns | label = 3 * |
    Location | id = 1 | line = 4: function_id = 1, line = 2 |
    Function | id = 1 | name = 2 | filename = 4 |
    Label    | key = 1 | str = 2 |                ValueType  | type = 1 | unit = 2 |

Names are numbers of the string table, whose first entry is the empty one. Fields that are 0 are left out. There is no
mapping and no address: locations have their names already, and pprof looks nothing up. Nor is there a system name:
pprof would take names like ``<listcomp>`` for C++ and shorten them.
"""

from __future__ import annotations

import zlib
from typing import Final

from pooltrace.format.raw import uvarint
from pooltrace.format.spec import NONE
from pooltrace.reader.samples import Sample

NO_STACK: Final = "(no stack)"
"""The function that samples without a stack are shown under: pprof hides what has none."""
_VARINT, _BYTES = 0, 2  # wire types
_GZIP: Final = 31  # zlib's window bits for a gzip header; its time is 0, so that equal profiles are equal files
_LAST: Final = (1 << 63) - 1


class Profile:
    """Samples added up: those of one stack, unit, item, proc and thread are one entry.

    Unit, item, P and M are string labels (``unit``, ``item``, ``proc``, ``thread``), left out where there is none. Ids
    are texts, as pprof does not show a number that is 0. Memory grows with different entries, not with samples.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.cpu_ns = 0
        self._period_ns = 0
        self._strings: dict[str, int] = {"": 0}
        self._functions: dict[tuple[int, int], int] = {}  # name, file
        self._locations: dict[tuple[int, int], int] = {}  # function, line
        self._stacks: dict[tuple[object, ...], bytes] = {}  # frames: encoded
        self._labels: dict[tuple[object, ...], bytes] = {}  # unit, item, p, m: encoded
        self._entries: dict[tuple[bytes, bytes], list[int]] = {}  # stack and labels, encoded: samples and ns

    def add(self, sample: Sample, period_ns: int) -> None:
        """Counts a sample that stands for so much CPU time."""
        entry = self._entries.setdefault((self._stack(sample), self._label(sample)), [0, 0])
        entry[0] += 1
        entry[1] += period_ns
        self.samples += 1
        self.cpu_ns += period_ns
        self._period_ns = self._period_ns or period_ns

    def encode(self, *, wall_ns: int | None, duration_ns: int) -> bytes:
        """The file. ``wall_ns`` is when the trace began, in ns since the epoch, if that is known."""
        cpu = self._value_type("cpu", "nanoseconds")
        out = bytearray(_field(1, self._value_type("samples", "count")) + _field(1, cpu))
        for (stack, labels), values in self._entries.items():
            out += _field(2, stack + _field(2, b"".join(map(uvarint, values))) + labels)
        for (function, line), number in self._locations.items():
            out += _field(4, _field(1, number) + _field(4, _field(1, function) + _field(2, line)))
        for (name, file), number in self._functions.items():
            out += _field(5, _field(1, number) + _field(2, name) + _field(4, file))
        for text in self._strings:
            out += _field(6, text.encode())
        out += _field(9, wall_ns or 0) + _field(10, min(duration_ns, _LAST))
        out += _field(11, cpu) + _field(12, self._period_ns)
        packer = zlib.compressobj(wbits=_GZIP)
        return packer.compress(out) + packer.flush()

    def _stack(self, sample: Sample) -> bytes:
        """The locations of a stack, encoded."""
        made = self._stacks.get(sample.frames)
        if made is None:
            places = [(frame.function, frame.file, frame.line) for frame in sample.frames] or [(NO_STACK, "", 0)]
            made = _field(1, b"".join(uvarint(self._location(*place)) for place in places))
            self._stacks[sample.frames] = made
        return made

    def _location(self, name: str, file: str, line: int) -> int:
        names = self._string(name), self._string(file)
        function = self._functions.setdefault(names, len(self._functions) + 1)
        return self._locations.setdefault((function, line), len(self._locations) + 1)

    def _label(self, sample: Sample) -> bytes:
        """The labels of a sample, encoded."""
        key = sample.unit, sample.item, sample.p, sample.m
        made = self._labels.get(key)
        if made is None:
            proc, thread = (None if number == NONE else str(number) for number in (sample.p, sample.m))
            texts = {"unit": sample.unit, "item": sample.item, "proc": proc, "thread": thread}
            made = b"".join(
                _field(3, _field(1, self._string(name)) + _field(2, self._string(text)))
                for name, text in texts.items()
                if text
            )
            self._labels[key] = made
        return made

    def _value_type(self, kind: str, unit: str) -> bytes:
        return _field(1, self._string(kind)) + _field(2, self._string(unit))

    def _string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings))


def _field(number: int, value: int | bytes) -> bytes:
    """A field of a message: a number, left out if it is 0, or what has a length (text, a message, packed numbers)."""
    if isinstance(value, int):
        return uvarint(number << 3 | _VARINT) + uvarint(value) if value else b""
    return uvarint(number << 3 | _BYTES) + uvarint(len(value)) + value
