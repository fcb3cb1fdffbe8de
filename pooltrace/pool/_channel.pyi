from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

APPLY: int
MAP: int
STARMAP: int
STOP: int
READY: int
START_FAILED: int
RESULT: int
FAILED: int
FRESH: int
ONCE: int
PAGE_BYTES: int
WINDOW: int
RESULT_MOST: int

Buffer = bytes | bytearray | memoryview

class Answer(NamedTuple):
    kind: int
    flags: int
    unit: Any
    ns: int
    payload: Buffer | None
    buffers: list[bytearray]

class Frame(NamedTuple):
    kind: int
    flags: int
    generation: int
    unit: int
    job: int
    function: Buffer
    payload: Buffer | None
    buffers: list[bytearray]
    claimed: bool

class ParentEnd:
    def __init__(self, fd: int, page_fd: int) -> None: ...
    @property
    def room(self) -> int: ...
    @property
    def idle(self) -> bool: ...
    @property
    def lent(self) -> bool: ...
    @property
    def waiting(self) -> int: ...
    @property
    def assigned(self) -> int: ...
    @property
    def answers(self) -> int: ...
    @property
    def inflight(self) -> int: ...
    @property
    def ended(self) -> bool: ...
    @property
    def passed(self) -> int: ...
    def post(
        self,
        unit: object,
        kind: int,
        flags: int,
        generation: int,
        g: int,
        job: int,
        function: Buffer,
        payload: Buffer,
        buffers: list[memoryview],
        /,
    ) -> None: ...
    def call(
        self,
        unit: object,
        kind: int,
        flags: int,
        generation: int,
        g: int,
        job: int,
        function: Buffer,
        payload: Buffer,
        buffers: list[memoryview],
        gate: AbstractContextManager[object],
        waker: int,
        /,
    ) -> Answer | Literal[False] | None: ...
    def watch(self, pidfd: int, /) -> None: ...
    def ask(self) -> bool: ...
    def retire(self) -> bool: ...
    def stop(self) -> None: ...
    def flush(self) -> bool: ...
    def drop_unsent(self) -> None: ...
    def receive(self, answers: list[Answer], /) -> None: ...
    def receive_rest(self, answers: list[Answer], /) -> None: ...
    def take_back(self, most: int, /) -> list[Any]: ...
    def unanswered(self) -> tuple[list[Any], list[Any]]: ...
    def running(self) -> tuple[Any, int] | None: ...
    def units(self) -> list[Any]: ...
    def close(self) -> None: ...

class WorkerEnd:
    def __init__(self, fd: int, page_fd: int, hold: int) -> None: ...
    def take(self) -> Frame | None: ...
    def wait(self) -> bool: ...
    def ring(self) -> None: ...
    def answer(self, flags: int, payload: Buffer, buffers: list[memoryview], /) -> None: ...
    def tell(self, kind: int, flags: int, payload: Buffer, buffers: list[memoryview], /) -> None: ...
    def close(self) -> None: ...
