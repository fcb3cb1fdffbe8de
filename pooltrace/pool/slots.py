"""A slot: the place of one worker at a time, with that worker's process, channel, claims and trace.

Of the dispatcher's thread, except that the first workers are launched by the thread that makes the pool. Knows frames
and processes; which unit goes where is the engine's business.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from pooltrace.errors import WorkerLostError, describe_exit
from pooltrace.pool import frames, worker
from pooltrace.pool.jobs import Job, Unit
from pooltrace.pool.serialize import Serializer
from pooltrace.tracer import arena, emit, session

MOST_SENDS = 5  # of a unit that no worker lived to begin
DEPTH = 2  # one unit runs, one waits: it can be taken back
GRACE = 5.0  # seconds between SIGTERM and SIGKILL: a worker may have a handler that saves something
GIVE_UP = 3.0  # seconds after SIGKILL: a process that is still there is in uninterruptible sleep


class Process(Protocol):
    """What is used of the two families' processes."""

    name: str
    daemon: bool

    @property
    def pid(self) -> int | None: ...
    @property
    def exitcode(self) -> int | None: ...
    @property
    def sentinel(self) -> int: ...
    def start(self) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...
    def is_alive(self) -> bool: ...


class Plan(NamedTuple):
    """How workers are made."""

    family: str
    make_process: Callable[..., Process]
    initializer: Callable[..., object] | None
    initargs: Iterable[Any]
    max_tasks: int | None
    wrap: bool
    start_method: str
    lifeline: int = -1  # the read end of a pipe whose other end only this process holds


class _Lock:
    """One launch at a time: until the child has its ends, no other may be forked that would keep them."""

    lock = threading.Lock()

    @classmethod
    def renew(cls) -> None:
        cls.lock = threading.Lock()


os.register_at_fork(after_in_child=_Lock.renew)


class Slot:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.p = emit.new_p()
        self.process: Process | None = None  # None: the slot is empty
        self.start_up = 0  # the G of its worker's start
        self.last: tuple[int, Job] | None = None  # the unit that was answered last
        self.inflight: deque[Unit] = deque()  # sent and not answered, in order
        self.retry_at = 0.0  # not to be filled before (time.monotonic)
        self._forget = session.describe_units(self._units)

    def free(self) -> None:
        self._forget()
        emit.free_p(self.p)

    def _units(self) -> list[tuple[int, emit.Stack]]:
        """The G and the start function of all that may be running in the worker. Any thread, under `session.begins`."""
        found = [(unit.g, unit.job.start) for unit in list(self.inflight)]
        if (last := self.last) is not None:
            found.append((last[0], last[1].start))  # it ends after it was answered
        return [*found, (self.start_up, worker.start_function())]

    # -- the life of a worker

    def launch(self) -> Process:
        """Starts a worker. Raises what that raises; then nothing is left behind."""
        with _Lock.lock:
            self.channel, child = socket.socketpair()
            self.claims = frames.Claims()
            frames.own(self.channel, child, self.claims)
            try:
                process = self._start(child)
            except BaseException:
                frames.disown(self.channel, self.claims)
                raise
            finally:
                frames.disown(child)
        self.channel.setblocking(False)
        self.receiver = frames.Receiver(self.channel)
        self.outbox = frames.Outbox(self.channel)
        self.inflight.clear()
        self.offered = 0  # of these, whose frames wait to be flushed, with no claim offered yet
        self.skipping = False  # a unit was taken back, and the worker has not come to its frame
        self.assigned = self.answered = 0
        self.ready = self.stopping = self.writing = False
        self.ended = False  # the worker has closed its end of the channel
        self.start_error: BaseException | None = None
        self._known = worker.Functions()  # jobs whose function the worker keeps
        self.pidfd = -1
        self.process = process
        return process

    def _start(self, child: socket.socket) -> Process:
        plan = self.plan
        trace = arena.worker_open(self.p)
        # Ctrl-C waits until the worker has its own handler. (A fork server started meanwhile would keep the mask.)
        masked: set[signal.Signals] = set() if plan.start_method == "forkserver" else {signal.SIGINT}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, masked)
        try:
            g = self.start_up = emit.new_g()
            self.last = None
            generation = emit.go_create(g, worker.start_function(), None)
            setup = worker.Setup(
                channel=frames.PassedFd(child.fileno()),
                claims=frames.PassedFd(self.claims.read_fd),
                lifeline=frames.PassedFd(plan.lifeline),
                trace=(trace.path, trace.entry, frames.PassedFd(trace.write_fd)),
                family=plan.family,
                unit=g,
                generation=generation,
                max_tasks=plan.max_tasks,
                wrap=plan.wrap,
                unmask=signal.SIGINT not in before,
            )
            process = plan.make_process(target=worker.main, args=(setup, plan.initializer, plan.initargs))
            process.name = process.name.replace("Process", "PoolWorker")
            process.daemon = True
            frames.keep(child, self.claims)
            try:
                with session.begins:
                    process.start()
            finally:
                frames.keep()
        except BaseException:
            trace.close_write()
            trace.gone(None)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        trace.close_write()
        self.trace = trace
        return process

    def send_signals(self, signals: Iterable[signal.Signals]) -> None:
        """To the worker, if there is one and it may be done (not when it has become another user's)."""
        process = self.process
        if process is None or process.pid is None:
            return
        for number in signals:
            try:
                if self.pidfd >= 0:
                    signal.pidfd_send_signal(self.pidfd, number)
                else:
                    os.kill(process.pid, number)
            except OSError:
                pass

    def watch(self) -> int:
        """A descriptor that becomes readable when the worker is dead."""
        assert self.process is not None
        pid = self.process.pid
        assert pid is not None
        try:
            self.pidfd = os.pidfd_open(pid)
        except (AttributeError, OSError):
            return self.process.sentinel
        return self.pidfd

    def how_it_ended(self) -> str:
        assert self.process is not None
        return describe_exit(self.process.pid or 0, self.exit_status())

    def lost(self, unit: Unit, how: str) -> WorkerLostError:
        """The error of a unit that died with this worker; `how` is the worker's end, in words."""
        assert self.process is not None
        where = f"item {unit.index}"
        if unit.span is not None:
            where = f"items {unit.span[0]} to {unit.span[1] - 1}"
        elif unit.job.kind != frames.APPLY:
            where = f"chunk {unit.index} of {unit.count} items"
        if unit.sends >= MOST_SENDS:
            text = f"{unit.sends} workers died before they could begin {unit.job.name} ({where}); of the last, {how}"
        else:
            text = f"worker {how} while it ran {unit.job.name} ({where})"
        code = self.process.exitcode
        number = -code if code is not None and code < 0 else None
        pid = self.process.pid or 0
        return WorkerLostError(text, pid=pid, signal=number, exitcode=None if number else code)

    def bury(self, text: str | None, begun: Unit | None = None) -> None:
        """The worker is dead, its channel was read to the end: gives back all that was its. `text`: how it was lost;
        `begun`: the unit that it had claimed."""
        self.trace.gone(text, (begun.g, begun.generation, begun.job.start) if begun else None)
        frames.disown(self.channel, self.claims)
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.outbox.clear()
        self.inflight.clear()
        self.process = None

    def exit_status(self) -> int | None:
        """Exit code of a worker that is known to be dead; None when it cannot be had (somebody else waited for it)."""
        process = self.process
        assert process is not None
        process.join(0)
        if process.exitcode is None:
            process.join(2.0)  # the fork server tells it a little later
        return process.exitcode

    # -- units

    def room(self) -> int | None:
        """How many units are there already, None when no more may be sent."""
        if self.process is None or not self.ready or self.stopping or self.skipping or self.ended:
            return None
        if self.plan.max_tasks is not None and self.assigned >= self.plan.max_tasks:
            return None
        count = len(self.inflight)
        return count if count < DEPTH else None

    def post(self, unit: Unit, serializer: Serializer) -> None:
        """Packs a unit's frame for this worker. Raises what pickling raises."""
        job = unit.job
        known = job.id in self._known
        blob = b"" if known else job.blob(serializer)
        payload, buffers = unit.packed or serializer.dumps(unit.payload())
        flags = 0 if known else frames.FRESH | (frames.ONCE if job.single else 0)
        self.outbox.add(frames.pack(job.kind, flags, unit.generation, unit.g, job.id, blob, payload, buffers))
        if not known and not job.single:
            self._known.add(job.id, len(blob))
        self.inflight.append(unit)
        self.offered += 1
        self.assigned += 1
        unit.sends += 1

    def flush(self) -> bool:
        """Sends what it can; True when all is sent. A worker that cannot be sent to is left to its death, or killed."""
        try:
            with session.begins:
                if self.offered:
                    self.claims.offer(self.offered)
                    self.offered = 0
                return self.outbox.flush()
        except OSError as error:
            self.outbox.clear()
            if not isinstance(error, (BrokenPipeError, ConnectionResetError)) and self.process is not None:
                self.process.kill()  # it may have read half a frame
            return True

    def answer(self) -> Unit:
        """The unit that runs has its answer."""
        unit = self.inflight[0]
        self.last = (unit.g, unit.job)
        self.answered += 1
        return self.inflight.popleft()

    def take_back(self) -> Unit | None:
        """The unit that waits behind the running one, unless the worker has begun it."""
        if len(self.inflight) < 2 or self.skipping or not self.claims.take():
            return None
        self.skipping = True
        self.assigned -= 1
        return self.inflight.pop()

    def stop(self) -> None:
        """Asks the worker to end when it has done what it has."""
        if not self.stopping:
            self.stopping = True
            self.outbox.add(frames.pack(frames.STOP))

    def receive(self) -> list[frames.Frame]:
        """The frames that are there now. Raises nothing: what a dead worker's channel says, its pidfd says better."""
        found: list[frames.Frame] = []
        try:
            if not self.receiver.fill():
                self.ended = True
        except BlockingIOError:
            return found
        except OSError:
            self.ended = True
        while (frame := self.receiver.take()) is not None:
            found.append(frame)
        return found

    def receive_rest(self) -> list[frames.Frame]:
        """All frames that a dead worker has left in its channel."""
        found: list[frames.Frame] = []
        try:
            while self.receiver.fill():
                while (frame := self.receiver.take()) is not None:
                    found.append(frame)
        except OSError:
            pass
        return found

    def unanswered(self) -> tuple[list[Unit], list[Unit]]:
        """Of a dead worker: the units that it had begun (one at most), and those that it had not."""
        units = list(self.inflight)
        begun = len(units) - self.claims.left() - self.offered
        return units[:begun], units[begun:]


def launch_all(plan: Plan, count: int) -> list[Slot]:
    """The slots of a new pool, each with its worker; by the thread that makes it. Raises what a start raises: then all
    that had started are ended."""
    slots: list[Slot] = []
    try:
        for _ in range(count):
            slot = Slot(plan)
            slots.append(slot)
            slot.launch()
    except BaseException:
        started = [slot.process for slot in slots if slot.process is not None]
        try:
            for process in started:
                if process.exitcode is None:
                    process.terminate()
            for process in started:
                process.join(GRACE)
                if process.exitcode is None:
                    process.kill()
                    process.join(GIVE_UP)
        finally:
            for slot in slots:
                if slot.process is not None:
                    slot.bury(None)
                slot.free()
        raise
    return slots
