"""Random programs: pools, jobs, threads, errors, kills, starts and stops; each trace is held against what was noted.

POOLTRACE_SEED is the first program's seed (printed), POOLTRACE_RANDOM how many there are. Those that fail are kept in
POOLTRACE_ARTIFACTS, where it is set.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gotool
import randomplan
from pieces import SEED
from randomitems import DEADLY, FAILING, HARMLESS

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "random_programs.py"
COUNT = int(os.environ.get("POOLTRACE_RANDOM", "50"))


def test_random_programs(tmp_path: Path) -> None:
    gotool.require_go()
    keep = Path(os.environ.get("POOLTRACE_ARTIFACTS") or tmp_path) / "random"
    words = [sys.executable, str(SCRIPT), "--count", str(COUNT), "--seed", str(SEED), "--keep", str(keep)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_plan_is_the_same_for_the_same_seed() -> None:
    assert randomplan.draw(SEED) == randomplan.draw(SEED)
    assert randomplan.draw(SEED) != randomplan.draw(SEED + 1)


def test_plans_have_everything() -> None:
    """What a random program may do, does come up within the number that CI runs at night."""
    plans = [randomplan.draw(seed) for seed in range(500)]
    pools = [pool for plan in plans for pool in plan.pools]
    jobs = [job for pool in pools for jobs in pool.submitters for job in jobs]
    combinations = {(p.face, p.method) for p in pools}
    assert combinations == {(face, method) for face in randomplan.FACES for method in randomplan.METHODS}
    traces = {(t.header, t.period) for plan in plans for t in plan.traces}
    assert traces == {(header, period) for header in randomplan.HEADERS for period in randomplan.PERIODS}
    assert {job.call for job in jobs} == set(randomplan.CALLS)
    acts = {act for job in jobs for item in job.items for act, _ in item.acts}
    assert acts == {*HARMLESS, *FAILING, *DEADLY}
