"""Writes the golden traces: ``python scripts/make_golden.py`` fills tests/golden, one scenario a file, in text form.

The head of each file says what it guards and what has to come of it: ``good`` (Go and we accept it, and read the same),
``broken`` (both refuse it), ``strict`` (we refuse it, Go does not), ``misread`` (both accept it, but Go shows something
else, which we have to notice).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from golden_parts import CREATE, REGION, START, STRINGS, Lines, alone, batch, generation, one, parent, worker

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"


class Scenario(NamedTuple):
    """One file: its name, what it guards, the outcome, what our complaint contains, and its text."""

    name: str
    guards: str
    outcome: str
    says: str
    text: str


_SCENARIOS: list[Scenario] = []


def scenario(
    name: str, guards: str, lines: Lines, *, header: str = "1.26", outcome: str = "good", says: str = ""
) -> None:
    """Adds one file."""
    head = [f"# guards: {guards}", f"# outcome: {outcome}", *([f"# says: {says}"] if says else [])]
    text = "\n".join([*head, f"go {header} trace", *lines]) + "\n"
    _SCENARIOS.append(Scenario(f"{outcome}-{name}.txt", guards, outcome, says, text))


def add_good() -> None:
    """What has to be accepted, and read alike."""
    unit = [
        batch(
            100,
            1000,
            *parent(),
            "UserTaskBegin dt=1 task=1 parent=0 name=3 stack=1",
            CREATE,
            "UserTaskEnd dt=500 task=1 stack=1",
        ),
        batch(
            200,
            1020,
            *worker(),
            START,
            *REGION,
            "UserLog dt=1 task=1 key=7 value=8 stack=0",
            "GoDestroy dt=1",
            "ProcStop dt=1",
        ),
    ]
    for header in ("1.22", "1.23", "1.25", "1.26"):
        guards = f"the {header} header: its sync batch, two generations, how they end, and one unit of work"
        after = generation(batch(100, 3000, *parent()), header=header, gen=2, time=3000)
        scenario(f"header-{header}", guards, [*generation(*unit, header=header), *after], header=header)
    first = one(batch(100, 1000, *parent(), CREATE))
    second = generation(
        batch(100, 2000, *parent(), "GoStatusStack dt=1 g=2 m=-1 gstatus=1 stack=1"),
        batch(200, 2010, *worker(), START, *REGION, "GoDestroy dt=1"),
        gen=2, time=2000,
    )  # fmt: skip
    scenario(
        "queued-over-border",
        "a unit created in one generation starts in the next, behind its status",
        [*first, *second],
    )
    third = generation(batch(100, 3000, *parent()), batch(200, 3000, *worker(), START), gen=3, time=3000)
    idle = generation(batch(100, 2000, *parent()), gen=2, time=2000)
    third.insert(third.index("EventBatch gen=3 m=200 time=3000") + 3, "\tGoStatus dt=1 g=2 m=-1 gstatus=1")
    scenario("queued-over-two-borders", "a unit that waits is not repeated in each generation", [*first, *idle, *third])
    running = generation(
        batch(100, 2000, *parent()),
        batch(
            200, 2000,
            "ProcStatus dt=0 p=1 pstatus=1", "GoStatus dt=0 g=2 m=200 gstatus=2", REGION[1], "GoDestroy dt=1",
        ),
        gen=2, time=2000,
    )  # fmt: skip
    scenario(
        "running-over-border",
        "a unit that runs across the border: statuses first, its region goes on, seconds have equal times",
        [*one(batch(100, 1000, *parent(), CREATE), batch(200, 1020, *worker(), START, REGION[0])), *running],
    )


def add_good_waits() -> None:
    """What has to be accepted, and read alike: threads that wait, come and go."""
    block = "GoBlock dt=5 reason=5 stack=1"
    wake = "GoUnblock dt=1 g=1 g_seq=1 stack=2"
    resume = "GoStart dt=1 g=1 g_seq=2"
    waker = [
        *worker(),
        "GoCreateSyscall dt=1 new_g=3",
        "GoSyscallEndBlocked dt=1",
        "GoStart dt=1 g=3 g_seq=1",
        wake,
        "GoDestroy dt=1",
    ]
    scenario(
        "block-unblock",
        "a wait: blocked, woken by another M, started again, numbered by one count of the G",
        one(batch(100, 1000, *parent(), block, "GoStart dt=300 g=1 g_seq=2"), batch(200, 1050, *waker)),
    )
    scenario(
        "block-over-border",
        "the status of a G that waits stands in a batch of no M",
        [
            *one(batch(100, 1000, *parent(), block)),
            *generation(
                batch(-1, 2000, "GoStatusStack dt=0 g=1 m=-1 gstatus=4 stack=1"),
                batch(100, 2000, "ProcStatus dt=0 p=0 pstatus=1", wake, resume),
                gen=2, time=2000,
            ),
        ],
    )  # fmt: skip
    scenario(
        "thread-comes-and-goes",
        "a thread enters by GoCreateSyscall, and leaves; then again with a new G on its own P",
        one(
            batch(100, 1000, *parent()),
            batch(
                300, 1100,
                "GoCreateSyscall dt=1 new_g=7", "GoSyscallEndBlocked dt=0", "ProcStatus dt=0 p=3 pstatus=2",
                "ProcStart dt=0 p=3 p_seq=1", "GoStart dt=0 g=7 g_seq=1", "GoDestroy dt=9", "ProcStop dt=0",
                "GoCreateSyscall dt=1 new_g=8", "GoSyscallEndBlocked dt=0", "ProcStart dt=0 p=3 p_seq=2",
                "GoStart dt=0 g=8 g_seq=1", "GoDestroy dt=9", "ProcStop dt=0",
            ),
        ),
    )  # fmt: skip
    scenario(
        "syscall-wait",
        "a wait in the kernel itself: syscall, P given up, taken again",
        alone(
            "GoSyscallBegin dt=1 p_seq=1 stack=1", "ProcStop dt=0", "GoSyscallEndBlocked dt=900",
            "ProcStart dt=0 p=0 p_seq=2", "GoStart dt=0 g=1 g_seq=1",
        ),
    )  # fmt: skip
    scenario(
        "slot-refilled",
        "two processes follow each other in one slot, counted by the P",
        one(
            batch(100, 1000, *parent()),
            batch(200, 1100, *worker(), "ProcStop dt=5"),
            batch(201, 1200, "ProcStart dt=1 p=1 p_seq=2", "ProcStop dt=5"),
        ),
    )


def add_good_more() -> None:
    """What has to be accepted, and read alike: ranges, samples, times, numbers."""
    many = [batch(m, 1000, f"ProcStatus dt=5 p={m} pstatus=1", "HeapAlloc dt=0 bytes=1") for m in range(100, 120)]
    scenario("ties", "events of 20 Ms at the same time: each is moved by some ns, which is normal", one(*many))
    scenario(
        "collector-pause",
        "a pause of the collector that is open at the border, and its end",
        [
            *alone("GCMarkAssistBegin dt=1 stack=1"),
            *generation(
                batch(100, 2000, *parent(), "GCMarkAssistActive dt=0 g=1", "GCMarkAssistEnd dt=5"), gen=2, time=2000
            ),
        ],
    )
    scenario(
        "start-of-trace",
        "the STW range, metrics",
        alone(
            "STWBegin dt=1 kind=6 stack=1",
            "ProcsChange dt=0 procs=2 stack=0",
            "HeapGoal dt=0 bytes=1000",
            "STWEnd dt=3",
        ),
    )
    samples = ["CPUSamples", *(f"CPUSample time={1000 + t} m=100 p=0 g={t % 2} stack=2" for t in (7, 3, 50))]
    scenario(
        "samples",
        "CPU samples come in by their time, also without a G",
        one(batch(100, 1000, *parent(), "HeapAlloc dt=20 bytes=5"), batch(-1, 1000, *samples)),
    )
    task = "UserTaskBegin dt=1 task=1 parent=0 name=3 stack=1"
    over = generation(
        batch(100, 2000, *parent(), "UserTaskEnd dt=1 task=1 stack=0"), gen=2, time=2000, strings={}, stacks={}
    )
    scenario("task-over-border", "a job that ends in a generation that does not have its name", [*alone(task), *over])
    scenario(
        "wrap",
        "generation numbers wrap to 4 (1.26 only)",
        [*alone(gen=-1), *generation(batch(100, 2000, *parent()), gen=4, time=2000)],
    )
    late = (1 << 53) + 2**20
    scenario(
        "long-uptime",
        "Go rounds times over 2**53 ns (104 days) to 2 ns",
        one(batch(100, late + 1, *parent(), *REGION), time=late),
    )
    scenario("other-frequency", "times in units of 64 ns", alone(*REGION, freq=15_625_000))


def add_good_unusual() -> None:
    """What has to be accepted though no writer does it: generations that say less of their Ms and Gs, or later."""
    task = "UserTaskBegin dt=1 task=1 parent=0 name=3 stack=1"
    unusual = ("HeapAlloc dt=1 bytes=5", "UserTaskEnd dt=1 task=1 stack=0", *parent())
    scenario(
        "statuses-late",
        "a generation that says what its M does after its M has done something: no writer's, but readers allow it",
        [*alone(task), *generation(batch(100, 2000, *unusual), gen=2, time=2000)],
    )
    wait = one(batch(100, 1000, *parent(), "GoBlock dt=5 reason=5 stack=1"))
    woken = [
        batch(-1, 2000, "GoStatusStack dt=1 g=1 m=-1 gstatus=4 stack=1"),
        batch(
            100, 2000, "ProcStatus dt=0 p=0 pstatus=1", "GoUnblock dt=1 g=1 g_seq=1 stack=2", "GoStart dt=1 g=1 g_seq=2"
        ),
    ]
    scenario(
        "status-as-late-as-its-end",
        "the status of a G that waits, at the time at which it is woken: nobody may know of it before",
        [*wait, *generation(*woken, gen=2, time=2000)],
    )
    created = [batch(100, 1000, *parent(), CREATE)]
    started = [
        batch(100, 2000, *parent(), "GoStatusStack dt=10 g=2 m=-1 gstatus=1 stack=1"),
        batch(200, 2005, *worker(), "GoStart dt=7 g=2 g_seq=1"),
    ]
    fast = {"freq": 2_000_000_000}
    scenario(
        "status-as-late-in-ns",
        "the same of a unit that starts, by a clock of 2 GHz: in its units it is later, in ns, step by step, it is not",
        [*one(*created, **fast), *generation(*started, gen=2, time=2000, **fast)],
    )


def add_good_unusual_ids() -> None:
    """The same of Ps, Gs and tables: what a head makes up must not be what is there."""
    task = "UserTaskBegin dt=1 task=1 parent=0 name=3 stack=1"
    scenario(
        "p-that-comes-later",
        "a P that is not known when a task is over a border: a head takes none that comes later for it",
        [
            *alone(task),
            *generation(gen=2, time=2000),
            *generation(batch(200, 3000, "ProcStatus dt=1 p=1 pstatus=1"), gen=3, time=3000),
        ],
    )
    scenario(
        "high-p-that-comes-later",
        "the same of one with a high number: a head draws one",
        [
            *alone(task),
            *generation(gen=2, time=2000),
            *generation(batch(200, 3000, f"ProcStatus dt=1 p={1 << 62} pstatus=1"), gen=3, time=3000),
        ],
    )
    scenario(
        "high-g",
        "a G with a number that a head would take for its own",
        [
            *one(batch(100, 1000, *parent(g=1 << 62), task)),
            *generation(batch(100, 2000, *parent(g=1 << 62)), gen=2, time=2000),
        ],
    )
    scenario(
        "high-g-that-comes-later",
        "the same of one that is created when the head is long over: a head draws one",
        [
            *alone(task),
            *generation(batch(100, 2000, *parent()), gen=2, time=2000),
            *generation(
                batch(100, 3000, *parent(), f"GoCreate dt=1 new_g={1 << 62} new_stack=1 stack=0"), gen=3, time=3000
            ),
        ],
    )
    scenario(
        "syscall-untold",
        "a G is in a syscall over two borders, and no generation tells of it again: a head does",
        [
            *alone("GoSyscallBegin dt=1 p_seq=1 stack=0"),
            *generation(gen=2, time=2000),
            *generation(batch(100, 3000, "GoSyscallEnd dt=1"), gen=3, time=3000),
        ],
    )
    clock = generation(gen=2, time=0, table_time=3000, freq=4)
    events = batch(100, 3000, *parent(), gen=2)
    at_0 = "a generation whose clock is in a batch at 0, which is no time to readers: its head counts all the same"
    scenario("clock-at-0", at_0, [*alone(), *clock[:4], *events, *clock[4:]])
    scenario(
        "clock-at-0-of-an-m",
        "the same, if it says that it is an M's",
        [*alone(), clock[0].replace("m=-1", "m=300"), *clock[1:4], *events, *clock[4:]],
    )
    scenario("clock-at-0-behind", "the same, behind the events", [*alone(), *events, *clock])
    scenario(
        "last-stack-id",
        "the last id that there can be is in the stack table: a head takes one that is free",
        [
            *alone(task),
            *generation(batch(100, 2000, *parent()), gen=2, time=2000, stacks={-1: [(2, 4, 2, 9)]}),
        ],
    )


def add_good_unusual_states() -> None:
    """States that no writer makes, and readers allow: a head has to know them."""
    task = "UserTaskBegin dt=1 task=1 parent=0 name=3 stack=1"
    scenario(
        "p-in-syscall",
        "an M whose G runs on a P that is in a syscall: no writer's, but readers allow it",
        [
            *one(batch(100, 1000, "ProcStatus dt=1 p=5 pstatus=3", "GoStatus dt=1 g=1 m=100 gstatus=2", task)),
            *generation(gen=2, time=2000),
            *generation(batch(100, 3000, "GoStatus dt=1 g=1 m=100 gstatus=2"), gen=3, time=3000),
        ],
    )
    texts = {**STRINGS, 4: "it\\xffm"}
    scenario(
        "name-not-utf8",
        "a region over a border whose name is no UTF-8: names are bytes",
        [
            *alone(REGION[0], strings=texts),
            *generation(batch(100, 2000, *parent(), REGION[1]), gen=2, time=2000, strings=texts),
        ],
    )
    scenario(
        "statuses-missing",
        "generations that do not say what their M does, or nothing of it at all: no writer's, but readers allow it",
        [
            *alone(task),
            *generation(
                batch(100, 2000, "ProcStatus dt=1 p=0 pstatus=1", "UserTaskEnd dt=1 task=1 stack=0"), gen=2, time=2000
            ),
            *generation(gen=3, time=3000),
            *generation(batch(100, 4000, *parent(), CREATE), gen=4, time=4000),
        ],
    )
    scenario(
        "status-behind-a-later-event",
        "a status that comes, by its time, before what waits for it, but stands behind an event of its M that is later",
        [
            *one(batch(100, 1000, *parent(), CREATE)),
            *generation(
                batch(100, 2000, *parent(), "HeapAlloc dt=50 bytes=5"),
                batch(100, 2000, "GoStatusStack dt=3 g=2 m=-1 gstatus=1 stack=1"),
                batch(200, 2010, *worker(), START),
                gen=2,
                time=2000,
            ),
        ],
    )


def broken(name: str, guards: str, says: str, lines: Lines, header: str = "1.26") -> None:
    """A file that Go refuses, and we."""
    scenario(name, guards, lines, header=header, outcome="broken", says=says)


def add_broken_order() -> None:
    """Events that cannot happen."""
    first = one(batch(100, 1000, *parent(), CREATE))
    second = [batch(100, 2000, *parent()), batch(200, 2010, *worker(), START)]
    broken(
        "no-status",
        "a unit of an earlier generation starts without a status",
        "no status in this generation",
        [*first, *generation(*second, gen=2, time=2000)],
    )
    broken(
        "new-status",
        "a status names a G that nobody created",
        "G 5 is new",
        [*alone(), *generation(batch(100, 2000, *parent(), "GoStatus dt=1 g=5 m=-1 gstatus=1"), gen=2, time=2000)],
    )
    broken(
        "other-status",
        "a status that is not the state",
        "G 2 is runnable, not waiting",
        [*first, *generation(batch(100, 2000, *parent(), "GoStatus dt=1 g=2 m=-1 gstatus=4"), gen=2, time=2000)],
    )
    broken(
        "wrong-seq",
        "a number of a G's count is left out",
        "3 does not follow",
        one(batch(100, 1000, *parent(), CREATE), batch(200, 1020, *worker(), "GoStart dt=1 g=2 g_seq=3")),
    )
    broken(
        "unknown-g",
        "a G starts that is never created",
        "G 9 does not exist",
        alone("GoStop dt=1 reason=0 stack=0", "GoStart dt=1 g=9 g_seq=1"),
    )
    broken(
        "unblock-running",
        "a G is woken that does not wait",
        "G 1 is running, not waiting",
        alone("GoUnblock dt=1 g=1 g_seq=1 stack=0"),
    )
    broken("two-gs", "an M that runs a G starts another", "M runs G 1 already", alone(CREATE, START))
    broken("no-g", "an annotation without a G", "M runs no G", alone("GoDestroy dt=1", REGION[0]))
    broken("no-p", "a metric without a P", "M has no P", one(batch(100, 1000, "HeapAlloc dt=1 bytes=5")))
    broken(
        "p-taken",
        "two workers in one slot",
        "P 1 is running, not idle",
        one(batch(200, 1000, *worker()), batch(201, 1100, "ProcStart dt=1 p=1 p_seq=2")),
    )


def add_broken_ranges() -> None:
    """Regions, jobs and ranges that do not fit."""
    broken(
        "region-end",
        "a region ends that is not the innermost",
        "innermost region is 'item'",
        alone(REGION[0], "UserRegionEnd dt=1 task=1 name=3 stack=0"),
    )
    broken("g-alive-twice", "a G is created that exists", "G 2 exists already", alone(CREATE, CREATE))
    broken(
        "task-twice",
        "a job begins that is under way",
        "task 1 is under way",
        alone(*["UserTaskBegin dt=1 task=1 parent=0 name=3 stack=0"] * 2),
    )
    broken(
        "range-twice",
        "a collector pause begins inside another",
        "under way already",
        alone(*["GCMarkAssistBegin dt=1 stack=0"] * 2),
    )
    broken("range-end", "a collector pause ends that never began", "no such range", alone("GCMarkAssistEnd dt=1"))
    broken(
        "stw-over-border",
        "an STW range that goes on in a generation that lacks its name (Go panics)",
        "string 6 of an earlier",
        [
            *alone("STWBegin dt=1 kind=6 stack=0"),
            *generation(batch(100, 2000, *parent(), "STWEnd dt=1"), gen=2, time=2000, strings={}, stacks={}),
        ],
    )


def add_broken_tables() -> None:
    """What events refer to is missing or too large."""
    broken(
        "no-string",
        "a region's name is not in the table",
        "string 77 is not in the table",
        alone("UserRegionBegin dt=1 task=1 name=77 stack=0"),
    )
    broken(
        "no-stack",
        "an event's stack is not in the table",
        "stack 77 is not in the table",
        alone("UserRegionBegin dt=1 task=1 name=4 stack=77"),
    )
    broken(
        "no-frame-string",
        "a frame's function is not in the table",
        "string 77, the function of a frame",
        alone(stacks={1: [(1, 77, 2, 3)]}),
    )
    broken(
        "string-twice",
        "a string id that is taken (0 always is)",
        "two strings with the id 0",
        alone(strings={0: "x"}, stacks={}),
    )
    broken(
        "batch-size",
        "a batch over 64 KiB",
        "more than 65536",
        alone(strings=dict.fromkeys(range(1, 67), "x" * 1000), stacks={}),
    )
    broken("string-size", "a string over 1 KiB", "more than 1024", alone(strings={1: "x" * 1025}, stacks={}))
    broken(
        "stack-size",
        "a stack over 128 frames",
        "more than 128",
        alone(stacks={1: [(i, 1, 2, 3) for i in range(1, 130)]}),
    )
    broken(
        "mixed-table",
        "a string in a batch of stacks",
        "a String in a batch of Stack events",
        one(batch(-1, 1000, "Stacks", 'String id=9 "x"')),
    )
    broken(
        "no-time", "a structural event among timed ones", "has no place in a batch of events", alone("Frequency freq=5")
    )


def add_broken_generations() -> None:
    """Generations that do not begin, end or follow each other as they should."""
    for header in ("1.22", "1.25", "1.26"):
        broken(
            f"no-frequency-{header}",
            "a generation without a frequency",
            "no Frequency event",
            alone(freq=None, header=header),
            header,
        )
    broken("no-clock", "a generation without a clock snapshot", "no ClockSnapshot event", alone(clock=False))
    broken(
        "two-frequencies",
        "a second sync batch",
        "two Frequency events",
        one(batch(-1, 1000, "Sync", "Frequency freq=5")),
    )
    broken(
        "wrong-sync",
        "a lone Frequency where a sync batch is wanted",
        "no Frequency event",
        one(batch(-1, 1000, "Frequency freq=5"), freq=None, clock=False),
    )
    for header in ("1.22", "1.25"):
        gap = [*alone(header=header), *generation(batch(100, 2000, *parent()), header=header, gen=3, time=2000)]
        broken(f"gap-{header}", "a generation is missing", "generation 3 after 1: out of order", gap, header)
    broken(
        "mixed",
        "two generations without an end between them",
        "mixed with 2",
        [*alone(end=False), *generation(batch(100, 2000, *parent()), gen=2, time=2000)],
    )
    broken("zero", "generation 0", "has generation 0", generation(batch(100, 1000, *parent(), gen=0), gen=0))
    broken("no-end", "a 1.26 trace that ends before its EndOfGeneration", "cut off in generation 1", alone(end=False))
    broken(
        "early-end",
        "EndOfGeneration before 1.26",
        "no batch at offset",
        [*alone(header="1.25"), "EndOfGeneration"],
        "1.25",
    )


def add_strict() -> None:
    """What we refuse and Go accepts."""

    def strict(name: str, guards: str, says: str, lines: Lines, header: str = "1.26") -> None:
        scenario(name, guards, lines, header=header, outcome="strict", says=says)

    strict(
        "newer-event",
        "an event that the header does not know (tools of that age refuse it)",
        "no place",
        alone("GoStatusStack dt=1 g=1 m=100 gstatus=2 stack=0", header="1.22"),
        "1.22",
    )
    strict("frequency-0", "a frequency of 0", "frequency of 0", alone(freq=0))
    strict("status-0", "a state that does not exist", "no status 0", alone("GoStatus dt=1 g=9 m=-1 gstatus=0"))
    sample = [f"CPUSample time={1 << 63} m=100 p=0 g=1 stack=2"]
    strict(
        "late-sample",
        "a CPU sample at a time that is negative in Go, which shows it first",
        "63 bits",
        one(batch(100, 1000, *parent()), batch(-1, 1000, "CPUSamples", *sample)),
    )
    strict(
        "late-generation",
        "a generation without events at a time that is negative in Go",
        "begins at a time that does not fit into 63 bits",
        [*alone(), *generation(gen=2, time=(1 << 64) - 3, freq=4)],
    )
    strict("no-generation", "a 1.26 trace that ends behind its header", "cut off behind the header", [])
    strict(
        "no-event-1.22",
        "a 1.22 trace that ends within a generation of tables alone",
        "no event so far",
        one(header="1.22"),
        "1.22",
    )
    strict("cut-tables", "a 1.26 trace that ends within a generation of tables alone", "cut off", one(end=False))


def misread(name: str, guards: str, says: str, lines: Lines) -> None:
    scenario(name, guards, lines, outcome="misread", says=says)


def add_misread() -> None:
    """What Go accepts and shows wrongly."""
    twice = [CREATE, "GoStop dt=1 reason=0 stack=0", START, "GoDestroy dt=1", "GoStart dt=1 g=1 g_seq=1", CREATE]
    misread(
        "g-twice",
        "a G id comes again in one trace: Go's pages count one",
        "G 2 is created a second time",
        alone(*twice),
    )
    misread(
        "late",
        "a unit starts 5 us before it is created, by its time: Go moves it",
        "at 6003 ns: an event that goes before it has a time",
        one(batch(100, 1000, *parent(), CREATE.replace("dt=10", "dt=10000")), batch(200, 6000, *worker(), START)),
    )
    overlap = generation(batch(100, 2000, *parent()), gen=2, time=2000)
    misread(
        "overlap",
        "a generation begins before the one before it has ended",
        "Sync",
        [*alone("HeapAlloc dt=9000 bytes=1"), *overlap],
    )
    misread(
        "same-pc",
        "two frames share a PC: Go shows the first for both",
        "share the PC 0x1",
        alone(stacks={1: [(1, 1, 2, 7)], 2: [(1, 1, 2, 8)]}),
    )
    misread(
        "gap-1.26",
        "a generation is missing",
        "generation 3 follows 1",
        [*alone(), *generation(batch(100, 2000, *parent()), gen=3, time=2000)],
    )
    far = 5_000_000_000
    misread(
        "origin",
        "a table's batch header has no time: Go's time axis begins there",
        "time axis begins there",
        one(batch(100, far, *parent()), time=far, table_time=1),
    )
    begun = alone("STWBegin dt=1 kind=6 stack=0")
    ended = generation(batch(100, 2000, *parent(), "STWEnd dt=1"), gen=2, time=2000, strings={6: "other"}, stacks={})
    misread("stw-name", "an STW range has another name where it ends", "another kind", [*begun, *ended])


def add_misread_states() -> None:
    """The same of what an M has, or what runs nowhere."""
    misread(
        "g-displaced",
        "a status says that another G runs on an M: readers take it, and show the one before as running on",
        "it has G 5 all at once, and G 1 goes on nowhere",
        alone("GoStatus dt=1 g=5 m=100 gstatus=2"),
    )
    misread(
        "g-displaced-by-syscall",
        "the same of a G that is in a syscall",
        "it has G 5 all at once, and G 1 goes on nowhere",
        alone("GoStatus dt=1 g=5 m=100 gstatus=3"),
    )
    misread(
        "p-displaced",
        "a status says that an M has another P: readers take it, and show the one before as running on",
        "it has P 5 all at once, and P 0 goes on nowhere",
        alone("ProcStatus dt=1 p=5 pstatus=1"),
    )
    misread(
        "g-nowhere",
        "a status of nobody says that a G runs: readers take it, and show it on no M",
        "G 5 runs on no M",
        one(batch(100, 1000, *parent()), batch(-1, 1010, "GoStatus dt=1 g=5 m=100 gstatus=2")),
    )
    misread(
        "p-nowhere",
        "the same of a P",
        "P 5 runs on no M",
        one(batch(100, 1000, *parent()), batch(-1, 1010, "ProcStatus dt=1 p=5 pstatus=1")),
    )
    misread(
        "p-on-two-ms",
        "a status says that a P is on a second M: readers take it, and show it on both",
        "P 0 is on M 100 all the same",
        one(batch(100, 1000, *parent()), batch(200, 1010, "ProcStatus dt=1 p=0 pstatus=1")),
    )
    misread(
        "g-on-two-ms",
        "the same of a G",
        "G 1 is on M 100 all the same",
        one(batch(100, 1000, *parent()), batch(200, 1010, *parent(200, p=1))),
    )
    misread(
        "g-on-two-ms-by-syscall",
        "the same of a G that was created in a syscall, and is in one of another M afterwards",
        "G 1 is on M 100 all the same",
        one(
            batch(100, 1000, "GoCreateSyscall dt=1 new_g=1"),
            batch(200, 1010, "GoStatus dt=1 g=1 m=200 gstatus=3"),
        ),
    )
    misread(
        "g-on-two-ms-named",
        "the same by a status that names the other M, which says nothing itself",
        "G 1 is on M 100 all the same",
        one(
            batch(100, 1000, "GoCreateSyscall dt=1 new_g=1"),
            batch(-1, 1010, "GoStatus dt=1 g=1 m=200 gstatus=3"),
        ),
    )
    misread(
        "p-stops-under-g",
        "a P stops while a G runs on it: readers take it, and show the G as running on, without a P",
        "P 0 stops while G 1 runs on it",
        alone("ProcStop dt=1"),
    )


def scenarios() -> list[Scenario]:
    """All of them, by name."""
    _SCENARIOS.clear()
    steps: tuple[Callable[[], None], ...] = (
        add_good,
        add_good_waits,
        add_good_more,
        add_good_unusual,
        add_good_unusual_ids,
        add_good_unusual_states,
        add_broken_order,
        add_broken_ranges,
        add_broken_tables,
        add_broken_generations,
        add_strict,
        add_misread,
        add_misread_states,
    )
    for step in steps:
        step()
    return sorted(_SCENARIOS)


def main() -> None:
    """Writes the files, and removes those that have no scenario any more."""
    GOLDEN.mkdir(exist_ok=True)
    made = scenarios()
    for old in set(GOLDEN.glob("*.txt")) - {GOLDEN / item.name for item in made}:
        old.unlink()
    for item in made:
        (GOLDEN / item.name).write_text(item.text, encoding="ascii")


if __name__ == "__main__":
    main()
