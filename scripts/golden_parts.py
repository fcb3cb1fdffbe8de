"""The parts that golden traces are made of: batches, generations and usual events, as lines of text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

STRINGS = {1: "main.work", 2: "main.py", 3: "map(work)", 4: "item", 5: "get", 6: "start trace", 7: "size", 8: "10"}
STACKS = {1: [(1, 1, 2, 7)], 2: [(2, 4, 2, 9), (1, 1, 2, 7)]}

Lines = Iterable[str]


def batch(m: int, time: int, *events: str, gen: int = 1) -> list[str]:
    """A batch of one M."""
    return [f"EventBatch gen={gen} m={m} time={time}", *(f"\t{event}" for event in events)]


def generation(
    *batches: list[str],
    header: str = "1.26",
    gen: int = 1,
    time: int = 1000,
    freq: int | None = 1_000_000_000,
    clock: bool = True,
    strings: dict[int, str] | None = None,
    stacks: dict[int, list[tuple[int, int, int, int]]] | None = None,
    table_time: int | None = None,
    end: bool = True,
) -> list[str]:
    """A generation: sync batch, the batches given, stacks, strings, end. ``None`` for ``freq`` leaves it out."""
    newer = header in ("1.25", "1.26")
    sync = ["Sync"] if newer else []
    sync += [f"Frequency freq={freq}"] if freq is not None else []
    sync += ["ClockSnapshot dt=0 mono=5 sec=1700000000 nsec=9"] if newer and clock else []
    lines = batch(-1, time, *sync, gen=gen) if sync else []
    for one in batches:
        lines += [one[0].replace("gen=1 ", f"gen={gen} "), *one[1:]]
    at = time if table_time is None else table_time
    rows = [
        f"Stack id={number} "
        + " ".join(f"[pc={pc} func={func} file={file} line={line}]" for pc, func, file, line in frames)
        for number, frames in sorted((STACKS if stacks is None else stacks).items())
    ]
    lines += batch(-1, at, "Stacks", *rows, gen=gen)
    rows = [
        f'String id={number} "{text}"' for number, text in sorted((STRINGS if strings is None else strings).items())
    ]
    lines += batch(-1, at, "Strings", *rows, gen=gen)
    return [*lines, "EndOfGeneration"] if end and header == "1.26" else lines


def parent(m: int = 100, *, p: int = 0, g: int = 1) -> list[str]:
    """How a thread is in the trace from the start: it runs G ``g`` on P ``p``."""
    return [f"ProcStatus dt=1 p={p} pstatus=1", f"GoStatus dt=1 g={g} m={m} gstatus=2"]


def worker(p: int = 1, seq: int = 1) -> list[str]:
    """How a worker takes up work: its slot was idle."""
    return [f"ProcStatus dt=1 p={p} pstatus=2", f"ProcStart dt=1 p={p} p_seq={seq}"]


CREATE = "GoCreate dt=10 new_g=2 new_stack=1 stack=2"
START = "GoStart dt=1 g=2 g_seq=1"
REGION = ["UserRegionBegin dt=1 task=1 name=4 stack=1", "UserRegionEnd dt=50 task=1 name=4 stack=0"]


def one(*batches: list[str], **options: Any) -> list[str]:
    """A trace of one generation."""
    return generation(*batches, **options)


def alone(*events: str, **options: Any) -> list[str]:
    """A trace of one generation and one M, which is in the trace from the start."""
    return generation(batch(100, 1000, *parent(), *events), **options)
