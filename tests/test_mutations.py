"""Broken traces: whatever is changed in a good one, Go's parser and ours accept both or refuse both, and read the same.

Where ours is stricter, the reason is in STRICTER. Seeds: POOLTRACE_SEED (printed); how many: POOLTRACE_MUTATIONS.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gotool
import hypothesis
import pytest
from golden_files import GOLDENS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobs import note
from pieces import SEED

import pooltrace
from pooltrace.errors import BadTraceError
from pooltrace.format import order, raw
from pooltrace.format.raw import Batch, RawEvent
from pooltrace.format.spec import HEADERS, Header

EXAMPLES = int(os.environ.get("POOLTRACE_MUTATIONS", "250"))
LIMIT = 300.0 + 2 * EXAMPLES  # seconds, see conftest

STRICTER = {
    # generation.py: what the header does not know, tools of that age refuse
    r"is no event of a |has a \w+ in its sync batch|has no place in a batch": "an event newer than the header",
    r"has a frequency of 0": "a frequency of 0: every time would be infinite",
    r"experimental batch": "experimental batches",
    r"^cut off behind the header: no generation; ": "a 1.26 file without any generation",
    r"^cut off in generation \d+, before its EndOfGeneration": "a 1.26 file that ends in a generation of tables alone",
    r"^cut off in generation \d+: no event so far": "the same before 1.26: a kill leaves a file like that",
    r" in (String|Stack|CPUSample|Frequency|ClockSnapshot): a number does not end": "a batch of a table, or of the "
    "clock, that ends before an argument: Go takes that for the end of the file, and shows nothing of the generation",
    r"a frame, is not in the table": "a frame without strings that shares its PC with one before: Go never looks at it",
    r"do(es)? not fit into 63 bits": "times over 63 bits, which are negative in Go",
    # actions.py: where Go would panic later, or take a number for another
    r"there is no status \d+": "a status of 0 or over 255, which Go takes for none or cuts to a byte",
    r"stands for none": "a P or G with the number that stands for none",
    r"Go's reader would panic": "an STW range whose name is not in the generation that ends it",
}
"""What ours refuses although Go does not, by our complaint: why."""


# --- mutations ------------------------------------------------------------------------------------


@dataclass
class Taken:
    """A trace, taken apart."""

    header: Header
    batches: list[tuple[Batch, list[RawEvent]]]

    @classmethod
    def apart(cls, data: bytes) -> Taken:
        header, batches = raw.read_batches(io.BytesIO(data))
        return cls(header, [(b, [] if b.end else list(raw.read_events(b, header))) for b in batches])

    def together(self) -> bytes:
        out = [self.header.magic]
        for batch, events in self.batches:
            out.append(raw.encode_batch(batch._replace(data=raw.encode_events(events))))
        return b"".join(out)


Numbers = tuple[int, int, int]  # where, where in there, what to: taken modulo what there is
_ODD = (0, 1, 2, 3, 5, 127, 128, 255, 256, 300, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def _value(old: int, what: int) -> int:
    near = (old + 1, old - 1, old * 2, old // 2)
    choice = what % (len(near) + len(_ODD))
    return (near[choice] if choice < len(near) else _ODD[choice - len(near)]) % (1 << 64)


def drop_batch(taken: Taken, at: Numbers) -> None:
    del taken.batches[at[0] % len(taken.batches)]


def repeat_batch(taken: Taken, at: Numbers) -> None:
    taken.batches.insert(at[1] % len(taken.batches), taken.batches[at[0] % len(taken.batches)])


def swap_batches(taken: Taken, at: Numbers) -> None:
    i, k = at[0] % len(taken.batches), at[1] % len(taken.batches)
    taken.batches[i], taken.batches[k] = taken.batches[k], taken.batches[i]


def change_batch(taken: Taken, at: Numbers) -> None:
    i = at[0] % len(taken.batches)
    batch, events = taken.batches[i]
    name = ("gen", "m", "time")[at[1] % 3]
    value = _value(getattr(batch, name), at[2])
    taken.batches[i] = batch._replace(**{name: raw.signed(value) if name == "m" else value}), events


def _events(taken: Taken, at: Numbers) -> tuple[list[RawEvent], int]:
    every = [(events, i) for _, events in taken.batches for i in range(len(events))]
    return every[at[0] % len(every)]


def drop_event(taken: Taken, at: Numbers) -> None:
    events, i = _events(taken, at)
    del events[i]


def repeat_event(taken: Taken, at: Numbers) -> None:
    events, i = _events(taken, at)
    events.insert(i, events[i])


def swap_events(taken: Taken, at: Numbers) -> None:
    events, i = _events(taken, at)
    k = (i + 1) % len(events)
    events[i], events[k] = events[k], events[i]


def move_event(taken: Taken, at: Numbers) -> None:
    events, i = _events(taken, at)
    event = events.pop(i)
    others = taken.batches[at[1] % len(taken.batches)][1]
    others.insert(at[2] % (len(others) + 1), event)


def change_event(taken: Taken, at: Numbers) -> None:
    events, i = _events(taken, at)
    event = events[i]
    if not event.args:
        return
    k = at[1] % len(event.args)
    args = (*event.args[:k], _value(event.args[k], at[2]), *event.args[k + 1 :])
    events[i] = event._replace(args=args)


def change_header(taken: Taken, at: Numbers) -> None:
    taken.header = list(HEADERS.values())[at[0] % len(HEADERS)]


def change_byte(data: bytes, at: Numbers) -> bytes:
    i = at[0] % len(data)
    return data[:i] + bytes([at[2] % 256]) + data[i + 1 :]


def drop_bytes(data: bytes, at: Numbers) -> bytes:
    i = at[0] % len(data)
    return data[:i] + data[i + 1 + at[1] % 20 :]


def repeat_bytes(data: bytes, at: Numbers) -> bytes:
    i = at[0] % len(data)
    return data[: i + 1 + at[1] % 20] + data[i:]


def pad_number(data: bytes, at: Numbers) -> bytes:
    """A number in a longer form, if the byte is one."""
    i = at[0] % len(data)
    return data[:i] + bytes([data[i] | 0x80]) + b"\x80" * (at[1] % 10) + bytes([at[2] % 3]) + data[i + 1 :]


def cut_off(data: bytes, at: Numbers) -> bytes:
    return data[: at[0] % len(data)]


ON_PARTS: dict[str, Callable[[Taken, Numbers], None]] = {
    change.__name__: change
    for change in (
        change_event, drop_batch, repeat_batch, swap_batches, change_batch, drop_event, repeat_event, swap_events,
        move_event, change_header,
    )
}  # fmt: skip
ON_BYTES: dict[str, Callable[[bytes, Numbers], bytes]] = {
    change.__name__: change for change in (change_byte, drop_bytes, repeat_bytes, pad_number, cut_off)
}

_number = st.integers(0, (1 << 20) - 1)
Changes = list[tuple[str, Numbers]]
_numbers = st.tuples(_number, _number, _number)


def mutate(data: bytes, parts: Changes, rest: Changes) -> bytes:
    taken = Taken.apart(data)
    for name, at in parts:
        if any(events for _, events in taken.batches):
            ON_PARTS[name](taken, at)
    data = taken.together()
    for name, at in rest:
        data = ON_BYTES[name](data, at) or data[:1]
    return data


# --- what both say --------------------------------------------------------------------------------


def ours(path: Path) -> BadTraceError | None:
    try:
        order.check(path)
    except BadTraceError as error:
        return error
    return None


def begins_with_events(path: Path) -> bool:
    """In the first generation statuses may bring what is new. Go's is the first that has an event, ours the file's."""
    with raw.open_trace(path) as file, contextlib.suppress(BadTraceError):
        _, _, events = next(order.TraceReader(file).generations())
        return next(events, None) is not None
    return True


def agree(path: Path) -> str:
    """Asserts that both readers say the same; returns what: good, misread, strict or refused."""
    mine, gos = ours(path), gotool.refusal(path)
    if mine is None:
        assert gos is None, f"only Go refuses it: {gos}"
        gotool.compare(path)
        return "good"
    if isinstance(mine, order.MisreadError):
        assert gos is None, f"Go refuses what ours calls a misread ({mine}): {gos}"
        gotool.compare(path, misreads=True)
        return "misread"
    if gos is None:
        explained = any(re.search(pattern, str(mine)) for pattern in STRICTER) or not begins_with_events(path)
        assert explained, f"only ours refuses it: {mine}"
        return "strict"
    return "refused"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Traces of a real pool, one for each header, with more than one generation."""
    found = {}
    for header in HEADERS:
        path = tmp_path_factory.mktemp("real") / "t.trace"
        with pooltrace.trace(path, header=header, period=0.01), pooltrace.StdPool(2) as pool:
            for _ in range(3):
                pool.map(note, range(4), chunksize=1)
        found[header] = path.read_bytes()
    return found


print(f"POOLTRACE_SEED={SEED}")
GOOD = {golden.name: golden.data() for golden in GOLDENS if golden.outcome == "good" and len(golden.data()) > 60}
CHECKED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PARTS = st.lists(st.tuples(st.sampled_from([*ON_PARTS, *3 * ["change_event"]]), _numbers), max_size=3)
BYTES = st.lists(st.tuples(st.sampled_from(list(ON_BYTES)), _numbers), max_size=2)


@hypothesis.seed(SEED)
@CHECKED
@given(name=st.sampled_from(sorted(GOOD)), parts=PARTS, rest=BYTES)
def test_mutated_goldens(tmp_path: Path, name: str, parts: Changes, rest: Changes) -> None:
    gotool.require_go()
    path = tmp_path / "mutated.trace"
    path.write_bytes(mutate(GOOD[name], parts, rest))
    agree(path)


@hypothesis.seed(SEED)
@CHECKED
@given(header=st.sampled_from(sorted(HEADERS)), parts=PARTS, rest=BYTES)
def test_mutated_traces_of_a_pool(
    tmp_path: Path, real: dict[str, bytes], header: str, parts: Changes, rest: Changes
) -> None:
    gotool.require_go()
    path = tmp_path / "mutated.trace"
    path.write_bytes(mutate(real[header], parts, rest))
    agree(path)
