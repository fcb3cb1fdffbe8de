"""Small traces by chance, for fuzz_raw: three generations of a few events each, of which many fit together.

Mutated golden traces seldom bring an M, a P or a G into a state that no scenario has; a few events in any order do. One
in thirty is in order; what its pieces need to be told is what head.py has to know.
"""

from __future__ import annotations

import random

from pooltrace.format import text

_EVENTS = (
    "ProcStatus dt=1 p={p} pstatus=1",
    "ProcStatus dt=1 p={p} pstatus={status}",
    "ProcStart dt=1 p={p} p_seq={seq}",
    "ProcStop dt=1",
    "ProcSteal dt=1 p={p} p_seq={seq} m={m}",
    "GoStatus dt=1 g={g} m={m} gstatus=2",
    "GoStatus dt=1 g={g} m={m} gstatus={status}",
    "GoStart dt=1 g={g} g_seq={seq}",
    "GoStop dt=1 reason=0 stack=0",
    "GoBlock dt=1 reason=0 stack=0",
    "GoUnblock dt=1 g={g} g_seq={seq} stack=0",
    "GoCreate dt=1 new_g={g} new_stack=1 stack=0",
    "GoCreateSyscall dt=1 new_g={g}",
    "GoDestroy dt=1",
    "GoDestroySyscall dt=1",
    "GoSwitch dt=1 g={g} g_seq={seq}",
    "GoSyscallBegin dt=1 p_seq={seq} stack=0",
    "GoSyscallEnd dt=1",
    "GoSyscallEndBlocked dt=1",
    "UserTaskBegin dt=1 task=1 parent=0 name=1 stack=1",
    "UserRegionBegin dt=1 task=0 name=1 stack=1",
)


def _events(dice: random.Random, count: int) -> list[str]:
    return [
        dice.choice(_EVENTS).format(
            p=dice.choice((0, 0, 1)),
            g=dice.choice((1, 1, 2)),
            m=dice.choice((100, 100, 200, -1)),
            seq=dice.choice((1, 1, 2, 3)),
            status=dice.randrange(1, 5),
        )
        for _ in range(count)
    ]


def _generation(gen: int, batches: list[tuple[int, list[str]]]) -> list[str]:
    time = 1000 * gen
    head = f"EventBatch gen={gen} m={{}} time={{}}"
    lines = [
        head.format(-1, time),
        "Sync",
        "Frequency freq=1000000000",
        "ClockSnapshot dt=0 mono=5 sec=1700000000 nsec=9",
    ]
    for number, (m, events) in enumerate(batches):
        if events:
            lines += [head.format(m, time + number), *events]
    lines += [head.format(-1, time), "Stacks", "Stack id=1 [pc=1 func=1 file=2 line=7]"]
    lines += [head.format(-1, time), "Strings", 'String id=1 "main.work"', 'String id=2 "main.py"']
    return [*lines, "EndOfGeneration"]


def make(dice: random.Random) -> bytes:
    """One of them, whether in order or not."""
    begin = ["ProcStatus dt=1 p=0 pstatus=1", "GoStatus dt=1 g=1 m=100 gstatus=2"] if dice.random() < 0.7 else []
    other = _events(dice, dice.randrange(4)) if dice.random() < 0.4 else []
    lines = _generation(1, [(100, [*begin, *_events(dice, dice.randrange(4))]), (200, other)])
    lines += _generation(2, [(100, _events(dice, dice.choice((0, 0, 0, 1, 2))))])
    lines += _generation(3, [(100, _events(dice, dice.randrange(4))), (200, _events(dice, dice.choice((0, 0, 1, 2))))])
    indented = (line if line.startswith("E") else "\t" + line for line in lines)
    return b"".join(text.parse_text(["go 1.26 trace", *indented]))
