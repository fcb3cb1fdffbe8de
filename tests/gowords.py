"""Our events in the words of Go's trace tool: what ``-d=parsed`` has to print for each of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from pooltrace.format import order
from pooltrace.format.generation import Frame
from pooltrace.format.order import Event
from pooltrace.format.spec import GoStatus, ProcStatus


class GoEvent(NamedTuple):
    """One event as Go prints it: its context, kind, time in ns, the rest of its line, and its stacks as printed."""

    time: int
    m: int
    p: int
    g: int
    kind: str
    rest: str
    stacks: str


_GO_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))")
_GO_SHORT = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\[[^\]]*\]|\S+)')
_G_STATE = {"RUNNABLE": "Runnable", "RUNNING": "Running", "SYSCALL": "Syscall", "WAITING": "Waiting"}
_P_STATE = {"RUNNING": "Running", "IDLE": "Idle", "SYSCALL": "Running", "SYSCALL_ABANDONED": "Idle"}
_METRIC = {
    "ProcsChange": "/sched/gomaxprocs:threads",
    "HeapAlloc": "/memory/classes/heap/objects:bytes",
    "HeapGoal": "/gc/heap/goal:bytes",
}
_G_BECOMES = {
    "GoCreate": "Runnable", "GoCreateBlocked": "Waiting", "GoCreateSyscall": "Syscall", "GoStart": "Running",
    "GoDestroy": "NotExist", "GoDestroySyscall": "NotExist", "GoStop": "Runnable", "GoBlock": "Waiting",
    "GoUnblock": "Runnable", "GoSwitch": "Runnable", "GoSwitchDestroy": "Runnable", "GoSyscallBegin": "Syscall",
    "GoSyscallEnd": "Running", "GoSyscallEndBlocked": "Runnable",
}  # fmt: skip
_P_BECOMES = {"ProcStart": "Running", "ProcStop": "Idle", "ProcSteal": "Idle"}
_PLAIN_KIND = {
    "GoLabel": "Label", "UserTaskBegin": "TaskBegin", "UserTaskEnd": "TaskEnd", "UserRegionBegin": "RegionBegin",
    "UserRegionEnd": "RegionEnd", "UserLog": "Log", "CPUSample": "StackSample",
}  # fmt: skip

Fact = tuple[str, object]


def unquote_go(text: str) -> bytes:
    """The bytes of a string that Go printed with %q."""

    def one(found: re.Match[bytes]) -> bytes:
        if found[1]:
            return bytes([int(found[1], 16)])
        if found[2] or found[3]:
            return chr(int(found[2] or found[3], 16)).encode("utf-8", "surrogatepass")
        return _GO_SHORT.get(found[4], found[4])

    return _GO_ESCAPE.sub(one, text[1:-1].encode("utf-8"))


_unquote = functools.lru_cache(maxsize=4096)(unquote_go)


_G_USUAL = {
    "GoCreate": 'NotExist->Runnable Reason=""', "GoStart": 'Runnable->Running Reason=""',
    "GoDestroy": 'Running->NotExist Reason=""', "GoUnblock": 'Waiting->Runnable Reason=""',
}  # fmt: skip


def _usual(event: Event) -> str | None:
    """The line that Go prints for the most frequent events, if their texts need no quoting: spares the closer look."""
    name = event.name
    if name in _G_USUAL:
        return f"GoID={event.args[0] if event.args else event.g} {_G_USUAL[name]}"
    if name in ("UserRegionBegin", "UserRegionEnd"):
        return f'Task={event.args[0]} Type="{event.tables.string(event.args[1])}"'
    if name == "UserLog":
        string = event.tables.string
        return f'Task={event.args[0]} Category="{string(event.args[1])}" Message="{string(event.args[2])}"'
    return None


def _kind(event: Event) -> str:
    name = event.name
    if name in _METRIC:
        return "Metric"
    if name in _PLAIN_KIND:
        return _PLAIN_KIND[name]
    if name.startswith(("STW", "GC")):
        return "Range" + re.split("(?=Begin|End|Active)", name)[-1]
    return "StateTransition"


def _facts(event: Event) -> dict[str, object]:
    """What Go's line must say about this event, by the names that Go prints."""
    name = event.name
    if name in _METRIC:
        return {"Name": _METRIC[name].encode(), "Value": f"Value{{Uint64({event.args[0]})}}"}
    if name in _G_BECOMES:
        own = not any(arg in ("g", "new_g") for arg in event.spec.args)
        facts: dict[str, object] = {"GoID": event.g if own else event.arg(event.spec.args[1]), "->": _G_BECOMES[name]}
        if name in ("GoStop", "GoBlock"):
            facts["Reason"] = event.tables.strings[event.args[0]]
        return facts
    if name in _P_BECOMES:
        return {"ProcID": event.p if name == "ProcStop" else event.arg("p"), "->": _P_BECOMES[name]}
    if name in ("GoStatus", "GoStatusStack"):
        return {"GoID": event.arg("g"), "->": _G_STATE[GoStatus(event.args[2]).name]}
    if name == "ProcStatus":
        return {"ProcID": event.arg("p"), "->": _P_STATE[ProcStatus(event.args[1]).name]}
    if name == "UserTaskBegin":
        return {"ID": event.args[0], "Type": event.tables.strings[event.args[2]]}
    if name == "UserTaskEnd":
        return {"ID": event.args[0]}
    if name in ("UserRegionBegin", "UserRegionEnd"):
        return {"Task": event.args[0], "Type": event.tables.strings[event.args[1]]}
    if name == "UserLog":
        strings = event.tables.strings
        return {"Task": event.args[0], "Category": strings[event.args[1]], "Message": strings[event.args[2]]}
    if name == "GoLabel":
        return {"Label": event.tables.strings[event.args[0]]}
    return {}


def _said(rest: str) -> dict[str, object]:
    """The fields of Go's line."""
    out: dict[str, object] = {}
    for name, value in _FIELD.findall(rest):
        if value.startswith('"'):
            out[name] = _unquote(value)
        else:
            out[name] = int(value) if re.fullmatch(r"-?\d+", value) else value
    arrow = re.search(r"ID=-?\d+ \w+->(\w+)", rest)
    if arrow:
        out["->"] = arrow[1]
    return out


class Expected:
    """One event of ours, in the words of Go's."""

    __slots__ = ("context", "event", "kind", "name", "stacks", "time")

    def __init__(self, event: Event | None, time: int, context: tuple[int, int, int], name: str, kind: str) -> None:
        self.event = event
        self.stacks = True
        self.time = time
        self.context = context
        self.name = name
        self.kind = kind

    def differs(self, go: GoEvent) -> str | None:
        """How it differs from Go's, but for its time."""
        if (go.m, go.p, go.g) != self.context or go.kind != self.kind:
            m, p, g = self.context
            return f"ours is M={m} P={p} G={g} {self.kind} ({self.name})"
        if self.event is None:
            return None
        facts = {} if _usual(self.event) == go.rest else _facts(self.event)
        if facts:
            said = _said(go.rest)
            wrong = {name: value for name, value in facts.items() if said.get(name) != value}
            if wrong:
                return f"ours ({self.name}) has {wrong}"
        if not self.stacks:
            return None
        stacks = _stacks(self.event)
        return None if stacks == go.stacks else f"ours ({self.name}) has other stacks: {stacks!r}, Go has {go.stacks!r}"

    def __str__(self) -> str:
        m, p, g = self.context
        return f"M={m} P={p} G={g} {self.name} at {self.time}"


_SHOWS_STACK_TWICE = frozenset(("GoStop", "GoBlock", "GoSyscallBegin", "GoStatusStack"))


def _stacks(event: Event) -> str:
    """The stacks of an event as Go prints them, one or two."""
    out = ""
    if "new_stack" in event.spec.args:
        out += "TransitionStack=\n" + _frames(event, "new_stack")
    if "stack" in event.spec.args and (event.arg("stack") or event.name == "CPUSample"):  # which always shows one
        frames = _frames(event, "stack")
        if event.name in _SHOWS_STACK_TWICE:
            out += "TransitionStack=\n" + frames
        out += "Stack=\n" + frames
    return out


def _frames(event: Event, argument: str) -> str:
    global _last_frames
    frames = event.stack(argument)
    if _last_frames[0] is not frames:  # a stack often comes several times in a row
        _last_frames = frames, "".join(f"\t{f.function} @ 0x{f.pc:x}\n\t\t{f.file}:{f.line}\n" for f in frames)
    return _last_frames[1]


_last_frames: tuple[tuple[Frame, ...] | None, str] = (None, "")


def expected(reader: order.TraceReader, *, stacks: bool) -> Iterator[Expected]:
    """All that Go should print for a trace, its Sync events too; ``stacks`` says whether they are compared."""
    nobody = (-1, -1, -1)
    for generation, _, events in reader.generations():
        yield Expected(
            None, generation.to_ns(generation.min_time), nobody, f"Sync of generation {generation.gen}", "Sync"
        )
        for event in events:
            want = Expected(event, event.time, (event.m, event.p, event.g), event.name, _kind(event))
            want.stacks = stacks
            yield want
    yield Expected(None, 0, nobody, "Sync at the end", "Sync")
