"""Losses: what becomes of the units of a worker that has died, and of one that takes too long.

One that had begun fails with WorkerLostError, or runs again if it may (`retries`). The others are sent again, unless so
many workers have died about to begin one that it is to blame. One that takes longer than `task_timeout` has its worker
killed; it fails, and no other does: first all that waits there is taken back. Of the dispatcher's thread. Knows slots
and units, and nothing of results.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pooltrace.errors import TaskTimeoutError, WorkerLostError, describe_exit
from pooltrace.pool import _channel
from pooltrace.pool.jobs import Unit
from pooltrace.pool.slots import Slot
from pooltrace.tracer import machine

MOST_DEATHS = 5  # of workers that were about to begin a unit


class Verdict(NamedTuple):
    """What has become of them; and how the worker ended, in words."""

    failed: dict[Unit, WorkerLostError]
    retried: list[Unit]  # they had begun
    waiting: list[Unit]  # in their order
    begun: Unit | None
    how: str


def judge(slot: Slot, expected: bool) -> Verdict:
    """Of a dead worker that was heard to the end. `expected`: it was to leave, and is to blame no unit for that."""
    begun, waiting = slot.unanswered()
    how = _how_it_ended(slot)
    if waiting and not begun and not expected and slot.late is None:
        waiting[0].deaths += 1  # it may have died of reading it
    hopeless = [unit for unit in waiting[:1] if unit.deaths >= MOST_DEATHS]
    retried = [unit for unit in begun if unit is not slot.late and unit.losses < slot.plan.retries]
    failed = {unit: _lost(slot, unit, how) for unit in (*begun, *hopeless) if unit not in retried}
    for unit in hopeless:
        unit.cancel()
    return Verdict(failed, retried, waiting[len(hopeless) :], begun[0] if begun else None, how)


def running(slots: Iterable[Slot]) -> Iterator[tuple[Slot, Unit, float]]:
    """Which units have begun and are not answered, each with its slot and the seconds that it has taken so far."""
    for slot in slots:
        found = slot.end.running() if slot.end is not None else None
        if found is not None:
            yield slot, found[0], found[1] / 1e9


def kill_late(slot: Slot, unit: Unit) -> list[Unit]:
    """Ends the worker of a unit that takes too long; returns the units that waited there. What it has answered by now
    has to be taken before."""
    taken = slot.take_back(_channel.WINDOW)
    found = slot.end.running() if slot.end is not None else None
    if found is not None and found[0] is unit:
        slot.late = unit
        slot.kill()
    return taken


def _how_it_ended(slot: Slot) -> str:
    assert slot.process is not None
    if slot.late is not None:
        return f"pid {slot.process.pid} was killed, since a unit took longer than {slot.plan.task_timeout:g} s"
    status = slot.exit_status()
    short = status == -signal.SIGKILL and _OomKills.explain(slot.oom_kills)
    return describe_exit(slot.process.pid or 0, status) + (" (out of memory)" if short else "")


def _lost(slot: Slot, unit: Unit, how: str) -> WorkerLostError:
    """The error of a unit that died with its worker."""
    assert slot.process is not None
    what = unit.job.name + unit.describe()
    pid = slot.process.pid or 0
    if unit is slot.late:
        text = f"{what} took longer than {slot.plan.task_timeout:g} s; its worker pid {pid} was killed"
        return TaskTimeoutError(text, pid=pid, signal=signal.SIGKILL)
    if unit.deaths >= MOST_DEATHS:
        text = f"{unit.deaths} workers died before they could begin {what}; of the last, {how}"
    else:
        text = f"worker {how} while it ran {what}"
    if unit.losses:
        text += f"; it had been lost {unit.losses} times before" if unit.losses > 1 else "; it had been lost before"
    code = slot.process.exitcode
    number = -code if code is not None and code < 0 else None
    return WorkerLostError(text, pid=pid, signal=number, exitcode=None if number else code)


class _OomKills:
    """Which of the kernel's kills for want of memory explain deaths that were told already."""

    told = 0

    @classmethod
    def explain(cls, before: int) -> bool:
        """Whether one that no other death had explains that of a process which was started when there were so many."""
        before = max(before, cls.told)
        if machine.oom_kills() <= before:
            return False
        cls.told = before + 1
        return True
