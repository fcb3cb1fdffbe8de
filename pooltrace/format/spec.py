"""The one table of Go's v2 trace events, headers, states and limits: writer, reader, text form and tests all read it.

Knows numbers, names and argument types only: nothing of bytes, files or the order of events. Source of the rules: Go's
``internal/trace/tracev2`` and ``internal/trace/version``; ``tests/test_spec.py`` compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MAX_BATCH_SIZE: Final = 64 << 10
"""Bytes of a batch's contents, without its header."""
MAX_STRING_SIZE: Final = 1 << 10
"""Bytes of one string."""
MAX_STACK_FRAMES: Final = 128
"""Frames of one stack."""
MAX_VARINT_SIZE: Final = 10
"""Bytes of one unsigned 64-bit number."""

NONE: Final = -1
"""No M, no P or no G: on the wire 2**64 - 1."""


class GoStatus(IntEnum):
    """State of a G in GoStatus and GoStatusStack."""

    RUNNABLE = 1
    RUNNING = 2
    SYSCALL = 3
    WAITING = 4


class ProcStatus(IntEnum):
    """State of a P in ProcStatus. SYSCALL_ABANDONED: about to be stolen from an M that the trace does not know."""

    RUNNING = 1
    IDLE = 2
    SYSCALL = 3
    SYSCALL_ABANDONED = 4


class Arg(IntEnum):
    """What an argument means. All are unsigned 64-bit numbers on the wire."""

    NUMBER = 0
    DELTA = 1
    TIME = 2
    M = 3
    P = 4
    G = 5
    SEQ = 6
    STRING = 7
    STACK = 8
    TASK = 9
    GSTATUS = 10
    PSTATUS = 11


_ARG_BY_WORD: Final = {
    "dt": Arg.DELTA,
    "time": Arg.TIME,
    "m": Arg.M,
    "p": Arg.P,
    "g": Arg.G,
    "seq": Arg.SEQ,
    "string": Arg.STRING,
    "stack": Arg.STACK,
    "task": Arg.TASK,
    "gstatus": Arg.GSTATUS,
    "pstatus": Arg.PSTATUS,
}


@dataclass(frozen=True, slots=True, eq=False)
class EventSpec:
    """One event type.

    ``args`` are all its arguments in wire order; those of a timed event begin with ``dt`` (time since the event before
    it in its batch). ``strings`` and ``stacks`` are the positions in ``args`` that hold ids of the generation's tables.
    ``since`` is the oldest header (minor version) that knows it. ``start`` names the event that this one ends, or
    reports as under way. ``implied`` events are never in a file: the order adds them where one event stands for several
    (GoSwitch, GoDestroySyscall).
    """

    number: int
    name: str
    args: tuple[str, ...]
    types: tuple[Arg, ...]
    since: int
    timed: bool
    start: str | None
    strings: tuple[int, ...]
    stacks: tuple[int, ...]
    implied: bool = False

    @property
    def has_text(self) -> bool:
        """A length and that many bytes follow the arguments."""
        return self.name == "String"

    @property
    def has_frames(self) -> bool:
        """The last argument is a number of frames, which follow (FRAME_ARGS each)."""
        return self.name == "Stack"


FRAME_ARGS: Final = ("pc", "func", "file", "line")
"""What a frame of a Stack is made of; func and file are string ids."""


def _event(number: int, name: str, args: str = "", *, start: str | None = None, since: int = 22) -> EventSpec:
    """Builds a row from "name:type name:type"; the type may be left out where it is the name or a plain number."""
    words = [word.partition(":") for word in args.split()]
    names = tuple(word[0] for word in words)
    types = tuple(_ARG_BY_WORD.get(word[2] or word[0], Arg.NUMBER) for word in words)
    return EventSpec(
        number=number,
        name=name,
        args=names,
        types=types,
        since=since,
        timed=bool(names) and names[0] == "dt",
        start=start,
        strings=tuple(i for i, t in enumerate(types) if t is Arg.STRING),
        stacks=tuple(i for i, t in enumerate(types) if t is Arg.STACK),
    )


EVENTS: Final[tuple[EventSpec, ...]] = (
    # Structure: batches, tables, the sync batch.
    _event(1, "EventBatch", "gen m time size"),
    _event(2, "Stacks"),
    _event(3, "Stack", "id nframes"),
    _event(4, "Strings"),
    _event(5, "String", "id"),
    _event(6, "CPUSamples"),
    _event(7, "CPUSample", "time m p g stack"),
    _event(8, "Frequency", "freq"),
    # Ps.
    _event(9, "ProcsChange", "dt procs stack"),
    _event(10, "ProcStart", "dt p p_seq:seq"),
    _event(11, "ProcStop", "dt"),
    _event(12, "ProcSteal", "dt p p_seq:seq m"),
    _event(13, "ProcStatus", "dt p pstatus"),
    # Gs.
    _event(14, "GoCreate", "dt new_g:g new_stack:stack stack"),
    _event(15, "GoCreateSyscall", "dt new_g:g"),
    _event(16, "GoStart", "dt g g_seq:seq"),
    _event(17, "GoDestroy", "dt"),
    _event(18, "GoDestroySyscall", "dt"),
    _event(19, "GoStop", "dt reason:string stack"),
    _event(20, "GoBlock", "dt reason:string stack"),
    _event(21, "GoUnblock", "dt g g_seq:seq stack"),
    _event(22, "GoSyscallBegin", "dt p_seq:seq stack"),
    _event(23, "GoSyscallEnd", "dt", start="GoSyscallBegin"),
    _event(24, "GoSyscallEndBlocked", "dt", start="GoSyscallBegin"),
    _event(25, "GoStatus", "dt g m gstatus"),
    # Ranges.
    _event(26, "STWBegin", "dt kind:string stack"),
    _event(27, "STWEnd", "dt", start="STWBegin"),
    _event(28, "GCActive", "dt gc_seq:seq", start="GCBegin"),
    _event(29, "GCBegin", "dt gc_seq:seq stack"),
    _event(30, "GCEnd", "dt gc_seq:seq", start="GCBegin"),
    _event(31, "GCSweepActive", "dt p", start="GCSweepBegin"),
    _event(32, "GCSweepBegin", "dt stack"),
    _event(33, "GCSweepEnd", "dt swept reclaimed", start="GCSweepBegin"),
    _event(34, "GCMarkAssistActive", "dt g", start="GCMarkAssistBegin"),
    _event(35, "GCMarkAssistBegin", "dt stack"),
    _event(36, "GCMarkAssistEnd", "dt", start="GCMarkAssistBegin"),
    _event(37, "HeapAlloc", "dt bytes"),
    _event(38, "HeapGoal", "dt bytes"),
    # Annotations.
    _event(39, "GoLabel", "dt label:string"),
    _event(40, "UserTaskBegin", "dt task parent:task name:string stack"),
    _event(41, "UserTaskEnd", "dt task stack"),
    _event(42, "UserRegionBegin", "dt task name:string stack"),
    _event(43, "UserRegionEnd", "dt task name:string stack", start="UserRegionBegin"),
    _event(44, "UserLog", "dt task key:string value:string stack"),
    # Later headers.
    _event(45, "GoSwitch", "dt g g_seq:seq", since=23),
    _event(46, "GoSwitchDestroy", "dt g g_seq:seq", since=23),
    _event(47, "GoCreateBlocked", "dt new_g:g new_stack:stack stack", since=23),
    _event(48, "GoStatusStack", "dt g m gstatus stack", since=23),
    _event(49, "ExperimentalBatch", "exp gen m time size", since=23),
    _event(50, "Sync", since=25),
    _event(51, "ClockSnapshot", "dt mono sec nsec", since=25),
    _event(52, "EndOfGeneration", since=26),
)

BY_NAME: Final[dict[str, EventSpec]] = {event.name: event for event in EVENTS}
BY_NUMBER: Final[dict[int, EventSpec]] = {event.number: event for event in EVENTS}

TABLE_MARKS: Final = frozenset(BY_NAME[name].number for name in ("Stacks", "Strings", "CPUSamples"))
"""First bytes of the batches that hold tables; every other batch that is not a sync batch holds timed events."""


@dataclass(frozen=True, slots=True)
class Header:
    """What one version of the format has that another has not.

    ``sync_mark`` is the first byte of a sync batch: a lone Frequency before 1.25; from then on Sync, after which
    Frequency and ClockSnapshot are required. ``end_of_generation``: each generation is closed by that event, outside of
    any batch; without it a generation ends where the next begins, whose number must be one higher. ``status_stack``:
    GoStatusStack may be used.
    """

    minor: int
    sync_mark: int
    clock_snapshot: bool
    end_of_generation: bool
    status_stack: bool

    @property
    def name(self) -> str:
        return f"1.{self.minor}"

    @property
    def magic(self) -> bytes:
        """The first 16 bytes of the file."""
        return b"go 1.%d trace\0\0\0" % self.minor

    def knows(self, event: EventSpec) -> bool:
        return event.since <= self.minor


HEADER_SIZE: Final = 16
HEADERS: Final[dict[str, Header]] = {
    header.name: header
    for header in (
        Header(22, BY_NAME["Frequency"].number, clock_snapshot=False, end_of_generation=False, status_stack=False),
        Header(23, BY_NAME["Frequency"].number, clock_snapshot=False, end_of_generation=False, status_stack=True),
        Header(25, BY_NAME["Sync"].number, clock_snapshot=True, end_of_generation=False, status_stack=True),
        Header(26, BY_NAME["Sync"].number, clock_snapshot=True, end_of_generation=True, status_stack=True),
    )
}
DEFAULT_HEADER: Final = "1.26"
FIRST_GENERATION_AFTER_WRAP: Final = 4
"""Generation numbers are never 0 and go on here after their highest value (Go's runtime does so)."""
