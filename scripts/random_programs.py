"""Runs random programs and judges their traces; each failure can be run again from its seed.

Each program (tests/randomprogram.py) is a process in a session of its own and has a directory of its own, which its
judge (tests/randomcheck.py) reads afterwards. A program or a judge that takes longer than the limit has failed: all its
processes are ended by SIGABRT, which makes them tell all their stacks. One line for each failure, with its seed, and
one at the end; the directories of those that failed (traces, notes, output) are kept. Exit status 1 if any did.

    python scripts/random_programs.py --count 500             # seeds from the system's random numbers
    python scripts/random_programs.py --seed 17 --count 1 --again 50
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

import gotool  # noqa: E402 - one of the tests' modules

TOLD = 3.0  # seconds in which processes that hang have to tell their stacks
MOST_SAID = 300  # characters of a failure in its line


class Verdict(NamedTuple):
    """What became of one program. ``why`` is empty if all was well; ``kind`` is the class of the failure."""

    seed: int
    kind: str
    why: str
    kept: Path | None
    seconds: float


def bounded(words: list[str], output: Path, limit: float, seed: int) -> int | None:
    """Runs a command in a session of its own, with its output in a file; its status, None if it took too long."""
    environment = os.environ | {"POOLTRACE_SEED": str(seed), "PYTHONUNBUFFERED": "1"}
    with output.open("ab") as file:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            cwd=output.parent,
        )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        _signal(process.pid, signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TOLD)
        return None
    finally:
        _signal(process.pid, signal.SIGKILL)
        process.wait()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def run_one(seed: int, directory: Path, limit: float) -> tuple[str, str]:
    """Runs and judges one program. Returns the kind of its failure and what to say of it; empty if there was none."""
    output, verdict = directory / "output", directory / "verdict"
    words = [sys.executable, "-X", "faulthandler", str(TESTS / "randomprogram.py"), str(seed), str(directory)]
    status = bounded([*words, str(limit + 60)], output, limit, seed)
    if status is None:
        return "hang", f"the program was not done after {limit:g} s (see output)"
    said = output.read_text(errors="replace")
    if not (directory / "program.json").exists():
        return "crash", f"the program ended with status {status}: {_last_line(said)}"
    status_of_judge = bounded([sys.executable, str(TESTS / "randomcheck.py"), str(directory)], verdict, limit, seed)
    if status_of_judge is None:
        return "slow", f"the judge was not done after {limit:g} s"
    lines = verdict.read_text(errors="replace").splitlines()
    faults = [line.removeprefix("fault: ") for line in lines if line.startswith("fault: ")]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        return "untrue", faults[0] + more
    if status_of_judge:
        return "judge", f"the judge failed: {lines[-1] if lines else 'it says nothing'}"
    if status:
        return "crash", f"the program ended with status {status}: {_last_line(said)}"
    complaints = [line for line in said.splitlines() if line.startswith("pooltrace:")]
    return ("complaint", complaints[0]) if complaints else ("", "")


def _last_line(text: str) -> str:
    """The last line, or where a fatal error is told, that one."""
    lines = [line for line in text.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    return (fatal or lines or ["it says nothing"])[-1]


def verdict_on(seed: int, keep: Path, limit: float) -> Verdict:
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix=f"pooltrace-random-{seed}-"))
    kept = None
    try:
        kind, why = run_one(seed, directory, limit)
        if kind:
            keep.mkdir(parents=True, exist_ok=True)
            kept = Path(shutil.move(str(directory), _free(keep / str(seed))))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return Verdict(seed, kind, why, kept, time.monotonic() - began)


def _free(path: Path) -> Path:
    """This name, or this name with a number."""
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs random programs and judges their traces.")
    parser.add_argument("--count", type=int, default=100, help="programs (100)")
    parser.add_argument("--seed", type=int, help="of the first; each next one has one more (default: random, printed)")
    parser.add_argument("--again", type=int, default=1, help="how often each is run (1): the threads race anew")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="programs at a time (the CPUs)")
    parser.add_argument("--keep", type=Path, default=Path("random-failures"), help="where failures are kept")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one program, and for its judge (120)")
    options = parser.parse_args()
    try:
        os.environ["POOLTRACE_GOTRACE"] = str(gotool.gotrace())  # found once, not by each judge
    except gotool.NoGo as error:
        print(error, file=sys.stderr)
        return 2
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(1, 1 << 31)
    print(f"{options.count} random programs from --seed {first}", flush=True)
    seeds = [first + i for i in range(options.count) for _ in range(options.again)]
    began, kinds = time.monotonic(), Counter[str]()
    with ThreadPoolExecutor(options.jobs) as runners:
        for verdict in runners.map(lambda seed: verdict_on(seed, options.keep.resolve(), options.timeout), seeds):
            if verdict.kind:
                kinds[verdict.kind] += 1
                print(f"{verdict.kind}: seed {verdict.seed}: {verdict.why[:MOST_SAID]} [{verdict.kept}]", flush=True)
    failed = kinds.total()
    of_them = "".join(f", {count} {kind}" for kind, count in sorted(kinds.items()))
    print(f"{len(seeds)} random programs: {failed} failed{of_them} ({time.monotonic() - began:.0f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
