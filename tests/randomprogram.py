"""Runs one random program: ``python tests/randomprogram.py SEED DIRECTORY [SECONDS]``.

What it does is drawn from the seed (randomplan). The traces go into the directory, with the notes of its items and, in
``program.json``, what a judge has to know: of each trace when start had returned and when stop was called
(perf_counter_ns), of each pool when it had ended, of each item to which job it belongs. Exit status 1 if something came
that no plan explains: a wrong result, an error that nobody asked for. After SECONDS all stacks are told, and it ends.

Threads: the main one takes the plan's steps; each pool has one to three submitters and may have a troublemaker; others
ask for advances. Nothing here waits for a time: what waits, waits for jobs to be done, or counts advances.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import randomitems
from randomitems import ASKED, Item
from randomplan import Job, Plan, PoolPlan, Trouble, draw

import pooltrace
from pooltrace import PoolBrokenError, PoolTerminatedError, TaskExitError, WorkerLostError
from pooltrace.tracer import session

SECONDS = 60.0


class Progress:
    """How many jobs are done, and who is still at it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._done = 0  # under _changed
        self._busy = 0  # under _changed: submitters that are not done

    def count(self) -> None:
        with self._changed:
            self._done += 1
            self._changed.notify_all()

    def busy(self, by: int) -> None:
        with self._changed:
            self._busy += by
            self._changed.notify_all()

    def wait_for_more(self, jobs: int) -> None:
        """Until so many more jobs are done, or nobody submits any."""
        with self._changed:
            target = self._done + jobs
            self._changed.wait_for(lambda: self._done >= target or not self._busy)


class Surprises:
    """What no plan explains; one line each."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        threading.excepthook = self._in_thread
        sys.excepthook = lambda kind, error, tb: self._told(kind, error, tb, "a hook")

    def add(self, line: str) -> None:
        print("surprise:", line, file=sys.stderr, flush=True)
        self.lines.append(line)

    def _in_thread(self, args: threading.ExceptHookArgs) -> None:
        if ASKED not in str(args.exc_value):
            self._told(args.exc_type, args.exc_value, args.exc_traceback, args.thread)

    def _told(self, kind: Any, error: Any, tb: Any, where: object) -> None:
        sys.__excepthook__(kind, error, tb)
        self.add(f"{kind.__name__} in {where}: {error}")


class RunningPool:
    """A pool with its threads."""

    def __init__(self, plan: PoolPlan, surprises: Surprises, progress: Progress) -> None:
        self.plan = plan
        self.over = False  # no job is expected to succeed any more
        self.ended: int | None = None
        self._surprises = surprises
        self._progress = progress
        face = pooltrace.StdPool if plan.face == "multiprocessing" else pooltrace.Pool
        context = importlib.import_module(plan.face).get_context(plan.method)
        initializer = getattr(randomitems, plan.initializer) if plan.initializer else None
        self.pool: Any = face(plan.workers, initializer, (), plan.max_tasks, context)
        self.submitters = [threading.Thread(target=self._submit, args=(jobs,)) for jobs in plan.submitters]
        self.troublemaker = threading.Thread(target=self._make_trouble)
        progress.busy(len(self.submitters))
        for thread in (*self.submitters, self.troublemaker):
            thread.start()

    def end(self) -> None:
        """As planned; until all its threads are done."""
        if self.plan.patient:
            self._join(self.submitters)
        self.over = True
        if self.plan.end == "close":
            self.pool.close()
        else:
            self.pool.terminate()
        self.pool.join()
        self.ended = time.perf_counter_ns()
        self._join([*self.submitters, self.troublemaker])

    def leave(self) -> None:
        """It is left to the interpreter's exit; its threads are not."""
        self._join([*self.submitters, self.troublemaker])

    def _join(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join()

    # -- jobs

    def _submit(self, jobs: list[Job]) -> None:
        try:
            for job in jobs:
                if not self.run(job):
                    return
        finally:
            self._progress.busy(-1)

    def run(self, job: Job) -> bool:
        """Runs a job and looks at what came. False: the pool takes no more."""
        try:
            got = _call(self.pool, job)
        except (ValueError, PoolTerminatedError) as error:
            if ASKED not in str(error):
                if not self.over:
                    self._surprises.add(f"job {job.number}: {error!r}")
                return False
            self._failed(job, error)
        except Exception as error:
            self._failed(job, error)
        else:
            self._compare(job, got)
        self._progress.count()
        return True

    def _failed(self, job: Job, error: Exception) -> None:
        if isinstance(error, PoolBrokenError):
            explained = self.plan.initializer == "prepare_badly" or bool(self.plan.troubles)
        elif isinstance(error, WorkerLostError):
            explained = not (job.sound and self.plan.quiet)
        else:
            wanted = ASKED in str(error) or isinstance(error, TaskExitError) or "MaybeEncoding" in type(error).__name__
            explained = wanted and not job.sound
        if not explained:
            self._surprises.add(f"job {job.number} ({job.call}): {error!r}")

    def _compare(self, job: Job, got: list[tuple[int, bytes]] | None) -> None:
        if got is None or self.over:
            return
        want = [(item.number, item.load) for item in job.items]
        if job.call == "imap_unordered":
            right = all(one in want for one in got) and len({number for number, _ in got}) == len(got)
        else:
            right = got == want[: len(got)]
        if not right or (len(got) != len(want) and not job.abandoned):
            self._surprises.add(f"job {job.number} ({job.call}): {[n for n, _ in got]} for {[n for n, _ in want]}")

    # -- troubles

    def _make_trouble(self) -> None:
        for trouble in self.plan.troubles:
            _advance(trouble.before)
            workers = list(self.pool._pool)
            if self.over or not workers:
                return
            pid = workers[trouble.worker % len(workers)].pid
            with contextlib.suppress(ProcessLookupError):
                _harm(pid, trouble)


def _harm(pid: int, trouble: Trouble) -> None:
    if trouble.what == "kill":
        os.kill(pid, signal.SIGKILL)
        return
    os.kill(pid, signal.SIGSTOP)
    try:
        _advance(trouble.during)
    finally:
        os.kill(pid, signal.SIGCONT)


def _advance(times: int) -> None:
    """With no trace on, these return at once."""
    for _ in range(times):
        session.advance()


# --- one job --------------------------------------------------------------------------------------


def _function(job: Job) -> Callable[..., object]:
    if job.function == "Stateful":
        return randomitems.Stateful()
    if job.function == "extended":
        return functools.partial(randomitems.extended, "prefix")
    function: Callable[..., object] = getattr(randomitems, job.function)
    return function


def _fed(job: Job) -> Any:
    items: list[Any] = list(job.items)
    if job.feed == "unpicklable":
        items[-1:] = [randomitems.NotPicklable()]
    if job.feed in ("list", "unpicklable"):
        return items

    def feed() -> Iterator[Item]:
        yield from items
        if job.feed == "broken iterator":
            raise RuntimeError(ASKED)

    return feed()


def _callback(job: Job) -> Callable[[object], None] | None:
    def raising(_: object) -> None:
        raise RuntimeError(ASKED)

    return {"none": None, "plain": lambda _: None, "raising": raising}[job.callback]


def _call(pool: Any, job: Job) -> list[tuple[int, bytes]] | None:
    """What came of it; None if nobody waited for that."""
    function, call, callback = _function(job), getattr(pool, job.call), _callback(job)
    if job.call.startswith("apply"):
        args = (_fed(job)[0],)
        if job.call == "apply":
            return [call(function, args)]
        result = call(function, args, {}, callback, callback)
        return None if job.abandoned else [result.get()]
    if job.call.startswith("imap"):
        results = call(function, _fed(job), job.chunksize or 1)
        count = len(job.items) // 2 if job.abandoned else len(job.items) + 1
        return [one for _, one in zip(range(count), results)]
    if job.call.endswith("_async"):
        result = call(function, _fed(job), job.chunksize, callback, callback)
        return None if job.abandoned else list(result.get())
    return list(call(function, _fed(job), job.chunksize))


class SlowFile:
    """A file on a disk that takes its time."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._seconds = seconds

    def write(self, data: bytes) -> int:
        time.sleep(self._seconds)
        return os.write(self._fd, data)


# --- the program ----------------------------------------------------------------------------------


class Program:
    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.directory = directory
        self.surprises = Surprises()
        self.progress = Progress()
        self.pools: dict[int, RunningPool] = {}
        self.traces: list[dict[str, Any]] = []
        self.clerk = Clerk()
        self.advancers: list[threading.Thread] = []

    def run(self) -> None:
        for name, number in self.plan.steps:
            print(f"step: {name} {number}", file=sys.stderr, flush=True)
            getattr(self, f"_{name}")(number)
        for pool in self.pools.values():
            if pool.ended is None:
                pool.leave()
        for thread in self.advancers:
            thread.join()
        self.clerk.end()
        self._write_down()

    def _by(self, where: str, call: Callable[[], object]) -> None:
        """Does it in that thread."""
        if where == "main":
            call()
        elif where == "clerk":
            self.clerk.do(call)
        else:
            clerk = Clerk()
            try:
                clerk.do(call)
            finally:
                clerk.end()

    def _make(self, number: int) -> None:
        self.pools[number] = RunningPool(self.plan.pools[number], self.surprises, self.progress)

    def _end(self, number: int) -> None:
        self.pools[number].end()

    def _await(self, jobs: int) -> None:
        self.progress.wait_for_more(jobs)

    def _advance(self, times: int) -> None:
        _advance(times)

    def _advancer(self, number: int) -> None:
        thread = threading.Thread(target=_advance, args=(self.plan.advances[number],), name="advancer")
        self.advancers.append(thread)
        thread.start()

    def _job(self, number: int) -> None:
        alive = [pool for pool in self.pools.values() if pool.ended is None]
        job = self.plan.inline[number]
        if alive:
            self._by("clerk" if job.number % 3 == 0 else "main", lambda: alive[0].run(job))

    def _start(self, number: int) -> None:
        plan = self.plan.traces[number]
        path = self.directory / (f"{number}.trace.lz4" if plan.packed else f"{number}.trace")
        target: Any = SlowFile(path, plan.slow) if plan.slow else path
        self._by(plan.starter, lambda: pooltrace.start(target, header=plan.header, period=plan.period))
        self.traces.append({"path": path.name, **asdict(plan), "started": time.perf_counter_ns()})

    def _stop(self, number: int) -> None:
        trace = self.traces[number]
        trace["stopping"] = time.perf_counter_ns()
        self._by(self.plan.traces[number].stopper, pooltrace.stop)
        trace["summary"] = pooltrace.summary()

    def _write_down(self) -> None:
        plan = self.plan
        jobs = [job for pool in plan.pools for jobs in pool.submitters for job in jobs] + plan.inline
        known = {
            "seed": plan.seed,
            "traces": self.traces,
            "pools": [
                {"end": pool.plan.end, "ended": pool.ended, "face": pool.plan.face, "method": pool.plan.method}
                for pool in self.pools.values()
            ],
            "jobs": {item.number: job.number for job in jobs for item in job.items},
            "surprises": self.surprises.lines,
        }
        for trace in self.traces:
            trace.setdefault("stopping", time.perf_counter_ns())
        (self.directory / "program.json").write_text(json.dumps(known, indent=1))


class Clerk:
    """A thread that does what it is told, one thing after the other."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="clerk")
        self._thread.start()

    def do(self, call: Callable[[], object]) -> None:
        """Returns when it is done. Raises what it raised."""
        self._calls.put(call)
        error = self._outcomes.get()
        if error is not None:
            raise error

    def end(self) -> None:
        self._calls.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException as error:
                self._outcomes.put(error)
            else:
                self._outcomes.put(None)


def main(words: list[str]) -> int:
    seed, directory = int(words[0]), Path(words[1])
    faulthandler.dump_traceback_later(float(words[2]) if len(words) > 2 else SECONDS, exit=True)
    os.environ[randomitems.NOTES] = str(directory.resolve())
    program = Program(draw(seed), directory)
    program.run()
    return 1 if program.surprises.lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
