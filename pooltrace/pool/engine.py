"""The dispatcher: one thread per pool that gives units to workers, takes their answers, notices deaths and fills the
slots again.

All of an Engine's state is this thread's alone, except for what is named below; other threads put work into `inbox`,
set `state` and call `wake`. It knows neither the pool object (which may be collected while it runs) nor how results are
made of answers: see results.py.

What holds, and what breaks otherwise:
1. A worker claims a unit before it starts it, the engine takes it back by the same word (core/page.h): so no unit runs
   twice, and a death says which unit had begun (it fails with WorkerLostError) and which had not (they go to others).
2. A result is in the shared page, or on its way in the channel, before the worker claims its next unit: else a death
   would take results with it of units that had ended.
3. A dead worker's channel is read to its end before its units are judged: an answer that came counts.
4. Writing never blocks: a worker that does not read holds up nobody. Nothing waits for a process but the ends of the
   pool, bounded.
5. A unit that waits behind a running one is given to a worker that has nothing to do (backlog.py): else a unit could
   wait for ever for one behind it.
6. A worker need not tell of a short unit's result at once. While it has more units the engine looks by itself, until it
   sees that the worker is still in the unit in which it was: else results would wait for a long unit behind them.
"""

from __future__ import annotations

import importlib
import os
import selectors
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

from pooltrace.errors import InternalError, MisuseError, PoolBrokenError, PoolTerminatedError
from pooltrace.pool import _channel, descriptors, losses, results
from pooltrace.pool._channel import Answer
from pooltrace.pool.backlog import Backlog
from pooltrace.pool.jobs import Job, Outcome, Unit, Waiting
from pooltrace.pool.serialize import Serializer, main_is_importable
from pooltrace.pool.slots import GIVE_UP, GRACE, LOOK, Plan, Process, Slot, launch_all
from pooltrace.pool.waits import Event, Waker
from pooltrace.tracer import arena, emit

RUN, CLOSE, TERMINATE = "RUN", "CLOSE", "TERMINATE"
PARTING = 0.1  # seconds for workers with nothing to do to leave by themselves, before SIGTERM
PAUSE = 0.5  # seconds before a slot is filled again when starts keep failing
_STACK = emit.frame("pooltrace.pool.engine", __file__, 0)  # of the dispatcher's phases, which are many


class Engine:
    def __init__(self, plan: Plan, processes: int) -> None:
        self.pid = os.getpid()
        self.state = RUN  # any thread, towards TERMINATE only
        self.inbox: deque[Waiting] = deque()  # any thread appends, the dispatcher takes
        self.cache = results.Cache(self)
        self.job_ids: Iterator[int] = importlib.import_module(plan.family + ".pool").job_counter
        self.jobs: dict[int, Job] = {}  # any thread adds and removes: single operations
        self.fault: Exception | None = None  # set once, before all that waits is given up: no job can succeed any more
        self.finished = Event("waiting for the pool to end")
        self.thread = threading.Thread(target=self._run, name="pooltrace dispatcher", daemon=True)
        self.serializer = Serializer(plan.family, plan.start_method == "fork" or main_is_importable())
        self._backlog = Backlog(self.serializer, self._fail)
        self.calls = False  # any thread: `apply` was called; from then on idle channels are not listened to
        self._limit = plan.task_timeout
        self._look_at = 0.0  # when to look next at those that may hold results back (time.monotonic)
        self.processes: list[Process] = []
        self._failures = 0  # starts that failed, since the last that did not
        self._idle_deaths = 0  # workers that died with nothing to do, since the last answer
        self._slots: list[Slot] = []
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        read_fd, write_fd = os.pipe()
        self._lifeline, self._lifeline_read = descriptors.End(write_fd), descriptors.End(read_fd)
        descriptors.own(self._selector, self._waker, self._lifeline)
        self._selector.register(self._waker, selectors.EVENT_READ, None)
        self.wake, self.waker = self._waker.wake, self._waker.writer  # after any change that the dispatcher has to see
        arena.acquire()
        util = importlib.import_module(plan.family + ".util")
        self._exit_hook = util.Finalize(None, self.terminate, exitpriority=15)  # whatever becomes of the pool object
        try:
            self._slots = launch_all(plan._replace(lifeline=read_fd), processes)
            self.processes = [slot.process for slot in self._slots if slot.process is not None]
            for slot in self._slots:
                self._watch(slot)
            self.thread.start()
        except BaseException:  # no more processes, descriptors or threads; or Ctrl-C while it waits for the thread
            self._abandon()
            raise

    def _abandon(self) -> None:
        """The pool cannot be made: nothing of it stays."""
        if self.thread.ident is not None or self.thread.is_alive():
            self.terminate()
            return
        try:
            for slot in self._slots:
                if slot.process is not None:
                    slot.send_signals([signal.SIGKILL])
                    slot.process.join(GIVE_UP)
                    slot.bury(None)
        finally:
            self._give_back()
            self.finished.set()

    # -- any thread

    def cancel_inbox(self) -> None:
        """Of units that came when nobody takes any more: by the dispatcher, and by who put them there."""
        emit.enter()
        try:
            while True:
                self.inbox.popleft().cancel()
        except IndexError:
            pass
        finally:
            emit.leave()

    def queued(self) -> int:
        """Units that wait in the parent."""
        return sum(row.left for row in list(self.inbox)) + len(self._backlog)

    def idle_slot(self) -> Slot | None:
        """A worker with nothing to do, for a call of the calling thread, if nothing waits for one. (With a limit to its
        time the unit is the dispatcher's: somebody has to look at the clock.)"""
        busy = self.inbox or len(self._backlog) or self._limit or threading.current_thread() is self.thread
        if busy or self.state != RUN or self.fault is not None or os.getpid() != self.pid:
            return None
        if not self.calls:
            self.calls = True
            return None
        for slot in self._slots:
            if slot.is_idle():
                return slot
        return None

    def close(self) -> None:
        if self.state == RUN:
            self.state = CLOSE
            for job in list(self.jobs.values()):
                if job.room is not None:  # whoever waits for results to be taken goes on without
                    job.room.set()
        self.wake()

    def terminate(self) -> None:
        """Ends everything now: jobs that are not done fail, workers are killed. Returns when they are gone.

        By the dispatcher itself (a callback, say) it only says so, and the end comes when the callback returns.
        """
        if os.getpid() != self.pid:
            return
        self.state = TERMINATE
        self.wake()
        if threading.current_thread() is not self.thread:
            self.finished.wait(PARTING + GRACE + GIVE_UP + 2.0)
            self.thread.join(1.0)

    def join(self) -> None:
        if os.getpid() != self.pid:
            return
        if threading.current_thread() is self.thread:
            raise MisuseError("a pool cannot be joined by one of its own callbacks")
        self.finished.wait()
        self.thread.join()

    # -- the dispatcher's thread from here on

    def _run(self) -> None:
        emit.enter()
        try:
            while self.state != TERMINATE and not self._ended():
                self._turn(self._wait())
        except BaseException as error:
            self.fault = InternalError(f"the pool's dispatcher failed: {error!r}")
            self.fault.__cause__ = error
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            try:
                self._end()
            finally:
                emit.leave()
                self.finished.set()

    def _ended(self) -> bool:
        if self.state != CLOSE or self.cache or self._backlog or self.inbox:
            return False
        self._stop_workers()
        return all(slot.process is None for slot in self._slots)

    def _stop_workers(self) -> None:
        for slot in self._slots:
            if slot.process is not None:
                slot.stop()
                self._flush(slot)

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Waits for something to do."""
        timeout = self._timeout() if self._waker.may_sleep() else 0
        try:
            if timeout == 0 or not emit.enabled():
                return self._selector.select(timeout)
            emit.enter()
            ticket = emit.go_block("waiting for workers", _STACK)
            try:
                return self._selector.select(timeout)
            finally:
                emit.go_resume(ticket)
                emit.leave()
        finally:
            self._waker.rise()

    def _timeout(self) -> float | None:
        """Seconds until there is something to do of which no descriptor tells."""
        times = [slot.retry_at for slot in self._slots if slot.process is None and self._to_be_filled()]
        if any(slot.restless for slot in self._slots):
            times.append(self._look_at)
        if self._limit is not None and any(slot.inflight and slot.late is None for slot in self._slots):
            longest = max(
                (seconds for slot, _, seconds in losses.running(self._slots) if slot.late is None), default=0.0
            )
            times.append(time.monotonic() + self._limit - longest)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _turn(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        """One round: answers, deaths, new units, slots."""
        traced = emit.enabled() and (emit.enter() or True)
        received: list[tuple[Slot, list[Answer]]] = []
        dead: list[Slot] = []
        woken = False
        if traced:
            emit.region_begin(emit.PHASE, 0, "receive", _STACK)
        for key, mask in events:
            if key.data is None:
                self._waker.drain()
                woken = True
            elif key.fileobj is not key.data.channel:
                dead.append(key.data)
            else:
                if mask & selectors.EVENT_READ:
                    received.append((key.data, key.data.receive()))
                    self._listen(key.data)
                if mask & selectors.EVENT_WRITE:
                    self._flush(key.data)
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK
            received.extend((slot, slot.look()) for slot in self._slots if slot.restless)
        if traced:
            emit.region_end()
        for slot, answers in received:
            self._answer(slot, answers, traced)
        received.clear()
        for slot in dead:
            self._died(slot)
        if woken and self.calls:
            self._take_over()
        if self._limit is not None:
            self._end_late(self._limit)
        self._backlog.take_in(self.inbox)
        if self.fault is not None:
            self._cancel_all()  # who put them there has seen the fault, too, and told its job
        self._assign(traced)
        self._fill()
        if traced:
            emit.leave()

    def _listen(self, slot: Slot) -> None:
        """To what the slot's channel can tell: that something came, and that it takes more while something waits for
        that. A worker with nothing to do has nothing to say, and a call may have it."""
        end = slot.end
        mask = 0
        if end is not None and not end.ended and not end.lent:
            silent = self.calls and slot.ready and not slot.inflight and end.room > 0
            mask = (0 if silent else selectors.EVENT_READ) | (selectors.EVENT_WRITE if slot.writing else 0)
        if mask == slot.listening:
            return
        if not slot.listening:
            self._selector.register(slot.channel, mask, slot)
        elif mask:
            self._selector.modify(slot.channel, mask, slot)
        else:
            self._selector.unregister(slot.channel)
        slot.listening = mask

    # -- answers

    def _answer(self, slot: Slot, answers: list[Answer], traced: bool) -> None:
        if not answers:
            return
        jobs: dict[Job, list[tuple[int, Outcome]]] = {}
        if traced:
            emit.region_begin(emit.PHASE, 0, "unpickle", _STACK)
        family = self.serializer.family
        for answer in answers:
            kind, _, unit, _, _, _, outcome = answer
            if kind == _channel.RESULTS:
                jobs.setdefault(unit.job, []).extend(outcome)
            elif kind == _channel.RESULT:
                jobs.setdefault(unit.job, []).append((unit.index, results.outcome(family, answer)))
            elif kind == _channel.READY:
                slot.ready = True
                self._failures = 0
            elif kind == _channel.START_FAILED:
                slot.start_error = results.load_error(answer)
        if traced:
            emit.region_end()
        if jobs:
            self._idle_deaths = 0
            slot.answered_all([(unit, ns) for _, _, unit, ns, _, _, _ in answers if unit is not None])
        answers.clear()
        for job, some in jobs.items():
            self._complete(job, some)

    def _complete(self, job: Job, answers: list[tuple[int, Outcome]]) -> None:
        result = self.cache.get(job.id)
        if result is not None:
            results.deliver(result, answers)

    def _fail(self, unit: Unit, error: BaseException) -> None:
        self._complete(unit.job, [(unit.index + step, (False, error)) for step in range(unit.weight)])

    # -- units to workers

    def _assign(self, traced: bool) -> None:
        pickling = traced and bool(self._backlog)
        if pickling:
            emit.region_begin(emit.PHASE, 0, "pickle", _STACK)
        touched = self._backlog.assign(self._slots)
        if pickling:
            emit.region_end()
        if traced and touched:
            emit.region_begin(emit.PHASE, 0, "write", _STACK)
        for slot in touched:
            self._flush(slot)
        if self.calls:
            for slot in self._slots:
                if slot.listening and not slot.inflight:
                    self._listen(slot)
        if traced and touched:
            emit.region_end()

    def _cancel_all(self) -> None:
        """Of the units that wait in the parent."""
        self._backlog.cancel()
        self.cancel_inbox()

    def _flush(self, slot: Slot) -> None:
        slot.writing = not slot.flush()
        self._listen(slot)

    # -- deaths and starts

    def _watch(self, slot: Slot) -> None:
        slot.listening = 0
        self._listen(slot)
        self._selector.register(slot.watch(), selectors.EVENT_READ, slot)

    def _take_over(self) -> None:
        """From calls that are over: their workers, dead ones, and those that still have their unit, or its answer."""
        for slot in self._slots:
            if slot.end is None or slot.end.lent:
                continue
            if slot.died_lent:
                slot.died_lent = False
                self._selector.register(slot.pidfd, selectors.EVENT_READ, slot)
            if slot.inflight:
                self._answer(slot, slot.receive(), False)
            if slot.inflight or not slot.listening:
                self._flush(slot)

    def _end_late(self, limit: float) -> None:
        """Units that take too long."""
        for slot, unit, seconds in list(losses.running(self._slots)):
            if seconds >= limit and slot.late is None:
                self._answer(slot, slot.receive(), False)
                self._backlog.put_back(losses.kill_late(slot, unit))

    def _died(self, slot: Slot) -> None:
        """Rule 3: first what it has said, then what it has not."""
        process = slot.process
        if process is None:
            return
        if slot.end is not None and not slot.end.retire():  # the call that has it sees that, too, and gives it back
            slot.died_lent = True
            self._selector.unregister(slot.pidfd)
            return
        self._answer(slot, slot.receive_rest(), False)
        if slot.listening:
            self._selector.unregister(slot.channel)
            slot.listening = 0
        self._selector.unregister(slot.pidfd if slot.pidfd >= 0 else process.sentinel)
        expected = slot.stopping or slot.has_served() or self.state == TERMINATE
        ready, start_error = slot.ready, slot.start_error
        failed, retried, waiting, begun, how = losses.judge(slot, expected)
        slot.bury(None if expected or start_error is not None else how, begun)
        for unit, error in failed.items():
            self._fail(unit, error)
        for unit in retried:
            unit.retry()
        self._backlog.put_back([*retried, *waiting])
        if expected:
            return
        if not ready:
            why = how if start_error is None else f"the initializer raised {type(start_error).__name__}: {start_error}"
            self._start_failed(slot, start_error, why)
        elif not begun:
            self._idle_deaths += 1
            if self._idle_deaths > 3 * len(self._slots) + 10:
                slot.retry_at = time.monotonic() + PAUSE

    def _start_failed(self, slot: Slot, error: BaseException | None, why: str) -> None:
        self._failures += 1
        if self._failures <= 3 + len(self._slots):
            return
        if any(other.process is not None and other.ready for other in self._slots):
            slot.retry_at = time.monotonic() + PAUSE
            return
        fault = PoolBrokenError(f"no worker can be started: {self._failures} starts in a row failed; the last: {why}")
        fault.__cause__ = error
        self._give_up(fault, True)

    def _give_up(self, fault: Exception, callbacks: bool) -> None:
        """No job can succeed any more: all that wait are told."""
        self.fault = self.fault or fault
        for result in list(self.cache.values()):
            results.abort(result, self.cache, fault, callbacks)
        self._cancel_all()

    def _to_be_filled(self) -> bool:
        return self.fault is None and (self.state == RUN or bool(self.cache))

    def _fill(self) -> None:
        for index, slot in enumerate(self._slots):
            if slot.process is not None or not self._to_be_filled() or slot.retry_at > time.monotonic():
                continue
            try:
                self.processes[index] = slot.launch()
            except Exception as error:
                slot.process = None
                self._start_failed(slot, error, repr(error))
                slot.retry_at = max(slot.retry_at, time.monotonic() + PAUSE / 10)
            else:
                self._watch(slot)

    # -- the end

    def _end(self) -> None:
        """Jobs fail, workers go, and all that was ours is given back. Nothing here waits without a bound."""
        emit.enter()  # the trace may have begun since the last turn
        try:
            self._give_up(self.fault or PoolTerminatedError("the pool was terminated before this result was in"), False)
            self._end_workers()
            self._cancel_all()
        finally:
            emit.leave()
            self._give_back()

    def _give_back(self) -> None:
        for slot in self._slots:
            if slot.process is not None:
                print(f"pooltrace: worker pid {slot.process.pid} does not die", file=sys.stderr)
                if slot.end is not None:
                    slot.end.watch(-1)
            slot.free()
        descriptors.disown(self._selector, self._waker, self._lifeline, self._lifeline_read)
        arena.release()
        self._exit_hook.cancel()
        # an engine is part of a cycle; what holds descriptors and buffers is not
        self.processes, self._slots = [], []

    def _end_workers(self) -> None:
        """Who has nothing to do leaves by himself, with all that a process does at its end; the others are told to."""
        self.state = TERMINATE  # from here on a death is no loss
        self._stop_workers()
        idle = [slot for slot in self._slots if slot.process is not None and slot.ready and not slot.inflight]
        self._await_deaths(PARTING, idle)
        for signals, seconds in (((signal.SIGTERM, signal.SIGCONT), GRACE), ((signal.SIGKILL,), GIVE_UP)):
            for slot in self._slots:
                slot.send_signals(signals)
            self._await_deaths(seconds, self._slots)

    def _await_deaths(self, seconds: float, slots: list[Slot]) -> None:
        deadline = time.monotonic() + seconds
        while any(slot.process is not None for slot in slots):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            dead = []
            for key, _ in self._selector.select(left):
                if key.data is None:
                    self._waker.drain()
                    self._take_over()
                elif key.fileobj is not key.data.channel:
                    dead.append(key.data)
                elif key.data.listening:
                    self._selector.unregister(key.data.channel)
                    key.data.listening = 0
            for slot in dead:  # only now: burying closes the channel, whose event may be in the same batch
                self._died(slot)
