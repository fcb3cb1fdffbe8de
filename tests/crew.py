"""Workers without an engine: forked processes that do what they are told over pipes, to drive the tracer alone."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from pooltrace.tracer import arena, emit


def read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


_parents_ends: set[int] = set()  # descriptors that a later child must not keep: else an end of file never comes


class Worker:
    """One worker process in a slot of its own; ``do`` runs a function of the test in it and waits for its answer."""

    def __init__(self) -> None:
        self.p = emit.new_p()
        self.start()

    def start(self) -> None:
        """A process for the slot; again after the old one has gone."""
        self.place = arena.worker_open(self.p)
        down, self.orders = os.pipe()
        self.answers, up = os.pipe()
        self.pid = os.fork()
        _parents_ends.update((self.orders, self.answers))
        if self.pid == 0:
            for fd in _parents_ends:
                os.close(fd)
            self._main(down, up)
        os.close(down)
        os.close(up)
        self.place.close_write()

    def _main(self, down: int, up: int) -> None:
        try:
            assert arena.attach_worker(self.place.path, self.place.entry, self.place.write_fd)
            while True:
                (size,) = struct.unpack("<I", read_exactly(down, 4))
                function, args = pickle.loads(read_exactly(down, size))
                answer = pickle.dumps(function(*args))
                os.write(up, struct.pack("<I", len(answer)) + answer)
        except EOFError:
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def order(self, function: Callable[..., Any], *args: object) -> None:
        data = pickle.dumps((function, args))
        os.write(self.orders, struct.pack("<I", len(data)) + data)

    def answer(self) -> Any:
        (size,) = struct.unpack("<I", read_exactly(self.answers, 4))
        return pickle.loads(read_exactly(self.answers, size))

    def do(self, function: Callable[..., Any], *args: object) -> Any:
        self.order(function, *args)
        return self.answer()

    def end(self, *, kill: bool = False, claimed: tuple[int, int, emit.Stack] | None = None) -> None:
        """Ends the process, by SIGKILL if so wished, and closes its stream, with the unit that it had claimed."""
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        _parents_ends.difference_update((self.orders, self.answers))
        os.close(self.orders)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.answers)
        self.place.gone(f"pid {self.pid} was killed by SIGKILL" if kill else None, claimed)
        assert kill or status == 0, f"worker {self.pid} ended with status {status}"


@contextlib.contextmanager
def crew(size: int) -> Iterator[list[Worker]]:
    """So many workers, and an arena for them; all ended afterwards."""
    assert arena.acquire()
    workers: list[Worker] = []
    try:
        for _ in range(size):
            workers.append(Worker())
        yield workers
    finally:
        for worker in workers:
            if worker.place.entry >= 0:
                worker.end()
            emit.free_p(worker.p)
        arena.release()


def run_unit(g: int, generation: int, items: int) -> list[tuple[int, int]]:
    """In a worker: a unit of so many items, each with the times that the program itself takes around it."""
    import time

    clock = time.perf_counter_ns
    noted: list[tuple[int, int]] = []

    def item(i: int) -> int:
        noted.append((clock(), i))
        return i

    start = emit.frame("crew.item", __file__, 1)
    emit.unit_begin(g, generation, start)
    emit.region_begin(emit.PHASE, 1, "unpickle", start)
    emit.region_end()
    emit.run_chunk(item, range(items), 0, 1, "crew.item", start)
    emit.unit_end()
    emit.idle()
    return noted


def flood(g: int, count: int, size: int = 1000) -> int:
    """In a worker: a unit with more to say than pipe and backlog hold, when nobody reads the file."""
    emit.unit_begin(g, 0, None)
    for i in range(count):
        emit.log(0, "flood", str(i).zfill(size))
    emit.unit_end()
    emit.idle()
    return count
