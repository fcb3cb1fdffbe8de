"""The ordering machine: the golden traces, judged by Go and by us, and what the machine says about them."""

from __future__ import annotations

import importlib.util
import io
import random
import sys
from collections.abc import Callable
from pathlib import Path

import gotool
import lz4.frame
import pytest
from golden_files import FOLDER, GOLDENS, Golden, named, one_line
from gowords import unquote_go

from pooltrace.errors import BadTraceError
from pooltrace.format import order, raw, rules, spec, text
from pooltrace.format.generation import Misreads, Tables
from pooltrace.format.order import Event, Summary
from pooltrace.format.rules import RULES
from pooltrace.format.states import Broken, State

Judge = Callable[[str | Path], Summary]
SCRIPTS = FOLDER.parent.parent / "scripts"


def by_outcome(*outcomes: str) -> pytest.MarkDecorator:
    chosen = [golden for golden in GOLDENS if golden.outcome in outcomes]
    return pytest.mark.parametrize("golden", chosen, ids=lambda golden: golden.name)


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[[Golden | bytes], Path]:
    """Writes a trace to a file."""

    def write(trace: Golden | bytes) -> Path:
        path = tmp_path / "some.trace"
        path.write_bytes(trace if isinstance(trace, bytes) else trace.data())
        return path

    return write


FileOf = Callable[[Golden | bytes], Path]


def events_of(data: bytes) -> list[Event]:
    return list(order.TraceReader(io.BytesIO(data)).events())


@by_outcome("good")
def test_good(golden: Golden, file_of: FileOf, judge: Judge) -> None:
    judge(file_of(golden))


@by_outcome("broken")
def test_broken(golden: Golden, file_of: FileOf) -> None:
    path = file_of(golden)
    with pytest.raises(BadTraceError) as caught:
        order.check(path)
    assert golden.says in str(caught.value)
    assert not isinstance(caught.value, order.MisreadError)
    assert gotool.refusal(path) is not None


@by_outcome("strict")
def test_strict(golden: Golden, file_of: FileOf) -> None:
    path = file_of(golden)
    with pytest.raises(BadTraceError) as caught:
        order.check(path)
    assert golden.says in str(caught.value)
    assert not isinstance(caught.value, order.MisreadError)
    assert gotool.refusal(path) is None


@by_outcome("misread")
def test_misread(golden: Golden, file_of: FileOf) -> None:
    path = file_of(golden)
    with pytest.raises(order.MisreadError) as caught:
        order.check(path)
    assert golden.says in str(caught.value)
    gotool.compare(path, misreads=True)
    with pytest.raises(AssertionError, match="shows wrongly"):
        gotool.compare(path)


def test_golden_files_are_those_of_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    found = importlib.util.spec_from_file_location("make_golden", SCRIPTS / "make_golden.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "make_golden", module)
    found.loader.exec_module(module)
    made = {item.name: item.text for item in module.scenarios()}
    assert made == {path.name: path.read_text() for path in FOLDER.glob("*.txt")}


def test_an_event_and_what_it_refers_to() -> None:
    events = events_of(named("good-header-1.26").data())
    create = next(event for event in events if event.name == "GoCreate")
    assert (create.gen, create.m, create.p, create.g, create.arg("new_g")) == (1, 100, 0, 1, 2)
    assert create.time == create.shown == 1013
    assert [frame.function for frame in create.stack("new_stack")] == ["main.work"]
    assert create.stack()[0] == (2, "item", "main.py", 9)
    region = next(event for event in events if event.name == "UserRegionBegin")
    assert (region.m, region.p, region.g, region.string("name")) == (200, 1, 2, "item")
    assert region.values()["name"] == "item"
    assert region.values()["task"] == 1
    start = next(event for event in events if event.name == "GoStart")
    assert (start.m, start.p, start.g) == (200, 1, -1)


def test_summary(file_of: FileOf) -> None:
    summary = order.check(file_of(named("good-header-1.26")))
    assert (summary.header, summary.generations, summary.gs, summary.tasks) == ("1.26", 2, 1, 1)
    assert summary.ms == {100, 200}
    assert summary.ps == {0, 1}
    assert summary.events == sum(summary.by_name.values()) == 15
    assert (summary.first_ns, summary.last_ns) == (1001, 3002)


def test_ties_move_by_their_number(file_of: FileOf) -> None:
    assert order.check(file_of(named("good-ties"))).max_shift == 39


def test_many_ties_are_no_misread(file_of: FileOf, judge: Judge) -> None:
    statuses = "".join(f"\tGoStatus dt=0 g={g} m=-1 gstatus=4\n" for g in range(2, 3002))
    lines = named("good-start-of-trace").text.replace("\tSTWBegin", statuses + "\tSTWBegin")
    summary = judge(file_of(b"".join(text.parse_text(lines.splitlines()))))
    assert summary.max_shift >= 3000


def test_implied_events() -> None:
    lines = """go 1.23 trace
EventBatch gen=1 m=100 time=10
\tProcStatus dt=1 p=0 pstatus=1
\tGoStatus dt=0 g=1 m=100 gstatus=2
\tGoCreateBlocked dt=1 new_g=2 new_stack=0 stack=0
\tGoSwitch dt=1 g=2 g_seq=1
\tGoSwitchDestroy dt=1 g=1 g_seq=1
EventBatch gen=1 m=-1 time=10
\tFrequency freq=1000000000
"""
    events = events_of(b"".join(text.parse_text(lines.splitlines())))
    names = [(event.name, event.spec.implied) for event in events[3:]]
    three = [("GoStart", True)]
    assert names == [
        ("GoSwitch", False),
        ("GoBlock", True),
        *three,
        ("GoSwitchDestroy", False),
        ("GoDestroy", True),
        *three,
    ]
    assert [event.time for event in events[3:]] == [13] * 3 + [14] * 3
    assert events[-1].shown == 19


def test_implied_events_as_go_reads_them(file_of: FileOf, judge: Judge) -> None:
    lines = """go 1.22 trace
EventBatch gen=1 m=100 time=10
\tProcStatus dt=1 p=0 pstatus=1
\tGoStatus dt=0 g=1 m=100 gstatus=2
\tGoSyscallBegin dt=1 p_seq=1 stack=0
\tGoDestroySyscall dt=2
EventBatch gen=1 m=-1 time=10
\tFrequency freq=1000000000
"""
    summary = judge(file_of(b"".join(text.parse_text(lines.splitlines()))))
    assert summary.by_name == {"ProcStatus": 1, "GoStatus": 1, "GoSyscallBegin": 1, "GoDestroySyscall": 1}


def test_padded_ids_are_read(file_of: FileOf, judge: Judge) -> None:
    data = named("good-header-1.26").data()
    plain = bytes([spec.BY_NAME["UserRegionBegin"].number, 1, 1, 4, 1])
    padded = bytes([spec.BY_NAME["UserRegionBegin"].number, 1, 1, 0x84, 0x80, 0x00, 0x81, 0x80, 0x00])
    header, reader = raw.read_batches(io.BytesIO(data))
    batches = [batch._replace(data=batch.data.replace(plain, padded)) for batch in reader]
    new = header.magic + b"".join(map(raw.encode_batch, batches))
    assert len(new) > len(data)
    judge(file_of(new))


def test_a_padded_event_type_is_refused(file_of: FileOf) -> None:
    path = file_of(spec.HEADERS["1.22"].magic + raw.encode_batch(raw.Batch(1, 1, 1, bytes([0x8B, 0x00, 0x00]))))
    assert gotool.refusal(path) is not None
    with pytest.raises(BadTraceError):
        order.check(path)


def test_lz4(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "some.trace.lz4"
    path.write_bytes(lz4.frame.compress(named("good-header-1.26").data()))
    assert judge(path).generations == 2


# --- cut and damaged files ----------------------------------------------------------------------


@pytest.mark.parametrize("header", list(spec.HEADERS))
def test_cut_at_every_byte(header: str) -> None:
    data = named(f"good-header-{header}").data()
    whole = len(events_of(data))
    borders = {batch.offset for batch in raw.read_batches(io.BytesIO(data))[1]}
    for size in range(len(data)):
        events: list[Event] = []
        try:
            for event in order.TraceReader(io.BytesIO(data[:size])).events():
                events.append(event)
        except BadTraceError as error:
            one_line(error)
            first = [event for event in events if event.gen == 1]
            assert len(first) in (0, whole - 2) or (header != "1.26" and size in borders)
        else:
            # Nothing is missing as far as can be known: at the ends of generations, before 1.26 of batches.
            assert size in borders


def test_cut_says_what_is_whole(file_of: FileOf) -> None:
    data = named("good-header-1.26").data()
    with pytest.raises(raw.CutTraceError) as caught:
        order.check(file_of(data[:-20]))
    assert "cut off in the middle of the batch of generation 2" in str(caught.value)
    assert str(caught.value).endswith("whole before that: 1 generation with 13 events")


def verdicts(path: Path) -> tuple[bool, bool]:
    """Whether we accept the file, and whether Go does."""
    try:
        order.check(path)
        ours = True
    except order.MisreadError:
        ours = True
    except BadTraceError:
        ours = False
    return ours, gotool.refusal(path) is None


def test_damaged_files_are_judged_as_go_does(file_of: FileOf) -> None:
    """What Go refuses we refuse; what it accepts we accept, but for the cases that the goldens call strict."""
    gotool.require_go()
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    goldens = [golden.data() for golden in GOLDENS if golden.outcome == "good" and len(golden.data()) > 100]
    for _ in range(60):
        data = bytearray(chance.choice(goldens))
        for _ in range(chance.choice((1, 1, 2))):
            data[chance.randrange(16, len(data))] = chance.choice((0, 1, 2, 3, chance.randrange(256)))
        ours, go = verdicts(file_of(bytes(data)))
        assert not ours or go, data.hex()


# --- the rules, one at a time -------------------------------------------------------------------


def state_of(gen: int = 1) -> State:
    state = State(Misreads())
    state.begin(Tables(gen))
    return state


def step(state: State, m: int, name: str, *args: int) -> bool:
    """Whether the event is done; False: not yet."""
    return rules.advance(state, RULES[name], state.m(m), args) is not None


def test_three_outcomes() -> None:
    state = state_of()
    assert step(state, 7, "ProcStatus", 0, spec.ProcStatus.IDLE)
    assert not step(state, 7, "ProcStart", 0, 2)
    assert step(state, 7, "ProcStart", 0, 1)
    assert not step(state, 7, "GoStart", 5, 1)
    assert step(state, 7, "GoStatus", 5, 2**64 - 1, spec.GoStatus.RUNNABLE)
    assert step(state, 7, "GoStart", 5, 1)
    with pytest.raises(Broken, match="runs G 5 already"):
        step(state, 7, "GoCreateSyscall", 6)


def test_no_m_keeps_nothing() -> None:
    state = state_of()
    assert step(state, -1, "ProcStatus", 0, spec.ProcStatus.RUNNING)
    assert step(state, -1, "GoStatus", 5, 2**64 - 1, spec.GoStatus.RUNNING)
    assert state.m(-1).p == state.m(-1).g == -1
    assert -1 not in state.ms


def test_a_g_that_is_seen_twice_costs_a_bit() -> None:
    state = state_of()
    assert step(state, 7, "ProcStatus", 0, spec.ProcStatus.RUNNING)
    for g in range(1, 100_001):
        assert step(state, 7, "GoCreate", g, 0, 0)
        del state.gs[g]
    assert state.misreads.count == 0
    assert state.created == 100_000
    assert step(state, 7, "GoCreate", 77, 0, 0)
    assert state.misreads.count == 1


# --- the judge itself ---------------------------------------------------------------------------


def test_the_judge_sees_a_moved_time(file_of: FileOf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(named("good-header-1.26"))
    go = gotool.parsed(path)
    go[9] = go[9]._replace(time=go[9].time + 1)
    monkeypatch.setattr(gotool, "iter_parsed", lambda path: iter(go))
    with pytest.raises(AssertionError, match=r"event 9: .*: \+1 ns"):
        gotool.compare(path)


def test_the_judge_sees_a_missing_and_a_swapped_event(file_of: FileOf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(named("good-header-1.26"))
    go = gotool.parsed(path)
    monkeypatch.setattr(gotool, "iter_parsed", lambda path: iter(go[:-1]))
    with pytest.raises(AssertionError, match="Go has no such event"):
        gotool.compare(path)
    monkeypatch.setattr(gotool, "iter_parsed", lambda path: iter([*go[:5], go[6], go[5], *go[7:]]))
    with pytest.raises(AssertionError, match="event 5"):
        gotool.compare(path)


def test_the_judge_sees_other_contents(file_of: FileOf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(named("good-header-1.26"))
    go = gotool.parsed(path)
    at = next(i for i, event in enumerate(go) if event.kind == "RegionBegin")
    for change in ({"rest": go[at].rest.replace("item", "other")}, {"stacks": ""}, {"p": 9}):
        changed = [*go[:at], go[at]._replace(**change), *go[at + 1 :]]
        monkeypatch.setattr(gotool, "iter_parsed", lambda path, changed=changed: iter(changed))
        with pytest.raises(AssertionError, match=f"event {at}: ours"):
            gotool.compare(path)


def test_the_judge_lets_ties_come_in_another_order(file_of: FileOf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(named("good-ties"))
    go = gotool.parsed(path)
    times = [event.time for event in go]
    swapped = [go[0], *(event._replace(time=0) for event in [*go[3:5], *go[1:3], *go[5:]])]
    swapped = [event._replace(time=time) for event, time in zip(swapped, times)]
    monkeypatch.setattr(gotool, "iter_parsed", lambda path: iter(swapped))
    assert gotool.compare(path) == len(go)


@pytest.mark.parametrize(
    ("printed", "data"),
    [
        ('"plain"', b"plain"),
        (r'"a\"b\\c\n\t\x00\xff"', b'a"b\\c\n\t\x00\xff'),
        ('"\\u2028\\U0001f600\u00e9"', "\u2028\U0001f600\u00e9".encode()),
    ],
)
def test_unquote_go(printed: str, data: bytes) -> None:
    assert unquote_go(printed) == data


# --- made-up pools ------------------------------------------------------------------------------


class RandomPool:
    """A parent and many workers that do random units, with clocks so coarse that most events share their time."""

    def __init__(self, chance: random.Random, workers: int, tick: int) -> None:
        self.chance = chance
        self.tick = tick
        self.now = 10_000
        self.next_g = 2
        self.queued: list[int] = []
        self.running: dict[int, int | None] = {1000 + i: None for i in range(workers)}
        self.p_seq = dict.fromkeys(self.running, 0)
        self.batches: dict[int, list[tuple[int, str]]] = {}
        self.known: set[int] = set()
        self.written = 0

    def event(self, m: int, line: str) -> None:
        self.now += self.chance.randrange(400)
        self.batches.setdefault(m, []).append((self.now // self.tick * self.tick, line))
        self.written += 1

    def step(self) -> None:
        m = self.chance.choice([100, *self.running])
        if m == 100:
            self.event(100, f"GoCreate dt=* new_g={self.next_g} new_stack=1 stack=2")
            self.queued.append(self.next_g)
            self.known.add(self.next_g)
            self.next_g += 1
        elif (g := self.running[m]) is not None:
            self.event(m, "GoDestroy dt=*")
            self.event(m, "ProcStop dt=*")
            self.running[m] = None
        elif self.queued:
            g = self.queued.pop(0)
            if g not in self.known:
                self.event(m, f"GoStatus dt=* g={g} m=-1 gstatus=1")
            self.p_seq[m] += 1
            self.event(m, f"ProcStart dt=* p={m} p_seq={self.p_seq[m]}")
            self.event(m, f"GoStart dt=* g={g} g_seq=1")
            self.running[m] = g

    def generation(self, gen: int, steps: int) -> list[str]:
        """Its lines of text; begins with the statuses of what runs."""
        self.batches = {}
        self.known = set()
        self.event(100, "ProcStatus dt=* p=0 pstatus=1")
        self.event(100, "GoStatus dt=* g=1 m=100 gstatus=2")
        for m, g in self.running.items():
            self.event(m, f"ProcStatus dt=* p={m} pstatus={2 if g is None else 1}")
            self.p_seq[m] = 0
            if g is not None:
                self.event(m, f"GoStatus dt=* g={g} m={m} gstatus=2")
        for _ in range(steps):
            self.step()
        begin = min(events[0][0] for events in self.batches.values())
        lines = [f"EventBatch gen={gen} m=-1 time={begin}", "\tSync", "\tFrequency freq=1000000000"]
        lines.append("\tClockSnapshot dt=0 mono=1 sec=1 nsec=1")
        for m, events in self.batches.items():
            lines.append(f"EventBatch gen={gen} m={m} time={begin}")
            last = begin
            for time, line in events:
                lines.append("\t" + line.replace("*", str(time - last)))
                last = time
        tables = [f"EventBatch gen={gen} m=-1 time={begin}", "\tStacks", "\tStack id=1", "\tStack id=2"]
        return [*lines, *tables, "EndOfGeneration"]


@pytest.mark.parametrize("workers", [1, 3, 11, 40])
def test_random_pools(workers: int, file_of: FileOf, judge: Judge) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for tick in (1, 1000):
        pool = RandomPool(chance, workers, tick)
        lines = ["go 1.26 trace"]
        for gen in range(1, 4):
            lines += pool.generation(gen, 400)
            pool.now += 2 * tick
        summary = judge(file_of(b"".join(text.parse_text(lines))))
        assert (summary.events, summary.generations) == (pool.written, 3)
