"""The dispatcher: one thread per pool that gives units to workers, takes their answers, notices deaths and fills the
slots again.

All of an Engine's state is this thread's alone, except for what is named below; other threads put work into `inbox`,
set `state` and call `wake`. It knows neither the pool object (which may be collected while it runs) nor how results are
made of answers: see intake.py.

What holds, and what breaks otherwise:
1. A worker takes a claim before it starts a unit, the engine takes one to take a unit back: so no unit runs twice, and
   a death says which unit had begun (it fails with WorkerLostError) and which had not (they go to others).
2. After a unit was taken back the worker gets nothing until it has said that it skipped that frame: else the next
   frame's claim would start the one that was taken back.
3. A dead worker's channel is read to its end before its units are judged: an answer that came counts.
4. Writing never blocks: a worker that does not read holds up nobody. Nothing waits for a process but the ends of the
   pool, bounded.
5. A unit that waits behind a running one is given to a worker that has nothing to do: else a unit could wait for ever
   for one behind it.
"""

from __future__ import annotations

import importlib
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque

from pooltrace.errors import InternalError, MisuseError, PoolBrokenError, PoolTerminatedError
from pooltrace.pool import frames, intake
from pooltrace.pool.jobs import Job, Outcome, Unit
from pooltrace.pool.serialize import Serializer, main_is_importable
from pooltrace.pool.slots import DEPTH, GIVE_UP, GRACE, MOST_SENDS, Plan, Process, Slot, launch_all
from pooltrace.pool.waits import Event
from pooltrace.tracer import arena, emit

RUN, CLOSE, TERMINATE = "RUN", "CLOSE", "TERMINATE"
PARTING = 0.1  # seconds for workers with nothing to do to leave by themselves, before SIGTERM
PAUSE = 0.5  # seconds before a slot is filled again when starts keep failing


class Engine:
    def __init__(self, plan: Plan, processes: int) -> None:
        self.pid = os.getpid()
        self.state = RUN  # any thread, towards TERMINATE only
        self.inbox: deque[Unit] = deque()  # any thread appends, the dispatcher takes
        self.cache = intake.Cache(self)
        self.jobs: dict[int, Job] = {}  # any thread adds and removes: single operations
        self.fault: Exception | None = None  # set once, before all that waits is given up: no job can succeed any more
        self.finished = Event("waiting for the pool to end")
        self.thread = threading.Thread(target=self._run, name="pooltrace dispatcher", daemon=True)
        self.serializer = Serializer(plan.family, plan.start_method == "fork" or main_is_importable())
        self._pending: deque[Unit] = deque()
        self._asleep = False  # dispatcher: `wake` has to write
        self._poked = False  # any thread: look again before you sleep
        self.processes: list[Process] = []
        self._failures = 0  # starts that failed, since the last that did not
        self._idle_deaths = 0  # workers that died with nothing to do, since the last answer
        self._slots: list[Slot] = []
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        read_fd, write_fd = os.pipe()
        self._lifeline, self._lifeline_read = frames.End(write_fd), frames.End(read_fd)
        frames.own(self._selector, self._waker, self._woken, self._lifeline)
        for end in (self._waker, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
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
        return len(self.inbox) + len(self._pending)

    def wake(self) -> None:
        """After any change that the dispatcher has to see."""
        self._poked = True
        if self._asleep:
            try:
                self._waker.send(b".")
            except OSError:
                pass  # full: it is awake; closed: the pool has ended

    def close(self) -> None:
        if self.state == RUN:
            self.state = CLOSE
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
        if self.state != CLOSE or self.cache or self._pending or self.inbox:
            return False
        for slot in self._slots:
            if slot.process is not None:
                slot.stop()
                self._flush(slot)
        return all(slot.process is None for slot in self._slots)

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Waits for something to do. Whoever changes something after the check of _poked sees that we sleep."""
        self._asleep = True
        if self._poked:
            self._asleep = self._poked = False
            return self._selector.select(0)
        waiting = [slot.retry_at for slot in self._slots if slot.process is None and self._to_be_filled()]
        timeout = max(0.0, min(waiting) - time.monotonic()) if waiting else None
        if not emit.enabled():
            events = self._selector.select(timeout)
            self._asleep = self._poked = False
            return events
        emit.enter()
        ticket = emit.go_block("waiting for workers", None)
        try:
            events = self._selector.select(timeout)
        finally:
            emit.go_resume(ticket)
            emit.leave()
        self._asleep = self._poked = False
        return events

    def _turn(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        """One round: answers, deaths, new units, slots."""
        traced = emit.enabled() and (emit.enter() or True)
        received: list[tuple[Slot, frames.Frame]] = []
        dead: list[Slot] = []
        if traced:
            emit.region_begin(emit.PHASE, 0, "receive", None)
        for key, mask in events:
            if key.data is None:
                self._drain_waker()
            elif key.fileobj is not key.data.channel:
                dead.append(key.data)
            else:
                if mask & selectors.EVENT_READ:
                    self._receive(key.data, received)
                if mask & selectors.EVENT_WRITE:
                    self._flush(key.data)
        if traced:
            emit.region_end()
        self._answer(received, traced)
        received.clear()
        for slot in dead:
            self._died(slot)
        while self.inbox:
            self._pending.append(self.inbox.popleft())
        if self.fault is not None:
            self._cancel_all()  # who put them there has seen the fault, too, and told its job
        self._assign(traced)
        self._fill()
        if traced:
            emit.leave()

    def _drain_waker(self) -> None:
        try:
            self._woken.recv(4096)
        except OSError:
            pass

    def _receive(self, slot: Slot, received: list[tuple[Slot, frames.Frame]]) -> None:
        received.extend((slot, frame) for frame in slot.receive())
        if slot.ended:
            self._selector.unregister(slot.channel)

    # -- answers

    def _answer(self, received: list[tuple[Slot, frames.Frame]], traced: bool) -> None:
        outcomes: list[tuple[Unit, Outcome]] = []
        if traced and received:
            emit.region_begin(emit.PHASE, 0, "unpickle", None)
        for slot, frame in received:
            if frame.kind == frames.RESULT:
                unit = slot.answer()
                self._idle_deaths = 0
                if unit.g != frame.unit:
                    raise InternalError(f"unit {unit.g} was expected from its worker, {frame.unit} came")
                outcomes.append((unit, intake.outcome(self.serializer.family, unit, frame)))
            elif frame.kind == frames.SKIPPED:
                slot.skipping = False
            elif frame.kind == frames.READY:
                slot.ready = True
                self._failures = 0
            elif frame.kind == frames.START_FAILED:
                slot.start_error = intake.load_error(frame)
        if traced and received:
            emit.region_end()
        for unit, outcome in outcomes:
            self._complete(unit, outcome)

    def _complete(self, unit: Unit, outcome: Outcome) -> None:
        result = self.cache.get(unit.job.id)
        if result is not None:
            intake.deliver(result, unit.index, outcome, unit.weight)

    def _fail(self, unit: Unit, error: BaseException) -> None:
        self._complete(unit, (False, error))

    # -- units to workers

    def _assign(self, traced: bool) -> None:
        pickling = traced and bool(self._pending)
        if pickling:
            emit.region_begin(emit.PHASE, 0, "pickle", None)
        touched: dict[Slot, None] = {}
        for _ in range(2):
            self._hand_out(touched)
            if self._pending or not self._take_back():
                break
        if pickling:
            emit.region_end()
        if traced and touched:
            emit.region_begin(emit.PHASE, 0, "write", None)
        for slot in touched:
            self._flush(slot)
        if traced and touched:
            emit.region_end()

    def _hand_out(self, touched: dict[Slot, None]) -> None:
        for depth in range(DEPTH):
            for slot in self._slots:
                while slot.room() == depth:
                    unit = self._next_unit()
                    if unit is None:
                        return
                    try:
                        slot.post(unit, self.serializer)
                    except BaseException as error:
                        self._fail(unit, error)
                        unit.cancel()
                    else:
                        touched[slot] = None

    def _next_unit(self) -> Unit | None:
        """The oldest unit that still has to run."""
        while self._pending:
            unit = self._pending.popleft()
            job = unit.job
            job.unqueued(unit)
            if unit.error is not None:
                self._fail(unit, unit.error)
            elif not job.over:
                return unit
            unit.cancel()
        return None

    def _cancel_all(self) -> None:
        """Of the units that wait in the parent."""
        while self._pending:
            self._pending.popleft().cancel()
        self.cancel_inbox()

    def _take_back(self) -> bool:
        """For each worker with nothing to do one unit that waits behind another."""
        hungry = sum(1 for slot in self._slots if slot.room() == 0)
        for slot in self._slots:
            if hungry <= len(self._pending):
                break
            unit = slot.take_back() if slot.process is not None else None
            if unit is not None:
                unit.job.requeued(unit)
                self._pending.append(unit)
        return bool(self._pending)

    def _flush(self, slot: Slot) -> None:
        waiting = not slot.flush()
        if waiting != slot.writing and not slot.ended:
            slot.writing = waiting
            mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if waiting else 0)
            self._selector.modify(slot.channel, mask, slot)

    # -- deaths and starts

    def _watch(self, slot: Slot) -> None:
        self._selector.register(slot.channel, selectors.EVENT_READ, slot)
        self._selector.register(slot.watch(), selectors.EVENT_READ, slot)

    def _died(self, slot: Slot) -> None:
        """Rule 3: first what it has said, then what it has not."""
        process = slot.process
        if process is None:
            return
        self._answer([(slot, frame) for frame in slot.receive_rest()], False)
        if not slot.ended:
            self._selector.unregister(slot.channel)
        self._selector.unregister(slot.pidfd if slot.pidfd >= 0 else process.sentinel)
        begun, waiting = slot.unanswered()
        served = slot.plan.max_tasks is not None and slot.answered >= slot.plan.max_tasks
        expected = slot.stopping or served or self.state == TERMINATE
        ready, start_error = slot.ready, slot.start_error
        how = slot.how_it_ended()
        errors = {unit: slot.lost(unit, how) for unit in (*begun, *waiting)}
        slot.bury(None if expected or start_error is not None else how, begun[0] if begun else None)
        for unit in begun:
            self._fail(unit, errors[unit])
        for unit in reversed(waiting):
            if unit.sends >= MOST_SENDS:
                self._fail(unit, errors[unit])
                unit.cancel()
            else:
                unit.job.requeued(unit)
                self._pending.appendleft(unit)
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
            intake.abort(result, self.cache, fault, callbacks)
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
            slot.free()
        frames.disown(self._selector, self._waker, self._woken, self._lifeline, self._lifeline_read)
        arena.release()
        self._exit_hook.cancel()
        # an engine is part of a cycle; what holds descriptors and buffers is not
        self.processes, self._slots = [], []

    def _end_workers(self) -> None:
        """Who has nothing to do leaves by himself, with all that a process does at its end; the others are told to."""
        self.state = TERMINATE  # from here on a death is no loss
        for slot in self._slots:
            if slot.process is not None:
                slot.stop()
                self._flush(slot)
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
                    self._drain_waker()
                elif key.fileobj is not key.data.channel:
                    dead.append(key.data)
                else:
                    self._selector.unregister(key.data.channel)
                    key.data.ended = True
            for slot in dead:  # only now: burying closes the channel, whose event may be in the same batch
                self._died(slot)
