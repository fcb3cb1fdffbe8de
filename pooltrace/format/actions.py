"""What each event waits for and does to the states: the functions behind the table in ``rules``.

``*_ready`` says whether an event's turn has come ('not yet' otherwise). The others change the state, or raise Broken;
they return what is shown where that is not just the event in the context before it. The rules are those of Go's
``internal/trace/order.go``. They are a little stricter where Go would panic later or take a number for another: a
state of 0 or over 255, a P or G with the number that stands for none, an STW range whose name is not in the generation
that ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal

from pooltrace.format import spec
from pooltrace.format.raw import signed
from pooltrace.format.spec import EventSpec, GoStatus, ProcStatus
from pooltrace.format.states import Args, Broken, G, M, P, Shown, State

_NONE: Final = spec.NONE
_RUNNABLE, _RUNNING, _SYSCALL, _WAITING = GoStatus.RUNNABLE, GoStatus.RUNNING, GoStatus.SYSCALL, GoStatus.WAITING
_P_RUNNING, _P_IDLE, _P_SYSCALL, _P_ABANDONED = (
    ProcStatus.RUNNING,
    ProcStatus.IDLE,
    ProcStatus.SYSCALL,
    ProcStatus.SYSCALL_ABANDONED,
)


def _status(kind: type[GoStatus] | type[ProcStatus], value: int) -> int:
    if value > max(kind) or value < 1:
        raise Broken(f"there is no status {value}")
    return value


def _real(kind: str, number: int) -> None:
    if number >> 63:
        raise Broken(f"{kind} {signed(number)} stands for none")


def _name(kind: type[GoStatus] | type[ProcStatus], value: int) -> str:
    return kind(value).name.lower()


def _running(state: State, m: M, want: GoStatus = _RUNNING) -> G:
    """The G of the M, which must be in that state."""
    g = state.gs.get(m.g)
    if g is None:
        raise Broken(f"G {m.g} does not exist")
    if g.status != want:
        raise Broken(f"G {m.g} is {_name(GoStatus, g.status)}, not {want.name.lower()}")
    return g


def _proc(state: State, number: int) -> P:
    p = state.ps.get(number)
    if p is None:
        raise Broken(f"P {number} has no status so far")
    return p


def _string(state: State, number: int) -> bytes:
    text = state.strings.get(number)
    if text is None:
        raise Broken(f"string {number} is not in the table")
    return text


def _new_g(state: State, number: int, status: GoStatus, event: str, m: M) -> None:
    _real("G", number)
    if number in state.gs:
        raise Broken(f"G {number} exists already")
    if state.seen.add(number):
        why = f"generation {state.gen}, M {m.id}, {event}: G {number} is created a second time; Go takes both for one"
        state.misreads.add(why, event=event, gen=state.gen, m=m.id)
    state.created += 1
    state.gs[number] = G(status, state.gen)


# --- Ps -------------------------------------------------------------------------------------------


def _takes(state: State, m: M, event: str, what: Literal["G", "P"], number: int) -> None:
    """A status says that the M has this G or P. What is then shown on two Ms, or as going on nowhere, is a misread."""
    resource: G | P = state.gs[number] if what == "G" else state.ps[number]
    before, had = state.ms.get(resource.m), m.g if what == "G" else m.p
    whys = []
    if m.id == _NONE and resource.status != _P_SYSCALL:
        whys.append(f"{what} {number} runs on no M")
    if before is not None and before is not m and (before.g if what == "G" else before.p) == number:
        whys.append(f"{what} {number} is on M {before.id} all the same")
    if had not in (_NONE, number):
        whys.append(f"it has {what} {number} all at once, and {what} {had} goes on nowhere")
    for why in whys:
        where = f"generation {state.gen}, M {m.id}, {event}"
        state.misreads.add(f"{where}: {why}", event=event, gen=state.gen, m=m.id)
    resource.m = m.id
    if what == "G":
        m.g = number
    else:
        m.p = number


def proc_status(state: State, m: M, args: Args) -> list[Shown] | None:
    number, status = args
    _real("P", number)
    _status(ProcStatus, status)
    p = state.ps.get(number)
    shown = None
    if p is None:
        p = state.ps[number] = P(status, state.gen)
    elif status == _P_ABANDONED and p.status == _P_SYSCALL:
        # Nothing is lost: the M that is in the syscall is known, and the event belongs to it.
        owner = next((other for other in state.ms.values() if other.p == number), None)
        if owner is None:
            raise Broken(f"no M has P {number}, which is about to be stolen")
        shown = [Shown(owner.id, number, owner.g, spec.BY_NAME["ProcStatus"], args)]
    elif p.status != status:
        raise Broken(f"P {number} is {_name(ProcStatus, p.status)}, not {_name(ProcStatus, status)}")
    p.gen, p.seq = state.gen, 0
    if args[1] in (_P_RUNNING, _P_SYSCALL):
        _takes(state, m, "ProcStatus", "P", number)
    return shown


def proc_start_ready(state: State, m: M, args: Args) -> bool:
    p = state.ps.get(args[0])
    return p is not None and p.status == _P_IDLE and p.follows(state.gen, args[1]) and m.p == _NONE


def proc_start(state: State, m: M, args: Args) -> None:
    p = state.ps[args[0]]
    p.status, p.seq, p.m = _P_RUNNING, args[1], m.id
    m.p = args[0]


def proc_stop(state: State, m: M, args: Args) -> None:
    p = _proc(state, m.p)
    if p.status not in (_P_RUNNING, _P_SYSCALL):
        raise Broken(f"P {m.p} is {_name(ProcStatus, p.status)}, neither running nor in a syscall")
    g = state.gs.get(m.g)
    if g is not None and g.status == _RUNNING:  # in readers' eyes it runs on, on no P
        why = f"generation {state.gen}, M {m.id}, ProcStop: P {m.p} stops while G {m.g} runs on it"
        state.misreads.add(why, event="ProcStop", gen=state.gen, m=m.id)
    p.status = _P_IDLE
    m.p = _NONE


def proc_steal_ready(state: State, m: M, args: Args) -> bool:
    p = state.ps.get(args[0])
    return p is not None and p.status in (_P_SYSCALL, _P_ABANDONED) and p.follows(state.gen, args[1])


def proc_steal(state: State, m: M, args: Args) -> None:
    number, seq, victim = args
    p = state.ps[number]
    abandoned = p.status == _P_ABANDONED
    p.status, p.seq = _P_IDLE, seq
    if abandoned:
        return
    other = m if signed(victim) == m.id else state.ms.get(signed(victim))
    if other is None:
        raise Broken(f"M {signed(victim)}, which loses P {number}, does not exist")
    if other.p != number:
        raise Broken(f"M {other.id} should lose P {number}, but has {other.p}")
    other.p = _NONE


# --- Gs -------------------------------------------------------------------------------------------


def go_status_of(event: str) -> Callable[[State, M, Args], list[Shown] | None]:
    row = spec.BY_NAME[event]

    def apply(state: State, m: M, args: Args) -> list[Shown] | None:
        number, named, status = args[0], signed(args[1]), _status(GoStatus, args[2])
        _real("G", number)
        g = state.gs.get(number)
        if g is not None:
            if g.status != status:
                raise Broken(f"G {number} is {_name(GoStatus, g.status)}, not {_name(GoStatus, status)}")
            g.gen, g.seq = state.gen, 0
        elif state.first:
            state.gs[number] = G(status, state.gen)
            state.seen.add(number)
        else:
            raise Broken(f"G {number} is new, after the first generation")
        if status == _RUNNING:
            _takes(state, m, event, "G", number)
        elif status == _SYSCALL:
            return _syscall_status(state, m, number, named, row, args)
        return None

    return apply


def _syscall_status(state: State, m: M, number: int, named: int, row: EventSpec, args: Args) -> list[Shown] | None:
    if named == _NONE:
        raise Broken(f"G {number} is in a syscall without an M")
    if named == m.id:
        if not state.first and m.g != number:
            raise Broken(f"G {number} is in a syscall of M {named}, which has G {m.g}")
        _takes(state, m, row.name, "G", number)
        return None
    other = state.ms.get(named)
    if other is None:
        # It has sat in this syscall on an M that says nothing itself.
        _takes(state, state.m(named), row.name, "G", number)
        return [Shown(named, m.p, m.g, row, args)]
    if other.g != number:
        raise Broken(f"G {number} is in a syscall of M {named}, which has G {other.g}")
    return [Shown(named, m.p, number, row, args)]


def go_create_of(event: str, status: GoStatus) -> Callable[[State, M, Args], None]:
    def apply(state: State, m: M, args: Args) -> None:
        if m.g in state.gs:
            _running(state, m)
        _new_g(state, args[0], status, event, m)

    return apply


def go_create_syscall(state: State, m: M, args: Args) -> None:
    _new_g(state, args[0], _SYSCALL, "GoCreateSyscall", m)
    m.g, state.gs[args[0]].m = args[0], m.id


def go_start_ready(state: State, m: M, args: Args) -> bool:
    g = state.gs.get(args[0])
    return g is not None and g.status == _RUNNABLE and g.gen == state.gen and g.seq + 1 == args[1]


def go_start(state: State, m: M, args: Args) -> None:
    g = state.gs[args[0]]
    g.status, g.seq, g.m = _RUNNING, args[1], m.id
    m.g = args[0]


def go_destroy(state: State, m: M, args: Args) -> None:
    _running(state, m)
    del state.gs[m.g]
    m.g = _NONE


def go_stop(state: State, m: M, args: Args) -> None:
    _running(state, m).status = _RUNNABLE
    m.g = _NONE


def go_block(state: State, m: M, args: Args) -> None:
    _running(state, m).status = _WAITING
    m.g = _NONE


def go_waits(state: State, m: M, args: Args) -> bool:
    g = state.gs.get(args[0])
    return g is not None and g.status == _WAITING and g.gen == state.gen and g.seq + 1 == args[1]


def go_unblock(state: State, m: M, args: Args) -> None:
    g = state.gs[args[0]]
    g.status, g.seq = _RUNNABLE, args[1]


_IMPLIED_BLOCK: Final = replace(spec.BY_NAME["GoBlock"], implied=True)
_IMPLIED_DESTROY: Final = replace(spec.BY_NAME["GoDestroy"], implied=True)
_IMPLIED_START: Final = replace(spec.BY_NAME["GoStart"], implied=True)
_IMPLIED_STEAL: Final = replace(spec.BY_NAME["ProcSteal"], implied=True)


def go_switch_ready(state: State, m: M, args: Args) -> bool:
    if m.p < 0 or m.g < 0:
        raise Broken("its M has no P" if m.p < 0 else "its M runs no G")
    _running(state, m)
    return go_waits(state, m, args)


def go_switch_of(event: str) -> Callable[[State, M, Args], list[Shown]]:
    """One event for three: the next G wakes up, this one blocks or ends, the next one starts."""
    row = spec.BY_NAME[event]

    def apply(state: State, m: M, args: Args) -> list[Shown]:
        shown = [Shown(m.id, m.p, m.g, row, args)]
        if event == "GoSwitch":
            state.gs[m.g].status = _WAITING
            shown.append(Shown(m.id, m.p, m.g, _IMPLIED_BLOCK, (0, 0)))
        else:
            del state.gs[m.g]
            shown.append(Shown(m.id, m.p, m.g, _IMPLIED_DESTROY, ()))
        shown.append(Shown(m.id, m.p, _NONE, _IMPLIED_START, args))
        go_start(state, m, args)
        return shown

    return apply


def syscall_begin(state: State, m: M, args: Args) -> None:
    g = _running(state, m)
    p = _proc(state, m.p)
    if not p.follows(state.gen, args[0]):
        raise Broken(f"the sequence number of P {m.p} is {p.seq} (generation {p.gen}), {args[0]} does not follow")
    g.status, p.status, p.seq = _SYSCALL, _P_SYSCALL, args[0]


def syscall_end(state: State, m: M, args: Args) -> None:
    g = _running(state, m, _SYSCALL)
    p = _proc(state, m.p)
    if p.status != _P_SYSCALL:
        raise Broken(f"P {m.p} is {_name(ProcStatus, p.status)}, not in a syscall")
    g.status, p.status = _RUNNING, _P_RUNNING


def syscall_end_blocked_ready(state: State, m: M, args: Args) -> bool:
    return m.p == _NONE or _proc(state, m.p).status != _P_SYSCALL


def syscall_end_blocked(state: State, m: M, args: Args) -> None:
    _running(state, m, _SYSCALL).status = _RUNNABLE
    m.g = _NONE


def go_destroy_syscall(state: State, m: M, args: Args) -> list[Shown]:
    _running(state, m, _SYSCALL)
    shown = [Shown(m.id, m.p, m.g, spec.BY_NAME["GoDestroySyscall"], args)]
    if m.p != _NONE:
        p = _proc(state, m.p)
        if p.status != _P_SYSCALL:
            raise Broken(f"P {m.p} is {_name(ProcStatus, p.status)}, not in a syscall")
        p.status = _P_ABANDONED
        shown.insert(0, Shown(m.id, m.p, m.g, _IMPLIED_STEAL, (m.p, 0, 0)))
    del state.gs[m.g]
    m.g = m.p = _NONE
    return shown


# --- ranges ---------------------------------------------------------------------------------------


def stw_begin(state: State, m: M, args: Args) -> None:
    _own(state, m).begin_range("STWBegin", args[0], _string(state, args[0]))


def stw_end(state: State, m: M, args: Args) -> None:
    kind, text = _own(state, m).end_range("STWBegin")
    if kind not in state.strings:
        raise Broken(f"its kind, string {kind} of an earlier generation, is not in the table: Go's reader would panic")
    if state.strings[kind] != text:
        why = f"generation {state.gen}, M {m.id}, STWEnd: began in an earlier generation; Go shows another kind for it"
        state.misreads.add(why, event="STWEnd", gen=state.gen, m=m.id)


def _own(state: State, m: M) -> G:
    g = state.gs.get(m.g)
    if g is None:
        raise Broken(f"G {m.g} does not exist")
    return g


def assist_begin(state: State, m: M, args: Args) -> None:
    _own(state, m).begin_range("GCMarkAssistBegin")


def assist_end(state: State, m: M, args: Args) -> None:
    _own(state, m).end_range("GCMarkAssistBegin")


def assist_active(state: State, m: M, args: Args) -> None:
    g = state.gs.get(args[0])
    if g is None:
        raise Broken(f"G {args[0]} does not exist")
    g.active_range("GCMarkAssistBegin", state.first)


def sweep_begin(state: State, m: M, args: Args) -> None:
    _proc(state, m.p).begin_range("GCSweepBegin")


def sweep_end(state: State, m: M, args: Args) -> None:
    _proc(state, m.p).end_range("GCSweepBegin")


def sweep_active(state: State, m: M, args: Args) -> None:
    _proc(state, args[0]).active_range("GCSweepBegin", state.first)


def _need_all(m: M) -> None:
    if m.p < 0 or m.g < 0:
        raise Broken("its M has no P" if m.p < 0 else "its M runs no G")


def gc_active_ready(state: State, m: M, args: Args) -> bool:
    return state.first or args[0] == state.gc_seq + 1


def gc_active(state: State, m: M, args: Args) -> None:
    if state.first:
        if state.gc_running is not None:
            raise Broken("it is not the first event of the collector in the first generation")
        state.gc_running = True
    elif not state.gc_running:
        raise Broken("no collection is under way")
    else:
        _need_all(m)
    state.gc_seq = args[0]


def gc_begin_ready(state: State, m: M, args: Args) -> bool:
    return state.gc_running is None or args[0] == state.gc_seq + 1


def gc_begin(state: State, m: M, args: Args) -> None:
    if state.gc_running:
        raise Broken("a collection is under way already")
    if state.gc_running is not None:
        _need_all(m)
    state.gc_seq, state.gc_running = args[0], True


def gc_end_ready(state: State, m: M, args: Args) -> bool:
    return args[0] == state.gc_seq + 1


def gc_end(state: State, m: M, args: Args) -> None:
    if not state.gc_running:
        raise Broken("no collection is under way")
    state.gc_seq, state.gc_running = args[0], False


# --- annotations ----------------------------------------------------------------------------------


def task_begin(state: State, m: M, args: Args) -> None:
    if args[0] in state.tasks:
        raise Broken(f"task {args[0]} is under way already")
    state.tasks[args[0]] = _string(state, args[2])
    state.tasks_begun += 1


def task_end(state: State, m: M, args: Args) -> None:
    state.tasks.pop(args[0], None)


def region_begin(state: State, m: M, args: Args) -> None:
    _own(state, m).regions.append((args[0], _string(state, args[1])))


def region_end(state: State, m: M, args: Args) -> None:
    regions = _own(state, m).regions
    ended = (args[0], _string(state, args[1]))
    if not regions:
        return  # it began before the trace did
    if regions[-1] != ended:
        task, name = regions[-1]
        raise Broken(
            f"it ends {_show(ended[1])} of task {ended[0]}, but the innermost region is {_show(name)} of task {task}"
        )
    regions.pop()


def _show(name: bytes) -> str:
    return ascii(name.decode("utf-8", "replace"))
