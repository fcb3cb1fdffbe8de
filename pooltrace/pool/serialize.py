"""Serializer: objects to bytes and back, as the family of a pool's face would.

Knows picklers only; no job, and nothing of how bytes are sent. What is tried, in this order:

    arguments   C pickle with the family's ForkingPickler reducers, then cloudpickle (under multiprocess's face dill
                first, see `_fallbacks`)
    functions   the same. Under multiprocess's face everything that names `__main__` goes by value (dill), as there:
                what was defined, or defined anew, after the workers were forked must be in them as it is now
    results     C pickle, then under multiprocess's face dill and cloudpickle. Under the standard face a result that
                C pickle refuses is a MaybeEncodingError, as there

What is small and plain (constants, a few of them in a tuple or list) needs no pickler, and goes by marshal, see
core/plain.c; how an object came is seen by its first byte.

Buffers of 32 KiB and more (protocol 5) are handed out beside the pickle, uncopied.
"""

from __future__ import annotations

import copyreg
import functools
import importlib
import io
import marshal
import pickle
import sys
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, CellType, FunctionType, ModuleType, NoneType, SimpleNamespace
from typing import Any, TypeGuard

from pooltrace.pool import _channel

_OUT_OF_BAND = 32 * 1024
_CALL = "__call__"  # of a callable object's class
# What a pickler raises for things that it cannot do; anything else is the object's own error.
REFUSALS = (pickle.PicklingError, AttributeError, TypeError)

Buffer = bytes | bytearray | memoryview
Pickled = tuple[bytes, list[memoryview]]
Dump = Callable[[Any, "Callable[[pickle.PickleBuffer], object] | None"], bytes]


_DILL_PROTOCOL = 4  # its own default; the program may have set it to one that does not begin with a mark
_KEPT = 64 << 10  # bytes of a pickle after which its pickler may serve again


class Serializer:
    """Pickles for one family: "multiprocessing" or "multiprocess". `main_is_shared`: the worker has our `__main__`."""

    def __init__(self, family: str, main_is_shared: bool = True) -> None:
        self.family = family
        self._dill = family == "multiprocess"
        self._main_by_value = self._dill or not main_is_shared
        self._reducers: dict[type, Any] = importlib.import_module(family + ".reduction").ForkingPickler._extra_reducers
        self._seen: tuple[dict[Any, Any], dict[Any, Any]] = (
            {},
            {},
        )  # reducers, the family's and all, as picklers have them
        self._picklers: list[_Pickler] = []  # any thread takes one and puts it back: single operations

    def dumps_function(self, function: object) -> bytes:
        """A callable, in one piece; with `dumps` for arguments it is pickled once per job."""
        return self._dumps(function, False, self._main_by_value)[0]

    def dumps(self, obj: object) -> Pickled:
        """Arguments, or the initializer's. Raises what the family's pickler would."""
        plain = _channel.plain(obj)
        return (plain, []) if plain is not None else self._dumps(obj, True, self._main_by_value)

    def dumps_result(self, obj: object) -> Pickled:
        """What a worker sends back: `__main__` is always known in the parent."""
        plain = _channel.plain(obj)
        if plain is not None:
            return plain, []
        return self._dumps(obj, True, False) if self._dill else self._fast(obj, True)

    def _dumps(self, obj: object, beside: bool, main_by_value: bool) -> Pickled:
        refusal: Exception | None = None
        try:
            data, buffers = self._fast(obj, beside)
            if not main_by_value or b"__main__" not in data:
                return data, buffers
        except REFUSALS as error:
            refusal = error
        for fallback in self._fallbacks():
            buffers = []
            try:
                return fallback(obj, functools.partial(_take, buffers) if beside else None), buffers
            except REFUSALS as error:
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def _fast(self, obj: object, beside: bool) -> Pickled:
        if self._reducers != self._seen[0] or copyreg.dispatch_table != self._seen[1]:
            self._seen = (self._reducers.copy(), copyreg.dispatch_table.copy())
            self._picklers = []
        picklers = self._picklers
        try:
            pickler = picklers.pop()  # nobody else has it now: no other thread, and no object that pickles another
        except IndexError:
            pickler = _Pickler({**self._seen[1], **self._seen[0]})
        pickler.beside = beside
        pickler.dump(obj)
        pickler.clear_memo()  # keeps nothing alive
        pieces = pickler.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        buffers = pickler.buffers
        if buffers:
            pickler.buffers = []
        else:
            buffers = []
        if len(data) < _KEPT:  # its memo never shrinks, and is cleared from end to end each time
            picklers.append(pickler)
        return data, buffers

    def _fallbacks(self) -> list[Dump]:
        # Under multiprocess's face dill comes first: its functions share the worker's globals, as that pool's users
        # expect; cloudpickle's have copies, so that what an initializer sets in a global would not be seen.
        return [self._with_dill, self._with_cloudpickle] if self._dill else [self._with_cloudpickle]

    def _with_cloudpickle(self, obj: object, take: Callable[[pickle.PickleBuffer], object] | None) -> bytes:
        import cloudpickle

        file = io.BytesIO()
        pickler = cloudpickle.CloudPickler(file, 5, buffer_callback=take)
        # Its own table is a ChainMap over copyreg's: the family's reducers come after its own.
        pickler.dispatch_table = pickler.dispatch_table.new_child(_missing(self._reducers, pickler.dispatch_table))
        pickler.dump(obj)
        return file.getvalue()

    def _with_dill(self, obj: object, take: Callable[[pickle.PickleBuffer], object] | None) -> bytes:
        return bytes(importlib.import_module(self.family + ".reduction").ForkingPickler.dumps(obj, _DILL_PROTOCOL))

    @staticmethod
    def loads(data: Buffer | None, buffers: Sequence[Buffer]) -> Any:
        """The object again. Raises whatever the object's own unpickling raises, and MemoryError if there was no memory
        to receive it (None)."""
        if data is None:
            raise MemoryError("there is no memory for what was sent")
        if is_plain(data):
            return marshal.loads(data)
        return pickle.loads(data, buffers=buffers)


def is_plain(data: Buffer | None) -> TypeGuard[Buffer]:
    """Whether no pickler made this, but marshal."""
    return data is not None and data[0] != _channel.PICKLE


class _Pickler(pickle.Pickler):
    """A C pickler that serves again (to make one costs more than to pickle most arguments), unless it has failed."""

    def __init__(self, reducers: dict[type, Any]) -> None:
        self.pieces: list[bytes] = []
        self.buffers: list[memoryview] = []
        self.beside = False  # large buffers go there, rather than into the pickle
        super().__init__(SimpleNamespace(write=self.pieces.append), 5, buffer_callback=self._take)
        self.dispatch_table = reducers

    def _take(self, buffer: pickle.PickleBuffer) -> bool:
        return not self.beside or _take(self.buffers, buffer)


def _take(buffers: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    """Puts a large buffer beside the pickle; True: it is for the pickle itself."""
    raw = buffer.raw()
    if raw.nbytes < _OUT_OF_BAND or len(buffers) >= 1024:
        return True
    buffers.append(raw)
    return False


def _missing(reducers: dict[type, Any], table: Any) -> dict[type, Any]:
    return {cls: reduce for cls, reduce in reducers.items() if cls not in table}


def main_is_importable() -> bool:
    """Can a process that is not forked from us import our `__main__`? Not that of a notebook, of `-c`, of stdin."""
    main = sys.modules.get("__main__")
    if getattr(main, "__spec__", None) is not None:
        return True
    path = getattr(main, "__file__", None)
    return bool(path) and not str(path).startswith("<")


Cells = list[tuple[CellType, Any]]


def cells_of(function: object) -> Cells | None:
    """May the worker keep this callable for the next unit? Then the cells of its closure, whose values have to be put
    back before. None: it has state beyond them, and is loaded anew each time, as in the stock pools."""
    if isinstance(function, type):
        return []
    if type(function) is functools.partial:
        values = (*function.args, *function.keywords.values())
        return cells_of(function.func) if not vars(function) and all(map(_is_constant, values)) else None
    if isinstance(function, BuiltinFunctionType):
        return [] if isinstance(function.__self__, (NoneType, ModuleType)) else None
    if not isinstance(function, FunctionType):
        return None
    if _is_of_a_module(function):
        return []  # its state is the module's, as in the stock pools
    if vars(function) or not all(
        map(_is_constant, (function.__defaults__ or (), *(function.__kwdefaults__ or {}).values()))
    ):
        return None
    try:
        cells = [(cell, cell.cell_contents) for cell in function.__closure__ or ()]
    except ValueError:  # an empty one
        return None
    return cells if all(_is_constant(value) for _, value in cells) else None


def _is_of_a_module(function: FunctionType) -> bool:
    """It was pickled by its name."""
    found: object = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def _is_constant(value: object, depth: int = 0) -> bool:
    """Nobody can change it."""
    kind = type(value)
    if kind in (tuple, frozenset):
        return depth < 5 and all(_is_constant(part, depth + 1) for part in value)  # type: ignore[attr-defined]
    return kind in (NoneType, bool, int, float, complex, str, bytes, range, ModuleType)


def describe(function: object) -> tuple[str, str, int]:
    """Name (`module.qualname`), file and line of the function behind partials, methods and objects. Never raises."""
    try:
        return _describe(function)
    except Exception:  # an object whose attributes cannot be had
        return type(function).__qualname__, "", 0


def _describe(function: object) -> tuple[str, str, int]:
    for _ in range(16):
        inner = (
            getattr(function, "func", None)
            if type(function).__name__ == "partial"
            else getattr(function, "__func__", None)
        )
        if inner is None:
            break
        function = inner
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str):
        function = type(function)
        name = function.__qualname__
    module = getattr(function, "__module__", None)
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None) or getattr(
        getattr(function, _CALL, None), "__code__", None
    )
    file, line = getattr(code, "co_filename", ""), getattr(code, "co_firstlineno", 0)
    full = f"{module}.{name}" if isinstance(module, str) and module else name
    return full, file if isinstance(file, str) else "", line if isinstance(line, int) else 0
