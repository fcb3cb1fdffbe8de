"""Small traces with CPU samples, made from text: a parent, a worker, two units over three generations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pooltrace.format import text

SECOND = 1_700_000_000
ODD = {20: 'say "hi"\\', 21: "caf\udce9.\n wörk", 22: "<locals>.<lambda>"}
"""Names that need care: quotes, a backslash, a byte that is no UTF-8, an end of a line, brackets."""
STRINGS = {
    1: "main.<module>", 2: "main.py", 3: "main.work", 4: "main.deep", 5: "main.other", 6: "unpickle", 7: "inner",
    8: "cpu samples per second", 9: "map(work)", 10: "250", 11: "lib.py",
    **ODD,
}  # fmt: skip
MODULE, WORK, DEEP, OTHER, ODD_STACK = 1, 2, 3, 4, 5
STACKS = {
    MODULE: [(1, 1, 2, 40)],
    WORK: [(2, 3, 2, 10)],
    DEEP: [(3, 4, 11, 7), (4, 3, 2, 12)],
    OTHER: [(5, 5, 2, 20)],
    ODD_STACK: [(6, 20, 21, 1), (7, 21, 20, 3), (8, 22, 2, 4)],
}

Lines = list[str]


def begin(name: int, task: int = 1) -> str:
    return f"UserRegionBegin dt=0 task={task} name={name} stack={WORK}"


def end(name: int, task: int = 1) -> str:
    return f"UserRegionEnd dt=0 task={task} name={name} stack=0"


def at(*events: tuple[int, str]) -> Lines:
    """Events at times since the begin of their batch."""
    times = [0, *(time for time, _ in events)]
    return [
        event.replace(" dt=0", "").replace(event.split()[0], f"{event.split()[0]} dt={time - before}", 1)
        for before, (time, event) in zip(times, events)
    ]


def sample(time: int, stack: int, *, m: int = 200, p: int = 1, g: int = 2) -> str:
    """A sample at a time since the trace began to count: not since its generation began."""
    return f"CPUSample time={time} m={m} p={p} g={g} stack={stack}"


def batch(gen: int, m: int, time: int, events: Sequence[str]) -> Lines:
    return [f"EventBatch gen={gen} m={m} time={time}", *(f"\t{event}" for event in events)]


def generation(
    gen: int,
    time: int,
    batches: dict[int, Lines],
    samples: Sequence[str] = (),
    *,
    header: str = "1.26",
    strings: dict[int, str] = STRINGS,
    freq: int = 1_000_000_000,
) -> Lines:
    """The events of each M, and the samples, with the tables. A clock snapshot is 100 units behind the begin."""
    newer = header in ("1.25", "1.26")
    clock = ["Sync", f"Frequency freq={freq}", f"ClockSnapshot dt=100 mono=5 sec={SECOND} nsec={gen}"]
    lines = batch(gen, -1, time, clock if newer else clock[1:2])
    for m, events in batches.items():
        lines += batch(gen, m, time, events)
    if samples:
        lines += batch(gen, -1, time, ["CPUSamples", *samples])
    frames = {
        number: " ".join(f"[pc={pc} func={func} file={file} line={line}]" for pc, func, file, line in stack)
        for number, stack in STACKS.items()
    }
    lines += batch(gen, -1, time, ["Stacks", *(f"Stack id={number} {stack}" for number, stack in frames.items())])
    quoted = {number: text.quote(name.encode("utf-8", "surrogateescape")) for number, name in strings.items()}
    lines += batch(gen, -1, time, ["Strings", *(f"String id={number} {name}" for number, name in quoted.items())])
    return [*lines, "EndOfGeneration"] if header == "1.26" else lines


def log(value: int = 10, key: int = 8, task: int = 0) -> str:
    return f"UserLog dt=0 task={task} key={key} value={value} stack=0"


def parent(header: str = "1.26") -> Lines:
    """The thread that starts the trace: named where a header can."""
    status = "GoStatus dt=1 g=1 m=100 gstatus=2"
    if header != "1.22":
        status = f"GoStatusStack dt=1 g=1 m=100 gstatus=2 stack={MODULE}"
    return ["ProcStatus dt=1 p=0 pstatus=1", status]


def create(g: int, stack: int) -> str:
    return f"GoCreate dt=1 new_g={g} new_stack={stack} stack={MODULE}"


def write(path: Path, lines: Sequence[str], header: str = "1.26") -> Path:
    path.write_bytes(b"".join(text.parse_text([f"go {header} trace", *lines])))
    return path


def units(header: str = "1.26") -> Lines:
    """Unit 2 (main.work) runs from generation 1 to 2, unit 3 (main.other) waits in 1 and 2 and runs in 3.

    The rate is told in generation 1 (250) only. Times are those of the M200's events and of the samples.
    """
    first = generation(
        1, 10_000,
        {
            100: [*parent(header), create(2, WORK), create(3, OTHER), *at((10, log()))],
            200: at(
                (100, "ProcStatus dt=0 p=1 pstatus=2"), (200, "ProcStart dt=0 p=1 p_seq=1"),
                (300, "GoStart dt=0 g=2 g_seq=1"), (400, begin(6)), (500, end(6)),
                (600, begin(3)), (700, begin(7)), (800, end(7)),
            ),
        },
        [
            sample(10_150, MODULE, p=-1, g=-1),  # before the worker has work
            sample(10_350, WORK),  # between phases
            sample(10_450, WORK),  # unpickle
            sample(10_650, DEEP),  # the item
            sample(10_750, DEEP),  # a region of the user's in it
            sample(10_700, DEEP),  # and at its very begin
            sample(10_850, DEEP),  # the item again
            sample(10_850, DEEP),  # a second tick of the same
            sample(10_860, 0),  # no stack
            sample(10_870, MODULE, m=100, p=0, g=1),  # the parent
        ],
        header=header,
    )  # fmt: skip
    second = generation(
        2, 20_000,
        {
            100: parent(header),
            200: at(
                (0, "ProcStatus dt=0 p=1 pstatus=1"), (0, "GoStatus dt=0 g=2 m=200 gstatus=2"),
                (500, end(3)), (600, "GoDestroy dt=0"), (700, "ProcStop dt=0"),
            ),
        },
        [
            sample(20_400, DEEP),  # the item goes on, its unit named a generation ago
            sample(20_550, WORK),  # behind the item
            sample(20_600, WORK),  # at the unit's very end
            sample(20_650, MODULE, g=0),
        ],
        header=header,
    )  # fmt: skip
    third = generation(
        3, 30_000,
        {
            100: [*parent(header), "GoStatus dt=1 g=3 m=-1 gstatus=1"],
            200: at(
                (100, "ProcStatus dt=0 p=1 pstatus=2"), (200, "ProcStart dt=0 p=1 p_seq=1"),
                (300, "GoStart dt=0 g=3 g_seq=1"), (400, begin(21)), (900, end(21)),
                (950, "GoDestroy dt=0"), (990, "ProcStop dt=0"),
            ),
        },
        [sample(30_500, ODD_STACK, g=3), sample(30_920, OTHER, g=3)],
        header=header,
    )  # fmt: skip
    return [*first, *second, *third]
