"""The worker process: receives units, runs them, sends what came of each.

It knows its channel, the serializer and the tracer's emit functions; nothing of the engine. It has no thread of ours.
Whatever a unit does (raises, exits, returns what cannot be pickled, is interrupted) becomes the answer to that unit;
only death has none.
"""

from __future__ import annotations

import fcntl
import importlib
import marshal
import os
import re
import select
import signal
import socket
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any, NamedTuple, NoReturn

from pooltrace.errors import InternalError, TaskExitError
from pooltrace.pool import _channel, descriptors, jobs, otel
from pooltrace.pool._channel import Frame
from pooltrace.pool.serialize import Buffer, Cells, Pickled, Serializer, cells_of, describe, is_plain
from pooltrace.tracer import annotate, arena, emit, sampler

FUNCTIONS = 32  # jobs whose function a worker keeps,
FUNCTION_BYTES = 8 << 20  # as long as they are not larger together; the parent counts along
PARTS = 16 << 10  # bytes of arguments from which a trace tells how large each of them is
MOST_PARTS = 32  # of them
HOLD = 500_000  # ns for which results may be held back, while units are shorter than that
ASYNC_SINCE = (5, 10)  # Linux before this tells all readers of a pipe when one of them closes it


class Setup(NamedTuple):
    """What a worker process is started with."""

    channel: descriptors.PassedFd
    page: descriptors.PassedFd  # shared with the parent
    lifeline: descriptors.PassedFd
    trace: tuple[str, int, descriptors.PassedFd]  # path, entry, the trace pipe
    family: str
    unit: int  # its start-up
    generation: int
    max_tasks: int | None
    wrap: bool
    detail: str  # what a trace tells the cost of
    unmask: bool  # SIGINT was blocked only for the start


def start_function() -> emit.Stack:
    """What a worker's start-up is called in the trace; the summary knows it by that name."""
    return emit.frame("pooltrace.pool.worker.main", __file__, 0)


_STACK = (
    start_function()
)  # the stack of what is our own in a unit: to take the real one would cost more than most of that


def main(setup: Setup, initializer: Callable[..., object] | None, initargs: Iterable[Any]) -> None:
    """The target of a worker process."""
    signal.set_wakeup_fd(-1)  # who listens for signals in the parent has no use for ours
    path, entry, pipe = setup.trace
    channel = socket.socket(fileno=setup.channel.fd)
    channel.setblocking(True)
    descriptors.own(channel)
    if arena.attach_worker(path, entry, pipe.fd):
        sampler.prepare_worker(setup.detail)
    _die_with_parent(setup.lifeline.fd)
    pid = os.getpid()
    try:
        otel.forget()
        worker = _Worker(setup, channel)
        if worker.start(initializer, initargs):
            worker.run()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone, or does not want us any more
    except KeyboardInterrupt:
        pass  # by a handler of the user's own: quietly
    finally:
        if os.getpid() != pid:
            os._exit(0)
        descriptors.disown(channel)


def _die_with_parent(fd: int) -> None:
    """The kernel kills this process when the last writer of the lifeline, the parent, is gone, whatever runs here then.

    The read end is opened anew: owner and signal belong to the open file, which all workers would share.
    """
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if not hasattr(fcntl, "F_SETSIG") or not release or (int(release[1]), int(release[2])) < ASYNC_SINCE:
        return  # then a worker notices when it next reads or writes
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
        os.close(fd)
    except OSError:
        return  # no /proc
    gone = select.poll()
    gone.register(own, select.POLLIN)
    if gone.poll(0):
        os._exit(1)  # before we were armed


class _Function:
    """A job's function, as it came."""

    __slots__ = ("carrier", "cells", "loaded", "name", "pickled", "stack", "task")

    def __init__(self, blob: Buffer) -> None:
        (self.name, file, line, self.task, self.carrier), pickled = jobs.read_blob(memoryview(blob))
        self.stack = emit.frame(self.name, file, line)
        self.pickled = bytes(pickled)
        self.loaded: Callable[..., Any] | None = None
        self.cells: Cells = []

    def load(self) -> Callable[..., Any]:
        """The callable, as it came."""
        if self.loaded is not None:
            for cell, value in self.cells:
                cell.cell_contents = value
            return self.loaded
        function: Callable[..., Any] = Serializer.loads(self.pickled, [])
        cells = cells_of(function)
        if cells is not None:
            self.loaded, self.cells = function, cells
        return function


class Functions:
    """Which jobs' functions are kept: the newest ones, as many as there is room for. Both ends count alike."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[int, int] = OrderedDict()
        self._total = 0
        self.has = self._sizes.__contains__

    def add(self, job: int, size: int) -> list[int]:
        """Keeps one more; returns the jobs whose functions go for it."""
        gone = []
        self._total += size - self._sizes.pop(job, 0)
        self._sizes[job] = size
        while len(self._sizes) > 1 and (len(self._sizes) > FUNCTIONS or self._total > FUNCTION_BYTES):
            old, freed = self._sizes.popitem(last=False)
            self._total -= freed
            gone.append(old)
        return gone


class _Worker:
    def __init__(self, setup: Setup, channel: socket.socket) -> None:
        self.pid = os.getpid()
        self._setup = setup
        self._end = _channel.WorkerEnd(channel.fileno(), setup.page.fd, HOLD)
        os.close(setup.page.fd)
        self._serializer = Serializer(setup.family)
        self._pool = importlib.import_module(setup.family + ".pool")
        self._functions: dict[int, _Function] = {}
        self._kept = Functions()
        self._is_short = False  # it lacks a function which the parent counts on: it leaves, and another has it sent
        self._in_user_code = False  # an interrupt is the user's code's, not ours
        self._large: Frame | None = None  # what came for the unit that runs, if its parts are to be told
        self._here = annotate.unit
        self._here.thread = threading.get_ident()

    # -- start-up

    def start(self, initializer: Callable[..., object] | None, initargs: Iterable[Any]) -> bool:
        """Runs the initializer; False when it failed, which the parent has been told then."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupted)
        if self._setup.unmask:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        emit.unit_begin(self._setup.unit, self._setup.generation, start_function())
        error: BaseException | None = None
        if initializer is not None:
            name, file, line = describe(initializer)
            emit.region_begin(emit.ITEM, 0, name, emit.frame(name, file, line))
            try:
                self._user(lambda: initializer(*initargs))
            except BaseException as raised:
                error = raised
            emit.region_end()
        if error is None:
            self._end.tell(_channel.READY, 0, b"", [])
        else:
            emit.log(0, "exception", _brief(error))
            payload, buffers = self._pickle_error(error)
            self._end.tell(_channel.START_FAILED, _channel.FAILED, payload, buffers)
        emit.unit_end()
        return error is None

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        """SIGINT: Ctrl-C reaches every process of the terminal. It interrupts what the user's code does, not us."""
        if self._in_user_code:
            raise KeyboardInterrupt

    def _user(self, call: Callable[[], Any]) -> Any:
        try:
            self._in_user_code = True
            return call()
        finally:
            self._in_user_code = False

    # -- the loop

    def run(self) -> None:
        done = 0
        limit = self._setup.max_tasks
        while (limit is None or done < limit) and not self._is_short:
            frame = self._next()
            if frame is None or frame.kind == _channel.STOP:
                break
            if not frame.claimed:
                self._remember(frame)
                continue
            self._unit(frame)
            del frame
            done += 1
        self._end.ring()  # the end of a process may take its time

    def _next(self) -> Frame | None:
        end = self._end
        frame = end.take()
        if frame is None:
            emit.idle()
            while frame is None:
                if not end.wait():
                    return None
                frame = end.take()
        return frame

    def _remember(self, frame: Frame) -> _Function | None:
        if frame.payload is None and frame.flags & _channel.FRESH:  # there was no memory, for the function neither
            self._is_short = not frame.flags & _channel.ONCE
            return None
        if frame.flags & _channel.ONCE:
            return _Function(frame.function)
        if frame.flags & _channel.FRESH:
            self._functions[frame.job] = _Function(frame.function)
            for job in self._kept.add(frame.job, len(frame.function)):
                del self._functions[job]
        return self._functions.get(frame.job)

    def _unit(self, frame: Frame) -> None:
        _, given, generation, unit, job, _, came, beside, _ = frame
        function = self._remember(frame) if given or came is None else self._functions.get(job)
        if function:
            self._here.task = function.task
        emit.unit_begin(unit, generation, function.stack if function else None)
        flags, payload, buffers = self._answer(frame, function)
        if buffers or len(payload) > _channel.RESULT_MOST:
            emit.region_begin(emit.PHASE, 0, "send", _STACK)
            self._end.answer(flags, payload, buffers)
            emit.region_end()
        else:
            self._end.answer(flags, payload, buffers)  # in less time than a phase takes to tell of
        if self._large is not None:
            self._tell_parts(self._large)
            self._large = None
        emit.unit_end(came, beside, payload, buffers)

    def _answer(self, frame: Frame, function: _Function | None) -> tuple[int, bytes, list[memoryview]]:
        value: Any
        try:
            value = self._call(frame, function)
            failed = 0
            if os.getpid() != self.pid:
                _end_child(None)
        except BaseException as error:
            self._in_user_code = False
            if os.getpid() != self.pid:
                _end_child(error)
            value, failed = error, _channel.FAILED
            emit.log(function.task if function else 0, "exception", _brief(error))
        if not failed and (plain := _channel.plain(value)) is not None:
            return 0, plain, []  # in less time than a phase takes to tell of
        emit.region_begin(emit.PHASE, 0, "pickle", _STACK)
        try:
            if failed:
                payload, buffers = self._pickle_error(value)
            else:
                try:
                    self._in_user_code = True
                    payload, buffers = self._serializer.dumps_result(value)
                    self._in_user_code = False
                except BaseException as error:
                    self._in_user_code = False
                    failed = _channel.FAILED
                    payload, buffers = self._serializer.dumps_result(self._encoding_error(error, value))
        finally:
            emit.region_end()
        return failed, payload, buffers

    def _call(self, frame: Frame, known: _Function | None) -> Any:
        kind, _, _, _, _, _, payload, _, _ = frame
        if known is None:
            lost = payload is None
            raise MemoryError("no memory for what was sent") if lost else InternalError("no function came with a unit")
        token = None if known.carrier is None else otel.attach(known.carrier)
        try:
            if known.loaded is not None and is_plain(payload):
                function, what = known.load(), marshal.loads(payload)
            else:
                function, what = self._unpickle(frame, known)
            self._in_user_code = True
            if kind != _channel.APPLY:
                star = int(kind == _channel.STARMAP)
                return emit.run_chunk(function, what, star, known.task, known.name, known.stack)
            args, kwds = what
            return emit.run_call(function, args, kwds, known.task, known.name, known.stack)
        finally:
            self._in_user_code = False
            if token is not None:
                otel.detach(token)

    def _tell_parts(self, frame: Frame) -> None:
        """How large each argument was, if that can be seen in the pickle."""
        sizes = [len(buffer) for buffer in frame.buffers]
        for label, size in (_channel.parts(frame.payload or b"", sizes, frame.kind) or [])[:MOST_PARTS]:
            emit.log(0, f"argument {label} bytes", str(size))

    def _unpickle(self, frame: Frame, known: _Function) -> tuple[Callable[..., Any], Any]:
        if (frame.buffers or len(frame.payload or b"") >= PARTS) and emit.enabled():
            self._large = frame
        emit.region_begin(emit.PHASE, 0, "unpickle", _STACK)
        try:
            self._in_user_code = True
            return known.load(), Serializer.loads(frame.payload, frame.buffers)
        finally:
            self._in_user_code = False
            emit.region_end()

    # -- errors

    def _pickle_error(self, error: BaseException) -> Pickled:
        """The exception with its traceback, in a form of which it is sure that the parent can read it."""
        tb = _users_part(error.__traceback__)
        if isinstance(error, SystemExit):
            text = f"the task raised SystemExit({error.code!r}) in worker process {self.pid}"
            error = TaskExitError(text)
        whole = error
        try:
            if self._setup.wrap:
                wrapped = self._pool.ExceptionWithTraceback(error, tb)
                wrapped.exc.__traceback__ = None
                whole = wrapped
            pickled: Pickled = self._user(lambda: self._serializer.dumps_result(whole))
            self._user(lambda: Serializer.loads(*pickled))
        except BaseException as refusal:
            encoding = self._encoding_error(refusal, error)
            text = "".join(traceback.format_exception(type(error), error, tb))
            return self._serializer.dumps_result(_WithCause(encoding, f'\n"""\n{text}"""', self._setup.family))
        return pickled

    def _encoding_error(self, error: BaseException, value: object) -> Exception:
        try:
            made = self._pool.MaybeEncodingError(error, value)
        except BaseException:  # its repr fails, too
            made = self._pool.MaybeEncodingError(error, f"<{type(value).__qualname__} object whose repr() fails>")
        assert isinstance(made, Exception)
        return made


class _WithCause:
    """An exception that arrives with the text of a traceback as its cause."""

    def __init__(self, error: Exception, text: str, family: str) -> None:
        self._parts = (error, text, family)

    def __reduce__(self) -> tuple[object, ...]:
        error, text, family = self._parts
        return importlib.import_module(family + ".pool").rebuild_exc, (error, text)


def _end_child(error: BaseException | None) -> NoReturn:
    """The user's code forked, and its child came back to us: it ends here, as it would at the end of a program."""
    status = 0
    try:
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
            if error.code is not None and not isinstance(error.code, int):
                print(error.code, file=sys.stderr)
        elif error is not None:
            status = 1
            traceback.print_exception(type(error), error, _users_part(error.__traceback__))
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(status & 0xFF)


def _users_part(tb: TracebackType | None) -> TracebackType | None:
    """The traceback without our own frames at its head."""
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    return tb


def _brief(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:
        return type(error).__name__


__all__ = ["FUNCTIONS", "Functions", "Setup", "main"]
