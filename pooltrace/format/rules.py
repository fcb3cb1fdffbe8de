"""When an event may happen: the table of what each needs, and the one validator that reads it. No I/O, no time.

Each event has what its M must, may or must not have (an id, a P, a G), a test that says 'not yet' (it waits for an
event of another M), and an action. So ``advance`` has three outcomes: done, not yet (it returns None), broken (it
raises Broken).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from pooltrace.format import actions, spec
from pooltrace.format.spec import EventSpec, GoStatus, ProcStatus
from pooltrace.format.states import Args, Broken, G, M, P, Shown, State

_NONE: Final = spec.NONE
_RUNNABLE, _WAITING = GoStatus.RUNNABLE, GoStatus.WAITING
_P_IDLE, _P_SYSCALL = ProcStatus.IDLE, ProcStatus.SYSCALL


class Need(IntEnum):
    """What the M of an event has to have, before the event."""

    MUST_NOT = -1
    MAY = 0
    MUST = 1


@dataclass(frozen=True, slots=True)
class Rule:
    """What one event asks for and does. Both functions get the state, the M and the arguments behind ``dt``.

    ``ready`` says whether its turn has come; ``apply`` changes the state, and returns what is shown where that is not
    just the event in the context before it.
    """

    spec: EventSpec
    m: Need
    p: Need
    g: Need
    ready: Callable[[State, M, Args], bool] | None
    apply: Callable[[State, M, Args], list[Shown] | None] | None


_MUST, _MAY, _NOT = Need.MUST, Need.MAY, Need.MUST_NOT

_Action = Callable[[State, M, Args], "list[Shown] | None"]
_Test = Callable[[State, M, Args], bool]

#         event                   M      P      G      ready                        apply
_TABLE: Final[tuple[tuple[str, Need, Need, Need, _Test | None, _Action | None], ...]] = (
    ("ProcsChange", _MUST, _MUST, _MUST, None, None),
    ("ProcStart", _MUST, _NOT, _MAY, actions.proc_start_ready, actions.proc_start),
    ("ProcStop", _MUST, _MUST, _MAY, None, actions.proc_stop),
    ("ProcSteal", _MUST, _MAY, _MAY, actions.proc_steal_ready, actions.proc_steal),
    ("ProcStatus", _MAY, _MAY, _MAY, None, actions.proc_status),
    ("GoCreate", _MUST, _MUST, _MAY, None, actions.go_create_of("GoCreate", _RUNNABLE)),
    ("GoCreateBlocked", _MUST, _MUST, _MAY, None, actions.go_create_of("GoCreateBlocked", _WAITING)),
    ("GoCreateSyscall", _MUST, _MAY, _NOT, None, actions.go_create_syscall),
    ("GoStart", _MUST, _MUST, _NOT, actions.go_start_ready, actions.go_start),
    ("GoDestroy", _MUST, _MUST, _MUST, None, actions.go_destroy),
    ("GoDestroySyscall", _MUST, _MAY, _MUST, None, actions.go_destroy_syscall),
    ("GoStop", _MUST, _MUST, _MUST, None, actions.go_stop),
    ("GoBlock", _MUST, _MUST, _MUST, None, actions.go_block),
    ("GoUnblock", _MAY, _MAY, _MAY, actions.go_waits, actions.go_unblock),
    ("GoSwitch", _MUST, _MUST, _MUST, actions.go_switch_ready, actions.go_switch_of("GoSwitch")),
    ("GoSwitchDestroy", _MUST, _MUST, _MUST, actions.go_switch_ready, actions.go_switch_of("GoSwitchDestroy")),
    ("GoSyscallBegin", _MUST, _MUST, _MUST, None, actions.syscall_begin),
    ("GoSyscallEnd", _MUST, _MUST, _MUST, None, actions.syscall_end),
    ("GoSyscallEndBlocked", _MUST, _MAY, _MUST, actions.syscall_end_blocked_ready, actions.syscall_end_blocked),
    ("GoStatus", _MAY, _MAY, _MAY, None, actions.go_status_of("GoStatus")),
    ("GoStatusStack", _MAY, _MAY, _MAY, None, actions.go_status_of("GoStatusStack")),
    ("STWBegin", _MUST, _MUST, _MUST, None, actions.stw_begin),
    ("STWEnd", _MUST, _MUST, _MUST, None, actions.stw_end),
    ("GCActive", _MAY, _MAY, _MAY, actions.gc_active_ready, actions.gc_active),
    ("GCBegin", _MAY, _MAY, _MAY, actions.gc_begin_ready, actions.gc_begin),
    ("GCEnd", _MUST, _MUST, _MUST, actions.gc_end_ready, actions.gc_end),
    ("GCSweepActive", _MAY, _MAY, _MAY, None, actions.sweep_active),
    ("GCSweepBegin", _MUST, _MUST, _MAY, None, actions.sweep_begin),
    ("GCSweepEnd", _MUST, _MUST, _MAY, None, actions.sweep_end),
    ("GCMarkAssistActive", _MAY, _MAY, _MAY, None, actions.assist_active),
    ("GCMarkAssistBegin", _MUST, _MUST, _MUST, None, actions.assist_begin),
    ("GCMarkAssistEnd", _MUST, _MUST, _MUST, None, actions.assist_end),
    ("HeapAlloc", _MUST, _MUST, _MAY, None, None),
    ("HeapGoal", _MUST, _MUST, _MAY, None, None),
    ("GoLabel", _MUST, _MUST, _MUST, None, None),
    ("UserTaskBegin", _MUST, _MUST, _MUST, None, actions.task_begin),
    ("UserTaskEnd", _MUST, _MUST, _MUST, None, actions.task_end),
    ("UserRegionBegin", _MUST, _MUST, _MUST, None, actions.region_begin),
    ("UserRegionEnd", _MUST, _MUST, _MUST, None, actions.region_end),
    ("UserLog", _MUST, _MUST, _MUST, None, None),
)

RULES: Final[dict[str, Rule]] = {row[0]: Rule(spec.BY_NAME[row[0]], *row[1:]) for row in _TABLE}

RULES_OF: Final[dict[int, dict[bytes, Rule]]] = {
    header.minor: {bytes([rule.spec.number]): rule for rule in RULES.values() if header.knows(rule.spec)}
    for header in spec.HEADERS.values()
}
"""Per header, by the event's byte in the file."""


def advance(state: State, rule: Rule, m: M, args: Args) -> Sequence[Shown] | None:
    """Done: what is shown instead of the plain event in the context before it, mostly nothing.

    Not yet: None. Broken: raises Broken.
    """
    if rule.ready is not None and not rule.ready(state, m, args):
        return None
    if rule.p and (m.p < 0) == (rule.p > 0):
        raise Broken("its M has no P" if rule.p > 0 else f"its M has P {m.p} already")
    if rule.g and (m.g < 0) == (rule.g > 0):
        raise Broken("its M runs no G" if rule.g > 0 else f"its M runs G {m.g} already")
    if rule.m and m.id == _NONE:
        raise Broken("it needs an M")
    if rule.apply is None:
        return ()
    return rule.apply(state, m, args) or ()


def why_not(state: State, rule: Rule, m: M, args: Args) -> str:
    """For a message: what an event that cannot go on waits for."""
    name = rule.spec.name
    kind: str
    want: GoStatus | ProcStatus
    found: G | P | None
    if name in ("GoStart", "GoUnblock", "GoSwitch", "GoSwitchDestroy"):
        kind, want = "G", _RUNNABLE if name == "GoStart" else _WAITING
        found = state.gs.get(args[0])
    elif name in ("ProcStart", "ProcSteal"):
        kind, want = "P", _P_IDLE if name == "ProcStart" else _P_SYSCALL
        found = state.ps.get(args[0])
        if name == "ProcStart" and m.p != _NONE:
            return f"its M has P {m.p} already"
    elif name == "GoSyscallEndBlocked":
        return f"P {m.p} of its M is still in the syscall"
    else:
        return f"the collection before it is {state.gc_seq}, it is {args[0]}"
    if found is None:
        return f"{kind} {args[0]} does not exist"
    if found.status != want:
        return f"{kind} {args[0]} is {type(want)(found.status).name.lower()}, not {want.name.lower()}"
    if found.gen != state.gen:
        return f"{kind} {args[0]} has no status in this generation"
    return f"the sequence number of {kind} {args[0]} is {found.seq}, {args[1]} does not follow"
