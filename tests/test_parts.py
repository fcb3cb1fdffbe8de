"""What each argument takes of a pickle: right in all shapes that picklers write, None for what is no such.

The judge is a slow reading of the same bytes by `pickletools.genops`, with a tree of objects rather than rows of sizes.
"""

from __future__ import annotations

import collections
import decimal
import functools
import io
import itertools
import marshal
import pickle
import pickletools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cloudpickle
import numpy
import pytest
from pieces import SEED

from pooltrace.pool import _channel
from pooltrace.pool._channel import APPLY, MAP, STARMAP
from pooltrace.pool.serialize import Serializer

PROTOCOLS = range(2, 6)
SLACK = 24  # bytes of opcodes around an argument, and of a frame that begins there
Parts = list[tuple[str, int]] | None
Dump = Callable[[Any], bytes]


def parts(payload: bytes | bytearray | memoryview, kind: int, sizes: Sequence[int] = ()) -> Parts:
    return _channel.parts(payload, sizes, kind)


class Thing:
    """Goes by NEWOBJ and BUILD."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class Row(list[Any]):
    """A list that is none to a pickler."""


class Pair(tuple[Any, ...]):
    pass


# -- the slow reading


class Node:
    """An element of the unpickler's stack."""

    def __init__(self, start: int, first: str, kind: str = "other", name: str | None = None) -> None:
        self.start = start
        self.first = first  # the opcode there
        self.kind = kind
        self.name = name
        self.made = ""  # by which opcode
        self.inner: list[tuple[Node, int]] = []  # with their sizes


class Unknown(Exception):
    pass


_PLAIN = """\
NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
NEXT_BUFFER SHORT_BINUNICODE BINUNICODE BINUNICODE8 EMPTY_LIST EMPTY_TUPLE EMPTY_DICT EMPTY_SET EXT1 EXT2 EXT4 GLOBAL"""
PLAIN = set(_PLAIN.split())
KINDS = {"EMPTY_LIST": "list", "EMPTY_TUPLE": "tuple", "EMPTY_DICT": "dict"}
FOLDS = {"READONLY_BUFFER": 1, "REDUCE": 2, "BUILD": 2, "NEWOBJ": 2, "STACK_GLOBAL": 2, "NEWOBJ_EX": 3}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Slow:
    def __init__(self, payload: bytes, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.stack: list[Node | None] = []  # None: a mark
        self.memo: dict[int, Node] = {}
        self.next_id = 0
        self.beside = 0
        ops = [(op.name, arg, pos) for op, arg, pos in pickletools.genops(payload) if pos is not None]
        if ops[0][0] != "PROTO" or ops[0][1] not in PROTOCOLS or ops[-1][2] != len(payload) - 1:
            raise Unknown
        self.ops = ops[1:]
        self.length = len(payload)
        self.here = self.index = 0
        self.aside = -1
        while self.index < len(self.ops):
            self.step(*self.ops[self.index])
            self.index += 1

    def pop(self, count: int) -> list[Node]:
        if count == 0:
            return []
        popped = self.stack[-count:]
        if len(popped) < count or None in popped:
            raise Unknown
        del self.stack[-count:]
        return [node for node in popped if node is not None]

    def to_mark(self) -> list[Node]:
        count = next((i for i, node in enumerate(reversed(self.stack)) if node is None), -1)
        if count < 0:
            raise Unknown
        nodes = self.pop(count)
        self.stack.pop()
        return nodes

    def with_sizes(self, nodes: list[Node]) -> list[tuple[Node, int]]:
        ends = [node.start for node in nodes[1:]] + [self.here]
        return [(node, end - node.start) for node, end in zip(nodes, ends, strict=True)] if nodes else []

    def fold(self, name: str, nodes: list[Node], kind: str = "other") -> Node:
        node = Node(nodes[0].start, nodes[0].first, kind) if nodes else Node(self.here, name, kind)
        node.made = name
        self.stack.append(node)
        return node

    def fill(self, name: str, kind: str, nodes: list[Node]) -> None:
        (target,) = self.pop(1)
        self.stack.append(target)
        if "SETITEM" in name:
            if len(nodes) % 2:
                raise Unknown
            if target.first in ("BINGET", "LONG_BINGET"):
                self.aside = self.index + 1
        if target.kind != kind:
            target.kind, target.name = "other", None
        target.inner += self.with_sizes(nodes)

    def discard(self, nodes: list[Node]) -> None:
        if not nodes or self.aside == self.index or self.index + 1 == len(self.ops):
            return
        if self.ops[self.index + 1][0] in ("BINGET", "LONG_BINGET"):
            self.index += 1
            name, arg, _ = self.ops[self.index]
            self.get(name, arg)
            self.stack[-1] = Node(nodes[0].start, nodes[0].first)

    def get(self, name: str, number: int) -> None:
        if number >= self.next_id:
            raise Unknown
        known = self.memo.get(number)
        node = Node(self.here, name)
        if known and self.stack and known.kind != "dict":
            node.kind, node.name = known.kind, known.name
        self.stack.append(node)

    def put(self, number: int) -> None:
        (node,) = self.pop(1)
        self.stack.append(node)
        kept = Node(0, "", node.kind, node.name)
        if node.kind == "name" and node.first in ("BINGET", "LONG_BINGET"):
            kept = Node(0, "")
        self.memo[number] = kept
        self.next_id = max(self.next_id, number + 1)

    def step(self, name: str, arg: Any, position: int) -> None:
        self.here = position + self.beside
        if name in PLAIN:
            node = Node(self.here, name, KINDS.get(name, "other"))
            node.made = name
            if name in ("SHORT_BINUNICODE", "BINUNICODE") and len(arg.encode("utf-8", "surrogatepass")) <= 255:
                node.kind, node.name = "name", arg
            self.stack.append(node)
            if name == "NEXT_BUFFER":
                if not self.sizes:
                    raise Unknown
                self.beside += self.sizes.pop(0)
        elif name in FOLDS:
            self.fold(name, self.pop(FOLDS[name]))
            if name == "REDUCE":
                self.aside = self.index + 1
        elif name in TUPLES or name == "TUPLE":
            nodes = self.to_mark() if name == "TUPLE" else self.pop(TUPLES[name])
            self.fold(name, nodes, "tuple").inner = self.with_sizes(nodes)
        else:
            self.other(name, arg, position)

    def other(self, name: str, arg: Any, position: int) -> None:
        if name == "MARK":
            self.stack.append(None)
        elif name == "FROZENSET":
            self.fold(name, self.to_mark())
        elif name in ("APPENDS", "SETITEMS", "ADDITEMS"):
            self.fill(name, {"APPENDS": "list", "SETITEMS": "dict", "ADDITEMS": "set"}[name], self.to_mark())
        elif name in ("APPEND", "SETITEM"):
            self.fill(name, "list" if name == "APPEND" else "dict", self.pop(1 if name == "APPEND" else 2))
        elif name in ("BINGET", "LONG_BINGET"):
            self.get(name, arg)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.put(self.next_id if name == "MEMOIZE" else arg)
        elif name == "DUP":
            self.stack += [*self.pop(1), Node(self.here, name)]
        elif name == "POP":
            at, count = self.index, 1
            while self.ops[self.index + 1][0] == "POP":
                self.index, count = self.index + 1, count + 1
            if self.aside == at:
                self.aside = self.index
            self.discard(self.pop(count))
        elif name == "POP_MARK":
            self.discard(self.to_mark())
        elif name != "STOP" and (name != "FRAME" or arg > self.length - position - 9):
            raise Unknown

    def answer(self, kind: int) -> Parts:
        root = self.stack[0]
        if len(self.stack) != 1 or root is None or root.kind not in ("tuple", "list"):
            raise Unknown
        if kind == MAP:
            return [("0", sum(size for _, size in root.inner))] if root.inner else []
        if kind == STARMAP:
            sums: list[int] = []
            for item, _ in root.inner:
                if item.kind not in ("tuple", "list"):
                    raise Unknown
                sums += [0] * (len(item.inner) - len(sums))
                for i, (_, size) in enumerate(item.inner):
                    sums[i] += size
            return [(str(i), size) for i, size in enumerate(sums)]
        if root.made != "TUPLE2":
            raise Unknown
        (args, _), (kwds, _) = root.inner
        if args.kind not in ("tuple", "list") or kwds.kind != "dict":
            raise Unknown
        labels = [label(key) for key, _ in kwds.inner[::2]]
        return [(str(i), size) for i, (_, size) in enumerate(args.inner)] + [
            (name, size) for name, (_, size) in zip(labels, kwds.inner[1::2], strict=True)
        ]


def label(key: Node) -> str:
    try:
        (key.name or "").encode()
    except UnicodeEncodeError:
        return "?"
    return key.name if key.name is not None else "?"


def slow(payload: bytes, kind: int, sizes: Sequence[int] = ()) -> Parts:
    """What parts() should say."""
    try:
        return Slow(payload, sizes).answer(kind)
    except Unknown:
        return None


# -- picklers


def _python(protocol: int, value: object) -> bytes:
    file = io.BytesIO()
    pickle._Pickler(file, protocol).dump(value)
    return file.getvalue()


def picklers() -> Iterator[Any]:
    for protocol in PROTOCOLS:
        yield pytest.param(functools.partial(pickle.dumps, protocol=protocol), id=f"pickle-{protocol}")
        yield pytest.param(functools.partial(_python, protocol), id=f"python-{protocol}")
        yield pytest.param(lambda value, p=protocol: bytes(ForkingPickler.dumps(value, p)), id=f"forking-{protocol}")
        yield pytest.param(functools.partial(cloudpickle.dumps, protocol=protocol), id=f"cloudpickle-{protocol}")
        yield pytest.param(lambda value, p=protocol: dill().dumps(value, p), id=f"dill-{protocol}")


def dill() -> Any:
    return pytest.importorskip("dill")


every_pickler = pytest.mark.parametrize("dumps", list(picklers()))


def near(found: Parts, expected: list[tuple[str, int]], slack: int = SLACK) -> bool:
    """The labels are these, and each is as large as that, or larger by a few bytes of opcodes."""
    if found is None or [name for name, _ in found] != [name for name, _ in expected]:
        return False
    return all(least <= size <= least + slack for (_, size), (_, least) in zip(found, expected, strict=True))


# -- shapes


@every_pickler
@pytest.mark.parametrize("container", [tuple, list])
def test_a_call_has_a_size_for_each_position(dumps: Dump, container: type) -> None:
    for count in (0, 1, 2, 3, 4, 5, 300, 2500):
        args = container(f"{i} " + "x" * (i % 7 * 100) for i in range(count))
        found = parts(dumps((args, {})), APPLY)
        assert near(found, [(str(i), len(arg)) for i, arg in enumerate(args)])
        assert found == slow(dumps((args, {})), APPLY)


@every_pickler
def test_and_one_for_each_keyword(dumps: Dump) -> None:
    for count in (1, 2, 3, 1000, 1001, 2500):
        kwds = {f"key{i}": str(i) + "y" * (i % 5 * 300) for i in range(count)}
        payload = dumps((("z" * 700,), kwds))
        found = parts(payload, APPLY)
        assert near(found, [("0", 700), *((key, len(value)) for key, value in kwds.items())])
        assert found == slow(payload, APPLY)


@every_pickler
def test_keywords_that_were_written_before_and_such_as_are_no_names(dumps: Dump) -> None:
    name, other = sys.intern("shape"), sys.intern("size")
    kwds: dict[Any, Any] = {name: "a" * 400, "n" * 255: 1, "n" * 256: 2, "\ud800": 3, "ü" * 127: 4, other: 5, 6: 7}
    payload = dumps((([name, {other: 1}],), kwds))
    found = parts(payload, APPLY)
    assert found is not None
    assert [key for key, _ in found] == ["0", "shape", "n" * 255, "?", "?", "ü" * 127, "size", "?"]
    assert 400 <= found[1][1] <= 400 + SLACK
    assert found == slow(payload, APPLY)


COUNTS = [0, 1, 2, 3, 4, 1000, 1001, 2500]


@every_pickler
@pytest.mark.parametrize("container", [tuple, list])
def test_a_map_counts_all_items_for_one(dumps: Dump, container: type) -> None:
    for count in COUNTS:
        items = container(str(i) + "x" * (i % 7) for i in range(count))
        payload = dumps(items)
        found = parts(payload, MAP)
        assert found == slow(payload, MAP)
        assert found is not None
        assert [name for name, _ in found] == ["0"][:count]
        assert not count or sum(map(len, items)) <= found[0][1] <= len(payload)


@every_pickler
@pytest.mark.parametrize("outer", [tuple, list])
@pytest.mark.parametrize("inner", [tuple, list])
def test_a_starmap_adds_up_by_position(dumps: Dump, outer: type, inner: type) -> None:
    for count, width in [*itertools.product(COUNTS[:5], range(6)), (1001, 2), (3, 1001)]:
        items = outer(inner(f"{i}.{k}" + "x" * (k % 9 * 30) for k in range(width)) for i in range(count))
        payload = dumps(items)
        found = parts(payload, STARMAP)
        least = [(str(k), sum(len(item[k]) for item in items)) for k in range(width)] if count else []
        assert near(found, least, SLACK * count), (count, width)
        assert found == slow(payload, STARMAP)


def test_items_may_be_of_different_widths_and_kinds() -> None:
    items = [("a" * 100,), ["b" * 200, "c" * 300], (), ("d" * 400, "e" * 500, "f" * 600), [], ["g" * 700] * 2]
    found = parts(pickle.dumps(items), STARMAP)
    assert near(found, [("0", 1400), ("1", 800), ("2", 600)], 6 * SLACK)


@every_pickler
def test_nested_containers_count_where_they_are(dumps: Dump) -> None:
    deep: Any = "d" * 1000
    for i in range(40):
        deep = ([deep], {"k": deep}, {1, 2}, frozenset([i]), (deep, (), [], {}))[:: i % 2 * 2 - 1]
    args = ([("a" * 500, {"x": ["b" * 600]})], deep, (1, 2, 3, 4, ["c" * 700] * 3), {"d": ({}, [])}, "e" * 800)
    for cut in range(1, 6):
        payload = dumps((args[:cut], {"k": deep, "l": ["f" * 900]}))
        found = parts(payload, APPLY)
        assert found == slow(payload, APPLY)
        assert found is not None
        sizes = dict(found)
        assert sizes["0"] in range(1100, 1200)
        assert sizes["l"] in range(900, 950)
        assert cut < 2 or sizes["1"] > 1000
        assert cut < 3 or sizes["2"] in range(700, 800)
        assert cut < 5 or sizes["4"] in range(800, 850)
        payload = dumps([args[:cut], list(args[1:cut])])
        assert parts(payload, STARMAP) == slow(payload, STARMAP) != None  # noqa: E711


@every_pickler
def test_what_is_shared_counts_where_it_is_written_first(dumps: Dump) -> None:
    shared = ["s" * 5000]
    found = parts(dumps(((1, shared, [shared], shared), {"again": shared, "own": "o" * 100})), APPLY)
    assert near(found, [("0", 2), ("1", 5000), ("2", 2), ("3", 2), ("again", 2), ("own", 100)], 64)
    item = ("a" * 1000, "b" * 2000)
    payload = dumps((item, item, item, ("c" * 10, "d" * 20), item))
    assert near(parts(payload, STARMAP), [("0", 1010), ("1", 2020)], 64)
    assert parts(payload, STARMAP) == slow(payload, STARMAP)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_that_python_made_of_other_objects(protocol: int) -> None:
    args = (
        Thing(big="b" * 1000, me=None),
        Row(["r" * 2000, "q" * 100]),
        Pair(("p" * 3000,)),
        collections.OrderedDict(key="o" * 4000),
        functools.partial(max, "f" * 5000, default="g" * 100),
        collections.deque(["d" * 6000]),
        decimal.Decimal("1.5"),
        1 << 8000,
        bytearray(b"\1" * 7000),
        {"s" * 8000},
    )
    args[0].me = args[0]
    payload = pickle.dumps((args, {}), protocol)
    found = parts(payload, APPLY)
    assert found == slow(payload, APPLY)
    assert found is not None
    least = [1000, 2100, 3000, 4000, 5100, 6000, 1, 1000, 7000, 8000]
    assert all(size in range(low, low * 3 // 2 + 250) for (_, size), low in zip(found, least, strict=True))


# -- buffers


@pytest.mark.parametrize("family", ["multiprocessing", "multiprocess"])
def test_arrays_as_the_serializer_packs_them(family: str) -> None:
    pack = Serializer(family).dumps
    small, large, flat = numpy.zeros(100), numpy.zeros(50_000), numpy.ones((300, 40), order="F")
    payload, buffers = pack(((small, large, 1, flat), {"again": large, "more": numpy.zeros(9000)}))
    sizes = [buffer.nbytes for buffer in buffers]
    assert sizes == [400_000, 96_000, 72_000]
    found = parts(payload, APPLY, sizes)
    assert found is not None
    assert [name for name, _ in found] == ["0", "1", "2", "3", "again", "more"]
    least = [800, 400_000, 2, 96_000, 2, 72_000]
    assert all(size in range(low, low + 300) for (_, size), low in zip(found, least, strict=True))
    assert found == slow(payload, APPLY, sizes)
    assert parts(payload, APPLY, sizes[:2]) is None  # the last one is missing

    chunk = tuple((numpy.zeros(5000 * i), "k", [flat + i]) for i in range(5))
    payload, buffers = pack(chunk)
    sizes = [buffer.nbytes for buffer in buffers]
    found = parts(payload, STARMAP, sizes)
    assert found == slow(payload, STARMAP, sizes)
    assert found is not None
    assert [size // 10_000 for _, size in found] == [40, 0, 48]
    whole = parts(payload, MAP, sizes)
    assert whole is not None
    assert sum(sizes) <= whole[0][1] <= len(payload) + sum(sizes)


def test_a_read_only_buffer_counts_too() -> None:
    buffers: list[pickle.PickleBuffer] = []
    array = numpy.zeros(1000)
    array.flags.writeable = False
    payload = pickle.dumps(((pickle.PickleBuffer(b"x" * 50), array, 3), {}), 5, buffer_callback=buffers.append)
    found = parts(payload, APPLY, [50, 8000])
    assert found is not None
    assert near(found[:1] + found[2:], [("0", 50), ("2", 2)])
    assert found[1][1] in range(8000, 8200)


# -- functions


def _function(text: str) -> Callable[[], str]:
    return lambda: text


@pytest.mark.parametrize("module", ["cloudpickle", "dill"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_lambda_takes_its_closure_and_state_with_it(module: str, protocol: int) -> None:
    """Its state comes by a call aside, whose result is thrown away."""
    pickler = pytest.importorskip(module)
    text = "t" * 10_000
    function = _function(text)
    for args, least in (
        ((function, "u" * 500, function), [10_000, 500, 2]),
        ((function, function, text), [10_000, 2, 2]),
        ((function, text, 5, 6), [10_000, 2, 2, 2]),
        (("u" * 500, _function("v" * 3000), function), [500, 3000, 10_000]),
    ):
        payload = pickler.dumps((args, {"k": function}), protocol)
        found = parts(payload, APPLY)
        assert found is not None, payload
        sizes = [size for _, size in found]
        assert all(size in range(low, low + 2000) for size, low in zip(sizes, [*least, 2], strict=True))
        assert sizes[1] < 700 or args[1] not in (function, text)
        assert sizes[-1] < 30
        assert found == slow(payload, APPLY)


@pytest.mark.parametrize("recurse", [False, True])
def test_what_dill_mends_later_belongs_to_what_it_mends(recurse: bool) -> None:
    """It fetches a dict of globals from the memo, fills it and throws it away."""
    space: dict[str, Any] = {"text": "s" * 20_000, "__name__": "nowhere"}
    exec("def function(): return function, text", space)
    args = (space["function"], space["text"], space["function"], 5)
    payload = dill().dumps((args, {}), 4, recurse=recurse)
    names = [op.name for op, _, _ in pickletools.genops(payload)]
    assert ("SETITEMS", "POP", "BINGET") in zip(names, names[1:], names[2:], strict=False)
    found = parts(payload, APPLY)
    assert found is not None
    assert found[0][1] > 20_000
    assert found[1:] == [("1", 2), ("2", 2), ("3", 2)]
    assert found == slow(payload, APPLY)


@every_pickler
@pytest.mark.parametrize("width", [1, 2, 3, 4, 9])
def test_a_tuple_that_is_in_itself(dumps: Dump, width: int) -> None:
    inner: list[Any] = ["i" * 3000]
    knot = (*["k" * 100] * (width - 1), inner)
    inner.append(knot)
    payload = dumps((("a" * 50, knot, "b" * 70), {"c": "c" * 90}))
    found = parts(payload, APPLY)
    assert found is not None
    assert near(found[:1] + found[2:], [("0", 50), ("2", 70), ("c", 90)])
    assert found[1][1] in range(3000, 3200)
    assert found == slow(payload, APPLY)
    if width > 1:
        assert parts(dumps([(1, 2), knot, (3, 4)]), STARMAP) is None  # its parts are not there any more
    assert parts(dumps((knot, {})), APPLY) is None


# -- what is not understood


NO_CALLS = [
    *(None, 5, "text", {}, {1: 2}, range(200), Thing(), Row([1]), Pair((1, 2)), {1}, frozenset([1]), [1, {}], (), (1,)),
    *(((1,), {}, 2), ({}, (1,)), (5, {}), ((1,), Thing()), (Pair((1,)), {}), ((1,), collections.OrderedDict(a=1))),
]


@pytest.mark.parametrize("value", NO_CALLS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_shapes_are_not_understood(value: object, protocol: int) -> None:
    payload = pickle.dumps(value, protocol)
    assert parts(payload, APPLY) is None
    if type(value) not in (tuple, list):
        assert parts(payload, MAP) is None
        assert parts(payload, STARMAP) is None


@pytest.mark.parametrize("item", [5, "ab", range(200), Pair((1, 2)), Row([1, 2]), {1: 2}, {1}, Thing(), None])
@pytest.mark.parametrize("outer", [tuple, list])
@pytest.mark.parametrize("before", [0, 1, 5, 1500])
def test_an_item_of_a_starmap_that_is_no_row(item: object, outer: type, before: int) -> None:
    items = outer([(1, 2)] * before + [item] + [[3, 4]])
    for protocol in PROTOCOLS:
        assert parts(pickle.dumps(items, protocol), STARMAP) is None
        assert parts(pickle.dumps(items, protocol), MAP) is not None


def test_a_name_that_comes_from_the_memo_is_not_put_there_again() -> None:
    again = b"\x80\x02)}(X\1\0\0\0aq\0K\1h\0q\1K\2h\1K\3u\x86."
    assert parts(again, APPLY) == [("a", 2), ("a", 2), ("?", 2)] == slow(again, APPLY)


def test_what_was_at_the_bottom_before_is_not_the_answer() -> None:
    assert parts(b"\x80\x02K\x01\x85q\0" + b"0h\0.", MAP) is None
    assert parts(b"\x80\x02K\x01\x85q\0)}\x86" + b"0h\0.", APPLY) is None
    assert parts(b"\x80\x02K\x01\x85\x85q\0" + b"0cos\nx\n)R0h\0.", STARMAP) is None
    assert parts(b"\x80\x02]((K\x01ee.", MAP) is None  # not into a list before another mark
    assert parts(b"\x80\x02]((K\x01K\x02\x86\x86.", MAP) is None
    assert parts(b"\x80\x02](K\x01e(K\x02\x90.", MAP) is None  # a set's items for a list


def test_pickles_without_a_mark_marshal_and_nonsense() -> None:
    call = ((1, 2), {"a": 3})
    assert parts(pickle.dumps(call, 0), APPLY) is None
    assert parts(pickle.dumps(call, 1), APPLY) is None
    assert parts(marshal.dumps(call), APPLY) is None
    plain = _channel.plain(((1, 2), {}))
    assert plain is not None
    for kind in (APPLY, MAP, STARMAP):
        assert parts(plain, kind) is None
        for text in (b"", b"\x80", b"\x80\x04", b"\x80\x04.", b"\x80\x06).", b"\x80\x01).", b"\x80\x04)..", b"(" * 99):
            assert parts(text, kind) is None
        assert parts(b"\x80\x04).", kind) == (None if kind == APPLY else [])
    good = pickle.dumps(call)
    assert parts(good, APPLY) is not None
    for kind in (0, -1, _channel.STOP, 5, 99):
        assert parts(good, kind) is None
    assert parts(good + b".", APPLY) is None


def test_lengths_beyond_the_end() -> None:
    for start in (
        b"\x8c\xff",
        b"X\xff\xff\xff\xff",
        b"\x8d" + b"\xff" * 8,
        b"C\2a",
        b"\x8b\xff\xff\xff\xff",
        b"\x8e" + b"\x7f" * 8,
    ):
        assert parts(b"\x80\x05(" + start + b"t.", MAP) is None
    for size in (2**63, 2**64 - 1, 2**64, 2**200, -1):
        assert parts(b"\x80\x05\x97\x85.", MAP, [size]) is None
    assert parts(b"\x80\x05\x97\x85.", MAP, [2**63 - 1]) == [("0", 2**63)]
    assert parts(b"\x80\x05\x97\x97\x86.", MAP, [2**62, 2**62]) is None


def test_limits() -> None:
    most = 1 << 16
    assert parts(pickle.dumps(("a",) * most), MAP) is not None
    assert parts(pickle.dumps(("a",) * (most + 1)), MAP) is None
    assert parts(pickle.dumps(["a"] * (3 * most)), MAP) is not None
    assert parts(b"\x80\4" + b"(" * 100_000 + b".", MAP) is None
    row = [0] * (most + 1)
    assert parts(pickle.dumps([row[1:], (1,)]), STARMAP) is not None
    assert parts(pickle.dumps([row, (1,)]), STARMAP) is None
    assert near(parts(pickle.dumps([(row, 1), (2, row * 3)]), STARMAP), [("0", 2 * most), ("1", 6 * most)], 2000)
    assert parts(pickle.dumps((row[1:], {})), APPLY) is not None
    assert parts(pickle.dumps((row, {})), APPLY) is None
    assert near(
        parts(pickle.dumps(((row, 1), {"r": row * 2})), APPLY), [("0", 2 * most), ("1", 2), ("r", 4 * most)], 2000
    )
    kwds = {str(i): 0 for i in range(most + 1)}
    assert parts(pickle.dumps(((), kwds)), APPLY) is None
    kwds.pop("0")
    assert len(parts(pickle.dumps(((), kwds)), APPLY) or ()) == most
    assert parts(pickle.dumps([list(range(1000))] * 2 + [list(range(1000)) for _ in range(1100)]), STARMAP) is not None
    assert parts(pickle.dumps(tuple(tuple(range(1000)) for _ in range(1100))), STARMAP) is None  # all rows at once
    assert parts(b"\x80\x02Nr\xff\xff\xff\xffr\0\0\0\xf0j\0\0\0\xf0\x86.", MAP) == [("0", 16)]


def test_only_the_call_itself_can_be_wrong() -> None:
    good = pickle.dumps(((1,), {}))
    for kind in (bytearray, memoryview):
        assert _channel.parts(kind(good), (), APPLY) == [("0", 2)]
    wrong: list[Any] = [("text", [], APPLY), (None, [], APPLY), (good, None, APPLY), (good, [None], APPLY)]
    wrong += [(good, [1.5], APPLY), (good, [], "kind"), (good, []), ()]
    for call in wrong:
        with pytest.raises(TypeError):
            _channel.parts(*call)


# -- by chance


class Values:
    """Nested values, whose parts may come again."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.made: list[Any] = ["first"]

    def many(self, depth: int, most: int = 6) -> list[Any]:
        return [self.one(depth - 1) for _ in range(self.dice.choice((0, 1, 2, 3, 3, 4, most)))]

    def one(self, depth: int) -> Any:
        if self.dice.random() < 0.15:
            return self.dice.choice(self.made)
        value = self.simple() if depth <= 0 or self.dice.random() < 0.3 else self.deep(depth)
        self.made.append(value)
        return value

    def simple(self) -> Any:
        dice, size = self.dice, self.dice.choice((0, 1, 5, 255, 256, 3000, 70_000))
        choices: list[Callable[[], Any]] = [
            lambda: None,
            lambda: dice.random() < 0.5,
            lambda: dice.randrange(-300, 70_000),
            lambda: dice.getrandbits(dice.choice((33, 64, 3000))),
            dice.random,
            lambda: "ä" * (size // 2),
            lambda: bytes(size),
            lambda: bytearray(size),
            lambda: numpy.zeros(size + 1),
            lambda: pickle.PickleBuffer(
                dice.choice((bytes, bytearray))(size + 2)
            ),  # b"" is a constant: pickle.py stumbles
            lambda: len,
            lambda: range(size),
            lambda: complex(1, 2),
            lambda: Thing,
        ]
        return dice.choice(choices)()

    def deep(self, depth: int) -> Any:
        choices: list[Callable[[], Any]] = [
            lambda: tuple(self.many(depth)),
            lambda: self.many(depth),
            lambda: dict(zip("abcdefghijkl", self.many(depth), strict=False)),
            lambda: {(i, "k"): value for i, value in enumerate(self.many(depth))},
            lambda: set(range(self.dice.choice((0, 1, 5, 1200)))),
            lambda: frozenset("xyz"[: self.dice.randrange(4)]),
            lambda: Thing(**dict(zip("abcdefghijkl", self.many(depth), strict=False))),
            lambda: Row(self.many(depth)),
            lambda: collections.deque(self.many(depth)),
            lambda: [self.one(0)] * self.dice.choice((1, 999, 1000, 1001, 2001)),
            lambda: functools.partial(max, *self.many(depth)),
            self.knot,
        ]
        return self.dice.choice(choices)()

    def knot(self) -> Any:
        inner: list[Any] = [self.one(0)]
        inner.append((*self.many(1), inner, *self.many(0, 3)))
        return inner[1]

    def whole(self, kind: int) -> Any:
        keys = self.dice.sample(["a", "b", "e", "size", "shape", "c" * 300, "ö"], self.dice.randrange(5))
        if kind == APPLY:
            return tuple(self.many(4, 9)), {key: self.one(3) for key in keys}
        rows = [self.dice.choice((tuple, list))(self.many(3)) for _ in range(self.dice.choice((0, 1, 2, 3, 4, 30)))]
        return self.dice.choice((tuple, list))(rows if kind == STARMAP else self.many(4, 30))


def pack(dice: random.Random, value: object) -> tuple[bytes, list[int]]:
    """By any pickler, with buffers beside it or not."""
    buffers: list[pickle.PickleBuffer] = []

    def take(buffer: pickle.PickleBuffer) -> bool:
        if dice.random() < 0.3:
            return True
        buffers.append(buffer)
        return False

    file = io.BytesIO()
    which: Any = dice.choice((pickle.Pickler, pickle._Pickler, ForkingPickler, cloudpickle.CloudPickler))
    made = which(file, 5, True, take) if which is ForkingPickler else which(file, 5, buffer_callback=take)
    made.dump(value)
    return file.getvalue(), [buffer.raw().nbytes for buffer in buffers]


def test_values_by_chance_are_read_as_the_slow_way_reads_them() -> None:
    print("seed", SEED)
    dice = random.Random(SEED)
    understood = 0
    for number in range(600):
        kind = dice.choice((APPLY, MAP, STARMAP))
        payload, sizes = pack(dice, Values(dice).whole(kind))
        found = parts(payload, kind, sizes)
        assert found == slow(payload, kind, sizes), (SEED, number)
        understood += found is not None
        assert found is None or sum(size for _, size in found) <= len(payload) + sum(sizes)
    assert understood > 500


def test_older_protocols_by_chance() -> None:
    print("seed", SEED)
    dice = random.Random(SEED)
    for number in range(300):
        kind = dice.choice((APPLY, MAP, STARMAP))
        try:
            payload = dice.choice((pickle.dumps, _swapped))(Values(dice).whole(kind), dice.randrange(2, 5))
        except pickle.PicklingError:  # a PickleBuffer
            continue
        assert parts(payload, kind) == slow(payload, kind), (SEED, number)


def _swapped(value: object, protocol: int) -> bytes:
    return _python(protocol, value)


def _samples() -> list[tuple[bytes, int, list[int]]]:
    text, function = "t" * 40, _function("f" * 30)
    call = (([1, text, (2, 3, 4, 5)], text, {"a": {1}, "b": frozenset([2])}, Thing(x=1)), {"a": text, "long": [1.5]})
    rows = ((1, text), ["x", 2], (), (text, 3), [b"bytes", 1 << 70])
    knot: list[Any] = [0]
    knot.append((1, knot))
    made = [(pickle.dumps(call, p), APPLY, []) for p in PROTOCOLS]
    made += [(pickle.dumps(rows, p), STARMAP, []) for p in PROTOCOLS] + [(pickle.dumps(list(rows), 5), STARMAP, [])]
    made += [(pickle.dumps(list(rows), p), MAP, []) for p in PROTOCOLS]
    made.append((pickle.dumps(((knot, knot[1]), {"k": knot[1]})), APPLY, []))
    made.append((cloudpickle.dumps(((function, text), {"b": function})), APPLY, []))
    arrays = (numpy.zeros(4), [numpy.ones(3), numpy.zeros(2)])
    payload, sizes = pack(random.Random(5), (arrays, {"a": numpy.zeros(5)}))
    return [*made, (payload, APPLY, sizes)]


def test_a_part_of_a_pickle_is_none() -> None:
    for payload, kind, sizes in _samples():
        assert parts(payload, kind, sizes) is not None
        for end in range(len(payload)):
            assert parts(payload[:end], kind, sizes) is None


def test_broken_pickles_are_read_as_the_slow_way_reads_them() -> None:
    """Or not at all. Where the slow way raises, it is a string that is none."""
    print("seed", SEED)
    dice = random.Random(SEED)
    samples = _samples()
    codes = [ord(op.code) for op in pickletools.opcodes]
    understood = 0
    for number in range(20_000):
        payload, kind, sizes = dice.choice(samples)
        broken = bytearray(payload)
        for _ in range(dice.choice((1, 1, 2, 4))):
            at = dice.randrange(2, len(broken))
            how = dice.randrange(5)
            if how == 0:
                broken[at] = dice.choice(codes)
            elif how == 1:
                broken[at] = dice.randrange(256)
            elif how == 2:
                broken.insert(at, dice.choice(codes))
            elif how == 3:
                del broken[at : at + dice.choice((1, 2, 9))]
            else:
                other = dice.choice(samples)[0]
                begin = dice.randrange(len(other))
                broken[at:at] = other[begin : begin + dice.randrange(20)]
        found = parts(broken, dice.choice((kind, kind, APPLY, MAP, STARMAP)), sizes)
        assert found is None or sum(size for _, size in found) <= len(broken) + sum(sizes)
        kind = dice.choice((kind, kind, APPLY, MAP, STARMAP))
        try:
            expected = slow(bytes(broken), kind, sizes)
        except Exception:
            parts(broken, kind, sizes)
            continue
        assert parts(broken, kind, sizes) == expected, (SEED, number, bytes(broken), kind, sizes)
        understood += expected is not None
    assert understood > 500
