"""Losses: what becomes of the units of a worker that has died.

One that had begun fails with WorkerLostError; the others are sent again, unless so many workers have died about to
begin one that it is to blame. Of the dispatcher's thread. Knows slots and units, and nothing of results.
"""

from __future__ import annotations

import signal
from typing import NamedTuple

from pooltrace.errors import WorkerLostError, describe_exit
from pooltrace.pool.jobs import Unit
from pooltrace.pool.slots import Slot
from pooltrace.tracer import machine

MOST_DEATHS = 5  # of workers that were about to begin a unit


class Verdict(NamedTuple):
    """What has become of them; and how the worker ended, in words."""

    failed: dict[Unit, WorkerLostError]
    again: list[Unit]  # in their order
    begun: Unit | None
    how: str


def judge(slot: Slot, expected: bool) -> Verdict:
    """Of a dead worker that was heard to the end. `expected`: it was to leave, and is to blame no unit for that."""
    begun, waiting = slot.unanswered()
    how = _how_it_ended(slot)
    if waiting and not begun and not expected:
        waiting[0].deaths += 1  # it may have died of reading it
    hopeless = [unit for unit in waiting[:1] if unit.deaths >= MOST_DEATHS]
    failed = {unit: _lost(slot, unit, how) for unit in (*begun, *hopeless)}
    for unit in hopeless:
        unit.cancel()
    return Verdict(failed, waiting[len(hopeless) :], begun[0] if begun else None, how)


def _how_it_ended(slot: Slot) -> str:
    assert slot.process is not None
    status = slot.exit_status()
    short = status == -signal.SIGKILL and _OomKills.explain(slot.oom_kills)
    return describe_exit(slot.process.pid or 0, status) + (" (out of memory)" if short else "")


def _lost(slot: Slot, unit: Unit, how: str) -> WorkerLostError:
    """The error of a unit that died with its worker."""
    assert slot.process is not None
    what = unit.job.name + unit.describe()
    if unit.deaths >= MOST_DEATHS:
        text = f"{unit.deaths} workers died before they could begin {what}; of the last, {how}"
    else:
        text = f"worker {how} while it ran {what}"
    code = slot.process.exitcode
    number = -code if code is not None and code < 0 else None
    return WorkerLostError(text, pid=slot.process.pid or 0, signal=number, exitcode=None if number else code)


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
