"""What a random program does, drawn from its seed alone: pools, jobs, traces, troubles, and one order of its steps.

A plan is data: the same for the same seed. What the threads make of it in time is not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from randomitems import DEADLY, FAILING, HARMLESS, Item

FACES = ("multiprocessing", "multiprocess")
METHODS = ("fork", "spawn", "forkserver")
HEADERS = ("1.22", "1.23", "1.25", "1.26")
PERIODS = (0.0, 0.001, 0.02, 1.0)
CALLS = ("map", "map_async", "starmap", "starmap_async", "imap", "imap_unordered", "apply", "apply_async")
FUNCTIONS = ("work", "extended", "Stateful")


@dataclass
class Job:
    """One call. ``feed``: how its items are handed in; ``callback``: none, one, or one that raises."""

    number: int
    call: str
    function: str
    items: list[Item]
    chunksize: int | None
    feed: str = "list"  # list, iterator, broken iterator, unpicklable
    callback: str = "none"  # none, plain, raising
    abandoned: bool = False  # its result is not waited for, or an iterator is left half way
    sound: bool = True  # nothing in it is meant to fail


@dataclass
class Trouble:
    """What a thread of the parent does to a worker of a pool, after some advances (counted, not timed)."""

    what: str  # kill, stop
    worker: int
    before: int  # advances before it
    during: int  # advances until a stopped worker may go on


@dataclass
class PoolPlan:
    face: str
    method: str
    workers: int
    max_tasks: int | None
    initializer: str | None
    submitters: list[list[Job]]
    troubles: list[Trouble]
    end: str  # close, terminate, exit (left to the interpreter)
    patient: bool  # its submitters are done before it is ended

    @property
    def quiet(self) -> bool:
        """Nobody kills its workers, but for its items."""
        return not self.troubles and self.initializer != "prepare_badly"


@dataclass
class TracePlan:
    header: str
    period: float
    slow: float  # seconds that each write of the trace takes: the disk is slow, and holds up the generations
    packed: bool  # into an lz4 frame
    starter: str  # main, thread (one that ends then), clerk (one that stays)
    stopper: str  # the same, or exit


@dataclass
class Plan:
    """``steps``: what the main thread does: (name, number)."""

    seed: int
    pools: list[PoolPlan]
    traces: list[TracePlan]
    advances: list[int]  # one thread each: how often it asks for an advance
    inline: list[Job]  # jobs of the main thread's
    steps: list[tuple[str, int]] = field(default_factory=list)


class _Dice(random.Random):
    def maybe(self, chance: float) -> bool:
        return self.random() < chance

    def few(self, most: int) -> int:
        """1 to most, mostly few."""
        return 1 + int(most * self.random() ** 3)


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    dice = _Dice(seed)
    numbers = iter(range(1, 1 << 30))
    jobs = iter(range(1, 1 << 30))
    storm = dice.maybe(0.25)
    pools = [_pool(dice, jobs, numbers, storm) for _ in range(dice.choice((1, 1, 2)))]
    traces = [_trace(dice) for _ in range(dice.choice((8, 12, 16) if storm else (1, 1, 1, 2, 3)))]
    if dice.maybe(0.05):
        traces[-1].stopper = "exit"
    advances = [dice.choice((5, 30, 120)) for _ in range(dice.choice((0, 0, 1, 2)))]
    inline = [_job(dice, jobs, numbers, False) for _ in range(dice.choice((0, 1, 3)))]
    plan = Plan(seed, pools, traces, advances, inline)
    plan.steps = _storm(dice, plan) if storm else _steps(dice, plan)
    return plan


def _trace(dice: _Dice) -> TracePlan:
    where = ("main", "main", "thread", "clerk")
    period = dice.choice(PERIODS)
    slow = 0.004 if period == 0.0 else dice.choice((0.0, 0.0, 0.0, 0.005))  # else it had 10,000 generations a second
    packed = not slow and dice.maybe(0.2)
    return TracePlan(dice.choice(HEADERS), period, slow, packed, dice.choice(where), dice.choice(where))


def _pool(dice: _Dice, jobs: Iterator[int], numbers: Iterator[int], storm: bool) -> PoolPlan:
    violent = dice.maybe(0.4)  # items may go wrong
    submitters = [
        [_job(dice, jobs, numbers, violent) for _ in range(dice.randrange(1, 9))]
        for _ in range(dice.choice((1, 1, 2, 3)))
    ]
    troubles = []
    if dice.maybe(0.35):
        troubles = [
            Trouble(dice.choice(("kill", "kill", "stop")), dice.randrange(3), dice.few(10), dice.few(20))
            for _ in range(dice.few(4))
        ]
    method = dice.choice(("fork", "fork", *METHODS) if not storm else ("fork",))
    few = (1, 1, 3, None) if storm else (None, None, 1, 3)
    return PoolPlan(
        face=dice.choice(FACES),
        method=method,
        workers=dice.choice((1, 2, 2, 3)),
        max_tasks=dice.choice(few if method == "fork" else (None, None, 10)),  # half a second each
        initializer=dice.choice((None, None, None, "prepare")) if dice.maybe(0.95) else "prepare_badly",
        submitters=submitters,
        troubles=troubles,
        end=dice.choice(("close", "close", "close", "terminate", "terminate")) if dice.maybe(0.96) else "exit",
        patient=dice.maybe(0.5),
    )


def _job(dice: _Dice, jobs: Iterator[int], numbers: Iterator[int], violent: bool) -> Job:
    call = dice.choice(CALLS)
    count = 1 if call.startswith("apply") else dice.choice((0, 1, 5, dice.few(80), dice.few(80)))
    items = [_item(dice, numbers, violent) for _ in range(count)]
    job = Job(
        number=next(jobs),
        call=call,
        function="spread" if call.startswith("starmap") else dice.choice(FUNCTIONS),
        items=items,
        chunksize=dice.choice((None, 1, 2, 7)),
        callback=dice.choice(("none", "plain", "raising")) if call.endswith("_async") else "none",
        abandoned=dice.maybe(0.1),
        sound=all(act in HARMLESS for item in items for act, _ in item.acts),
    )
    if not call.startswith("apply") and items:
        job.feed = dice.choice(("list", "list", "iterator"))
    if violent and dice.maybe(0.1):
        job.feed = "unpicklable" if call.startswith("apply") or dice.maybe(0.5) else "broken iterator"
        job.sound = False
    return job


def _item(dice: _Dice, numbers: Iterator[int], violent: bool) -> Item:
    acts: list[tuple[str, int]] = []
    while dice.maybe(0.3):
        act = dice.choice(tuple(HARMLESS))
        if act.startswith("fork") and dice.maybe(0.7):
            continue  # they take milliseconds
        acts.append((act, dice.few(2000 if act in ("spin", "nap") else 20)))
    if violent and dice.maybe(0.03):
        acts.append((dice.choice(tuple(FAILING)), dice.randrange(3)))
    elif violent and dice.maybe(0.015):
        acts.append((dice.choice(tuple(DEADLY)), dice.randrange(3)))
    load = bytes(dice.choice((100, 40_000, 300_000))) if dice.maybe(0.02) else b""
    return Item(next(numbers), tuple(acts), load)


def _steps(dice: _Dice, plan: Plan) -> list[tuple[str, int]]:
    """A random merge of what has to come in order: each pool's making and end, the traces, and fillers."""
    lines: list[list[tuple[str, int]]] = [
        [("make", i)] + ([("end", i)] if pool.end != "exit" else []) for i, pool in enumerate(plan.pools)
    ]
    starts_and_stops = []
    for i, trace in enumerate(plan.traces):
        starts_and_stops.append(("start", i))
        if trace.stopper != "exit":
            starts_and_stops.append(("stop", i))
    lines.append(starts_and_stops)
    lines += [[("job", i)] for i in range(len(plan.inline))]
    lines += [[("advancer", i)] for i in range(len(plan.advances))]
    for _ in range(dice.randrange(8)):
        lines.append([(dice.choice(("await", "await", "advance")), dice.few(8))])
    steps = []
    while lines:
        line = dice.choice(lines)
        steps.append(line.pop(0))
        lines = [rest for rest in lines if rest]
    if dice.maybe(0.6):  # all within the traces: begin and end with them
        steps = _traces_around(steps)
    if dice.maybe(0.2):  # what asks for advances does not know whether there is a trace
        steps.sort(key=lambda step: step[0] != "advancer")
    return steps


def _storm(dice: _Dice, plan: Plan) -> list[tuple[str, int]]:
    """Traces that start and stop again and again, while workers come and go."""
    steps = [("make", i) for i in range(len(plan.pools))] + [("advancer", i) for i in range(len(plan.advances))]
    inline = iter(range(len(plan.inline)))
    for i, trace in enumerate(plan.traces):
        steps.append(("start", i))
        if dice.maybe(0.5):
            steps.append(dice.choice((("await", 1), ("advance", dice.few(3)), ("job", next(inline, -1)))))
        if trace.stopper != "exit":
            steps.append(("stop", i))
        if dice.maybe(0.2):
            steps.append(("await", 1))
    steps += [("end", i) for i, pool in enumerate(plan.pools) if pool.end != "exit"]
    return [step for step in steps if step != ("job", -1)]


def _traces_around(steps: list[tuple[str, int]]) -> list[tuple[str, int]]:
    first = min(step for step in steps if step[0] == "start")
    last = max((step for step in steps if step[0] in ("start", "stop")), key=lambda step: (step[1], step[0]))
    inner = [step for step in steps if step not in (first, last)]
    return [first, *inner, *([last] if last != first else [])]
