"""Random programs: pools, jobs, threads, errors, kills, starts and stops; each trace is held against what was noted.

POOLTRACE_SEED is the first program's seed (printed), POOLTRACE_RANDOM how many there are. Those that fail are kept in
POOLTRACE_ARTIFACTS, where it is set.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gotool
import pytest
import randomcheck
import randomplan
from pieces import SEED
from randomitems import DEADLY, FAILING, HARMLESS, Item
from randomplan import Job, Plan, PoolPlan, TracePlan

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "random_programs.py"
COUNT = int(os.environ.get("POOLTRACE_RANDOM", "50"))
LIMIT = 240.0 * (COUNT + 1)  # each program and its judge have limits of their own


def test_random_programs(tmp_path: Path) -> None:
    gotool.require_go()
    keep = Path(os.environ.get("POOLTRACE_ARTIFACTS") or tmp_path) / "random"
    words = [sys.executable, str(SCRIPT), "--count", str(COUNT), "--seed", str(SEED), "--keep", str(keep)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a program leaves that does a little of much."""
    directory = tmp_path_factory.mktemp("left")
    job = Job(1, "map", "work", [Item(number, (("spin", 10),)) for number in range(1, 9)], 2)
    pool = PoolPlan("multiprocessing", "fork", 2, None, None, [[job]], [], "close", True)
    trace = TracePlan("1.26", 1.0, 0.0, False, "main", "main")
    steps = [("start", 0), ("make", 0), ("end", 0), ("stop", 0)]
    words = [sys.executable, "-c", RUN, str(directory), repr(Plan(1, [pool], [trace], [], [], steps))]
    subprocess.run(words, check=True, cwd=SCRIPT.parent.parent / "tests")
    return directory


RUN = """
import os, pathlib, sys
import randomitems, randomprogram
from randomplan import *
directory = os.environ[randomitems.NOTES] = sys.argv[1]
program = randomprogram.Program(eval(sys.argv[2]), pathlib.Path(directory))
program.run()
sys.exit(bool(program.surprises.lines))
"""


def change_notes(directory: Path, change: Callable[[list[list[str]]], object]) -> None:
    for path in directory.glob("notes.*"):
        lines = [line.split() for line in path.read_text().splitlines()]
        change(lines)
        path.write_text("".join(" ".join(line) + "\n" for line in lines))


def later(lines: list[list[str]]) -> None:
    lines[-1][3] = str(int(lines[-1][3]) + 10_000_000)


def rename(lines: list[list[str]]) -> None:
    lines[0][4] = lines[1][4] = "randomitems.spread"


def move(lines: list[list[str]]) -> None:
    """The first item, as if it had run before the trace's first region."""
    lines[0][3] = lines[1][3] = str(int(lines[0][3]) - 1_000_000)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: None, None),
        (later, "ended before its item"),
        (rename, "was noted in it"),
        (move, "no item was noted in it"),
        (lambda lines: lines.pop(), "its process died in it, its loss is told 0 times"),
        (lambda lines: lines.__delitem__(slice(0, 2)), "no item was noted in it"),
        (lambda lines: lines.extend([[*lines[-2][:3], str(int(lines[-1][3]) + 5), lines[-2][4]]]), "has no region"),
    ],
)
def test_the_judge_sees_what_is_untrue(left: Path, tmp_path: Path, change: Any, says: str | None) -> None:
    gotool.require_go()
    directory = Path(shutil.copytree(left, tmp_path / "changed"))
    change_notes(directory, change)
    faults = randomcheck.judge(directory)
    assert (faults == []) == (says is None), faults
    assert says is None or any(says in fault for fault in faults), faults


@pytest.mark.parametrize("name", ["items", "jobs", "workers_lost", "bytes", "lost_events"])
def test_the_judge_sees_a_wrong_summary(left: Path, tmp_path: Path, name: str) -> None:
    gotool.require_go()
    directory = Path(shutil.copytree(left, tmp_path / "changed"))
    known = json.loads((directory / "program.json").read_text())
    known["traces"][0]["summary"][name] += 1
    (directory / "program.json").write_text(json.dumps(known))
    (fault,) = randomcheck.judge(directory)
    assert f"the summary has {name}=" in fault


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
