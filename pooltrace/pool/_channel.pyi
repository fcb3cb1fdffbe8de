from collections.abc import Sequence
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
PICKLE: int

Buffer = bytes | bytearray | memoryview

class Answer(NamedTuple):
    kind: int
    flags: int
    unit: Any
    ns: int
    payload: Buffer | None
    buffers: Sequence[bytearray]
    outcome: tuple[bool, Any] | None

class Frame(NamedTuple):
    kind: int
    flags: int
    generation: int
    unit: int
    job: int
    function: Buffer
    payload: Buffer | None
    buffers: Sequence[bytearray]
    claimed: bool

def plain(value: object, /) -> bytes | None: ...

class Unit:
    g: int
    generation: int
    what: Any
    packed: tuple[bytes, list[memoryview]] | None
    error: BaseException | None
    first: Sequence[Any] | None
    size: int
    items: int
    weight: int
    deaths: int
    losses: int
    sent: bool
    def __init__(self, job: Any, index: int, what: Any, g: int) -> None: ...
    @property
    def job(self) -> Any: ...
    @property
    def index(self) -> int: ...
    @property
    def span(self) -> tuple[int, int] | None: ...
    def payload(self) -> Any: ...

class Row:
    left: int
    generation: int
    def __init__(
        self, unit_type: type[Unit], job: Any, items: Sequence[Any], size: int, index: int, left: int, g: int, /
    ) -> None: ...
    @property
    def job(self) -> Any: ...
    @property
    def items(self) -> Sequence[Any]: ...
    @property
    def size(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def g(self) -> int: ...
    def take(self) -> Any: ...

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
    def post_row(self, row: Row, most: int, kind: int, job: int, /) -> int: ...
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
