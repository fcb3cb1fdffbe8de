"""A slot: the place of one worker at a time, with that worker's process, channel and trace.

Of the dispatcher's thread, except that the first workers are launched by the thread that makes the pool. Knows channels
and processes; which unit goes where is the engine's business.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from pooltrace.pool import _channel, descriptors, worker
from pooltrace.pool._channel import Answer
from pooltrace.pool.jobs import Job, Row, Unit, Waiting
from pooltrace.pool.serialize import Serializer
from pooltrace.tracer import arena, emit, machine, session

DEPTH = 2  # units at a worker: one runs, one waits; more of them
DEPTH_NS = 2_000_000  # while together they take no longer than this,
DEPTH_BYTES = 1 << 20  # and are not larger
AT_ONCE = 64 << 10  # bytes of a payload that does not wait for others to be sent with: the worker could begin
SEND_BUFFER = 1 << 20  # bytes that are asked for: large things cross in fewer steps
LOOK = 0.01  # seconds between looks at a worker that may hold results back
GRACE = 0.7  # seconds between SIGTERM and SIGKILL, for a handler that saves something: the end takes a second at most
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
    retries: int = 0  # of a unit that was lost with its worker
    task_timeout: float | None = None  # seconds that a unit may take
    detail: str = "unit"  # what a trace tells the cost of
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
        self.end: _channel.ParentEnd | None = None  # of its channel: what is sent and not answered
        self.retry_at = 0.0  # not to be filled before (time.monotonic)
        self.pidfd = -1
        self.ready = False
        self._forget = session.describe_units(self._units)

    def free(self) -> None:
        self._forget()
        emit.free_p(self.p)

    def _units(self) -> list[tuple[int, emit.Stack]]:
        """The G and the start function of all that may be running in the worker. Any thread, under `session.begins`."""
        end = self.end
        found = [(unit.g, unit.job.start) for unit in end.units()] if end is not None else []
        if (last := self.last) is not None:
            found.append((last[0], last[1].start))  # it ends after it was answered
        return [*found, (self.start_up, worker.start_function())]

    # -- the life of a worker

    def launch(self) -> Process:
        """Starts a worker. Raises what that raises; then nothing is left behind."""
        with _Lock.lock:
            self.channel, child = socket.socketpair()
            for one in (self.channel, child):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self.page = descriptors.End(-1)
            descriptors.own(self.channel, child, self.page)
            try:
                self.page.fd = descriptors.shared_memory(_channel.PAGE_BYTES)
                end = _channel.ParentEnd(self.channel.fileno(), self.page.fd)
                process = self._start(child)
            except BaseException:
                descriptors.disown(self.channel)
                raise
            finally:
                descriptors.disown(child, self.page)
        self.ready = self.stopping = self.writing = False
        self.late: Unit | None = None  # it takes too long, and the worker was killed for it
        self.died_lent = False  # while a call had it
        self.listening = 0  # what the engine's selector looks for in the channel
        self.oom_kills = machine.oom_kills()
        self.restless = False  # it may have results that it has not told of,
        self.passed = 0  # or has begun units since the last look
        self.start_error: BaseException | None = None
        self._known = worker.Functions()  # jobs whose function the worker keeps
        self.process = process
        self.end = end
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
                channel=descriptors.PassedFd(child.fileno()),
                page=descriptors.PassedFd(self.page.fd),
                lifeline=descriptors.PassedFd(plan.lifeline),
                trace=(trace.path, trace.entry, descriptors.PassedFd(trace.write_fd)),
                family=plan.family,
                unit=g,
                generation=generation,
                max_tasks=plan.max_tasks,
                wrap=plan.wrap,
                detail=plan.detail,
                unmask=signal.SIGINT not in before,
            )
            process = plan.make_process(target=worker.main, args=(setup, plan.initializer, plan.initargs))
            process.name = process.name.replace("Process", "PoolWorker")
            process.daemon = True
            descriptors.keep(child, self.page)
            try:
                with session.begins:
                    process.start()
            finally:
                descriptors.keep()
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
        if self.end is not None:
            self.end.watch(self.pidfd)
        return self.pidfd

    def bury(self, text: str | None, begun: Unit | None = None) -> None:
        """The worker is dead, its channel was read to the end: gives back all that was its. `text`: how it was lost;
        `begun`: the unit that it had claimed."""
        self.trace.gone(text, (begun.g, begun.generation, begun.job.start) if begun else None)
        self.ready = False
        end, self.end = self.end, None
        if end is not None:
            end.close()
        descriptors.disown(self.channel)
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
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

    def is_open(self) -> bool:
        """It may be sent units now."""
        end = self.end
        usable = (
            end is not None and self.ready and not self.stopping and self.late is None and not end.ended and end.ask()
        )
        return usable and end is not None and self._left(end) > 0 and end.room > 0

    def is_idle(self) -> bool:
        """A call of any thread may have it, which nobody will notice: its channel is not listened to."""
        end = self.end
        usable = end is not None and self.ready and not self.stopping and not self.listening and end.idle
        return usable and end is not None and self._left(end) > 0

    def _left(self, end: _channel.ParentEnd) -> int:
        """How many units it may still be given in its life."""
        most = self.plan.max_tasks
        return _channel.WINDOW if most is None else most - end.assigned

    def has_served(self) -> bool:
        """It has done all that it may do in its life."""
        most = self.plan.max_tasks
        return most is not None and self.end is not None and self.end.answers >= most

    def wants(self, job: Job) -> int:
        """How many units of that job it may be given, as far as it is open."""
        end = self.end
        assert end is not None
        depth = DEPTH
        if job.unit_ns and end.waiting < DEPTH_BYTES:
            depth = max(DEPTH, DEPTH_NS // job.unit_ns)
        return max(0, min(depth - end.inflight, end.room, self._left(end)))

    @property
    def inflight(self) -> int:
        """How many units it has."""
        return self.end.inflight if self.end is not None else 0

    def post(self, unit: Unit, serializer: Serializer) -> bool:
        """Packs a unit's frame for this worker; False: a call has it now. Raises what pickling raises."""
        job, end = unit.job, self.end
        assert end is not None
        known = self._known.has(job.id)
        blob = b"" if known else job.blob(serializer)
        payload, buffers = unit.packed or serializer.dumps(unit.payload())
        flags = 0 if known else _channel.FRESH | (_channel.ONCE if job.single else 0)
        try:
            end.post(unit, job.kind, flags, unit.generation, unit.g, job.id, blob, payload, buffers)
        except BlockingIOError:
            return False
        if not known and not job.single:
            self._known.add(job.id, len(blob))
        if len(payload) >= AT_ONCE or buffers:
            self.flush()
        return True

    def post_row(self, row: Row, most: int) -> int:
        """Packs so many of a row's first units as can be packed without more ado; how many."""
        job, end = row.job, self.end
        if end is None or not self._known.has(job.id):
            return 0
        return end.post_row(row, most, job.kind, job.id)

    def post_units(self, waiting: Sequence[Waiting], most: int) -> int:
        """The same of the units of one job that wait one by one: the first ones, which stay where they are."""
        job, end = waiting[0].job, self.end
        if end is None or not self._known.has(job.id):
            return 0
        return end.post_units(waiting, most, job.kind, job.id)

    def call(self, unit: Unit, blob: bytes, waker: int) -> Answer | Literal[False] | None:
        """Sends the only unit of a job, packed, and waits for its answer, in the calling thread.

        False: the worker is not idle any more. None: the dispatcher has to go on, and is told by a byte to `waker`.
        Raises what a signal's handler does.
        """
        job, end, packed = unit.job, self.end, unit.packed
        if end is None or packed is None or not self.is_idle():
            return False
        flags, gate = _channel.FRESH | _channel.ONCE, session.begins
        return end.call(unit, job.kind, flags, unit.generation, unit.g, job.id, blob, *packed, gate, waker)

    def was_called(self, answer: Answer) -> None:
        """A call had this answer; any thread. The worker may have answered another one since."""
        unit = answer.unit
        if self.last is None or self.last[0] < unit.g:
            self.last = (unit.g, unit.job)

    def flush(self) -> bool:
        """Sends what it can; True when all is sent. A worker that cannot be sent to is left to its death, or killed."""
        end = self.end
        if end is None:
            return True
        self.restless = end.inflight > 1
        try:
            with session.begins:
                return end.flush()
        except OSError as error:
            end.drop_unsent()
            if not isinstance(error, (BrokenPipeError, ConnectionResetError)):
                self.kill()  # it may have read half a frame
            return True

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def answered_all(self, answers: list[tuple[Unit, int]]) -> None:
        """These units have their answers, after so many ns."""
        last = answers[-1][0]
        self.last = (last.g, last.job)
        first = answers[0][0].job
        if first is last.job and len(answers) > 1:  # and so, most likely, are those between
            first.took(sum([ns for _, ns in answers]) // len(answers))
        else:
            for unit, ns in answers:
                unit.job.took(ns)

    def take_back(self, most: int) -> list[Unit]:
        """The newest units that have not begun, in their order; the oldest one stays."""
        end = self.end
        if end is None or end.inflight < 2:
            return []
        units: list[Unit] = end.take_back(min(most, end.inflight - 1))
        units.reverse()
        return units

    def stop(self) -> None:
        """Asks the worker to end when it has done what it has."""
        if not self.stopping and self.end is not None:
            self.stopping = True
            self.end.stop()

    def receive(self) -> list[Answer]:
        """What the worker has said. Raises nothing: what becomes of a worker, its pidfd says better."""
        found: list[Answer] = []
        end = self.end
        if end is not None:
            try:
                end.receive(found)
            except ConnectionError:
                pass
            except OSError:  # what it says makes no sense: something has written over what we share
                self.kill()
        return found

    def receive_rest(self) -> list[Answer]:
        """All that a dead worker has left in its channel."""
        found: list[Answer] = []
        if self.end is not None:
            try:
                self.end.receive_rest(found)
            except OSError:
                pass
        return found

    def look(self) -> list[Answer]:
        """What it has not told of: it tells before it waits, and when it has run for a while, but a unit that takes
        long may follow. Nothing is to be looked for while it is in one unit."""
        found = self.receive()
        if self.end is not None:
            passed = self.end.passed
            self.restless = self.end.inflight > 1 and (bool(found) or passed != self.passed)
            self.passed = passed
        return found

    def unanswered(self) -> tuple[list[Unit], list[Unit]]:
        """Of a dead worker: the units that it had begun (one at most), and those that it had not."""
        return self.end.unanswered() if self.end is not None else ([], [])


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
                _join(process, GRACE)
                if process.exitcode is None and process.is_alive():
                    process.kill()
                    _join(process, GIVE_UP)
        finally:
            for slot in slots:
                if slot.process is not None:
                    slot.bury(None)
                slot.free()
        raise
    return slots


def _join(process: Process, seconds: float) -> None:
    try:
        process.join(seconds)
    except TypeError:  # a context's own kind of process, which need not take a time
        process.join()
