"""The serializer: what goes by reference, what by value, what beside the pickle, and what is refused."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
from multiprocessing.connection import Pipe
from typing import Any

import numpy
import pytest
from faults import NotPicklable, add, square

from pooltrace.pool import _channel
from pooltrace.pool.serialize import Serializer, cells_of, describe, main_is_importable

FAMILIES = ("multiprocessing", "multiprocess")


@pytest.fixture(params=FAMILIES)
def serializer(request: pytest.FixtureRequest) -> Serializer:
    return Serializer(request.param)


def round_trip(serializer: Serializer, obj: object) -> Any:
    return serializer.loads(*serializer.dumps(obj))


@pytest.mark.parametrize("obj", ["x" * 100_000, 1j, range(5), [1, (2, {3: b"4"})], square, functools.partial(add, y=2)])
def test_plain_things_are_plain_pickles(serializer: Serializer, obj: Any) -> None:
    data, buffers = serializer.dumps(obj)
    assert buffers == []
    again = pickle.loads(data)
    if isinstance(obj, functools.partial):
        assert again(1) == obj(1)
    else:
        assert again == obj


def test_large_buffers_go_beside_the_pickle(serializer: Serializer) -> None:
    large, small = numpy.arange(100_000), numpy.arange(10)
    data, buffers = serializer.dumps((large, small))
    assert len(data) < 2000
    assert [buffer.nbytes for buffer in buffers] == [800_000]
    a, b = serializer.loads(data, [memoryview(bytearray(buffer)) for buffer in buffers])
    assert (a == large).all()
    assert (b == small).all()
    assert a.flags.writeable


def test_lambdas_and_closures(serializer: Serializer) -> None:
    factor = 3
    assert round_trip(serializer, lambda x: x * factor)(2) == 6
    assert pickle.loads(serializer.dumps_function(lambda x: x * factor))(2) == 6
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        serializer.dumps(NotPicklable())
    with pytest.raises(TypeError, match="generator"):
        serializer.dumps(x for x in ())


def test_results_of_the_standard_family_are_as_strict_as_there() -> None:
    with pytest.raises((AttributeError, pickle.PicklingError)):
        Serializer("multiprocessing").dumps_result(lambda: 1)
    assert Serializer.loads(*Serializer("multiprocess").dumps_result(lambda: 1))() == 1


def test_the_familys_reducers_are_used() -> None:
    serializer = Serializer("multiprocessing")
    left, right = Pipe()
    data, _ = serializer.dumps([left])
    assert b"rebuild_connection" in data
    left.close()
    right.close()


MAIN = """
    import sys, pickle
    from pooltrace.pool.serialize import Serializer, main_is_importable
    def f(x): return x + CONSTANT
    CONSTANT = 1
    by_reference = Serializer("multiprocessing").dumps_function(f)
    by_value = Serializer("multiprocess").dumps_function(f)
    isolated = Serializer("multiprocessing", main_is_shared=False).dumps_function(f)
    CONSTANT = 10
    old = f
    def f(x): return "another"
    assert pickle.loads(by_reference)(1) == "another"   # as the stock pool: the worker's own
    assert pickle.loads(by_value)(1) == 11              # as multiprocess: this function, the worker's globals
    assert pickle.loads(isolated)(1) == 2               # all that it needs
    print(main_is_importable())
"""


def test_functions_of_main(tmp_path: Any) -> None:
    code = "\n".join(line[4:] for line in MAIN.splitlines())
    program = tmp_path / "program.py"
    program.write_text(code)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for command, importable in (([str(program)], "True"), (["-c", code], "False")):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, check=False)
        assert (done.stdout.strip(), done.stderr) == (importable, "")
    assert main_is_importable()


class Callable:
    def __call__(self, x: int) -> int:
        return x

    def method(self, x: int) -> int:
        return x

    @classmethod
    def maker(cls) -> None:
        pass


def test_describe_names_the_users_function() -> None:
    here = __name__
    assert describe(square)[0] == "faults.square"
    assert describe(square)[1].endswith("faults.py")
    assert describe(square)[2] == square.__code__.co_firstlineno
    assert describe(functools.partial(functools.partial(add, 1), 2))[0] == "faults.add"
    assert describe(Callable())[0] == f"{here}.Callable"
    assert describe(Callable())[1] == __file__
    assert describe(Callable().method)[0] == f"{here}.Callable.method"
    assert describe(Callable.maker)[0] == f"{here}.Callable.maker"
    assert describe(len) == ("builtins.len", "", 0)
    assert describe(int)[0] == "builtins.int"
    assert "lambda" in describe(lambda: 0)[0]


def test_callables_whose_state_can_be_put_back_are_kept() -> None:
    state, number, text = [1], 1, ("a", frozenset({b"b"}))
    for plain in (square, len, int, functools.partial(add, 1), functools.partial(functools.partial(add, x=1), y=None)):
        assert cells_of(plain) == []
    cells = cells_of(lambda: (number, text))
    assert cells is not None
    assert sorted(str(value) for _, value in cells) == sorted([str(number), str(text)])
    assert cells_of(functools.partial(lambda x: (number, x), 1)) is not None
    held = functools.partial(add, 1)
    held.state = state  # type: ignore[attr-defined]
    deep: tuple[object, ...] = ()
    for _ in range(10):
        deep = (deep,)
    others: list[object] = [
        lambda: state,
        state.append,
        functools.partial(add, state),
        functools.partial(add, (1, state)),
        functools.partial(add, deep),
        functools.partial(state.append, 1),
        functools.partial(lambda x: state, 1),
        held,
        Callable(),
        Callable().method,
    ]
    for other in others:
        assert cells_of(other) is None
    assert cells_of(make_counter) == []
    assert cells_of(counter) == []  # the module's: its cells are left alone
    assert cells_of(lambda x, seen=[]: seen) is None
    assert cells_of(lambda x, seen=(1, 2), *, more="a": seen) == []
    marked = lambda: number
    marked.state = state  # type: ignore[attr-defined]
    assert cells_of(marked) is None
    empty = lambda: later
    assert cells_of(empty) is None
    later = 1
    assert cells_of(empty) is not None


PLAIN: list[Any] = [
    None,
    True,
    5,
    -(1 << 63),
    (1 << 63) - 1,
    2.5,
    float("inf"),
    "a",
    "\ud800 and \u20ac",
    b"b",
    "__main__",
    "x" * 4096,
    "\u20ac" * 2048,
    [str(number).zfill(64) for number in range(64)],
    [1000, 1000.5, None, b"", "", (), ()] * 9,
    (),
    [],
    (1,),
    [None],
    (1, "a", b""),
    ((1,), {}),
    ((), {}),
    ((1, (2, 3)), {}),
    [(1, 2), (), "a"],
    [float(number) for number in range(64)],
]
OTHER: list[Any] = [
    {},
    [{}],
    ((1,), {"a": 1}),
    ((1,), {}, 1),
    ([1],),
    (((1,),),),
    (1, square),
    [[None]],
    "x" * 4097,
    "\u20ac" * 2049,
    (b"x" * 4097,),
    [str(number).zfill(65) for number in range(64)],
    [twice := "twice", twice],
    [twice.encode()] * 2,
    (twice, (twice,)),
    ((twice, twice), {}),
    [(twice, 1)] * 2,
    [((1,), {})],
    [("x" * 2000,), ("x" * 2000,), ("x" * 97,)],
    1 << 63,
    [-(1 << 63) - 1],
    [None] * 65,
    (number := type("Number", (int,), {}))(5),
    (number(5),),
    type("Row", (tuple,), {})((1,)),
    type("Text", (str,), {})("a"),
    1j,
    range(3),
]


def kinds(obj: Any) -> Any:
    return (type(obj), [kinds(part) for part in obj]) if isinstance(obj, (tuple, list)) else type(obj)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_plain_needs_nobody(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serializer = Serializer(family)
    asked: list[object] = []
    monkeypatch.setattr(serializer, "_dumps", lambda obj, *_: asked.append(obj) or (b"\x80", []))
    for dumps in (serializer.dumps, serializer.dumps_result):
        for obj in PLAIN:
            data, buffers = dumps(obj)
            assert data[0] != _channel.PICKLE
            for received in (data, bytearray(data), memoryview(data)):
                again = Serializer.loads(received, buffers)
                assert (again, kinds(again)) == (obj, kinds(obj))
    assert asked == []
    for obj in OTHER:
        assert serializer.dumps(obj)[0] == b"\x80"
    assert [id(obj) for obj in asked] == [id(obj) for obj in OTHER]


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_else_begins_as_a_pickle(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import dill

    monkeypatch.setitem(dill.settings, "protocol", 0)
    serializer = Serializer(family)
    count = 0

    def by_value(_: object) -> int:
        return count

    for obj in (square, by_value, [[1]], {"a": by_value}):
        for data in (serializer.dumps(obj)[0], serializer.dumps_function(obj)):
            assert data[0] == _channel.PICKLE
            Serializer.loads(data, [])


def test_a_plain_thing_that_makes_no_sense_is_an_error() -> None:
    with pytest.raises((ValueError, EOFError, TypeError)):
        Serializer.loads(b"(\x05\x00", [])


def make_counter() -> Any:
    count = 0

    def counter() -> int:
        nonlocal count
        count += 1
        return count

    counter.__qualname__ = "counter"
    return counter


counter = make_counter()


@pytest.mark.parametrize("family", ["multiprocessing", "multiprocess"])
def test_a_pickler_that_had_much_to_remember_is_not_kept(family: str) -> None:
    """Its memo stays as large as it was, and is cleared from end to end each time."""
    serializer = Serializer(family)
    serializer.dumps([[1], [2]])
    assert len(serializer._picklers) == 1
    serializer.dumps([[number] for number in range(100_000)])
    assert serializer._picklers == []
