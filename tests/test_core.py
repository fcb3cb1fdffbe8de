"""The C core's own rules: numbers, ids, arguments, quantiles."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable

import pytest

from pooltrace.format import spec
from pooltrace.tracer import _core, emit, session


def test_event_numbers_are_those_of_the_table() -> None:
    assert len(_core.EVENTS) > 25
    for name, number in _core.EVENTS.items():
        assert spec.BY_NAME[name].number == number, name


def test_limits_are_those_of_the_table() -> None:
    assert _core.MAX_STRING == spec.MAX_STRING_SIZE
    assert _core.MAX_FRAMES == spec.MAX_STACK_FRAMES


def test_ids_never_come_twice() -> None:
    drawn: list[list[int]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda out=out: out.extend(emit.new_g() for _ in range(2000))) for out in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [g for out in drawn for g in out]
    assert len(set(ids)) == len(ids) == 8000
    assert 0 not in ids
    assert emit.new_task() < emit.new_task()


def test_p_ids_are_the_lowest_free_ones() -> None:
    first, second, third = emit.new_p(), emit.new_p(), emit.new_p()
    assert 0 < first < second < third
    emit.free_p(second)
    assert emit.new_p() == second
    for p in (first, second, third):
        emit.free_p(p)


@pytest.mark.parametrize(
    "call",
    [
        lambda: emit.go_create(1, None),  # type: ignore[call-arg]
        lambda: emit.go_create("1", None, None),  # type: ignore[arg-type]
        lambda: emit.go_create(1, "stack", None),  # type: ignore[arg-type]
        lambda: emit.region_begin(emit.REGION, 0, b"name", None),  # type: ignore[arg-type]
        lambda: emit.region_begin(7, 0, "name", None),
        lambda: emit.region_begin(emit.REGION, -1, "name", None),
        lambda: emit.log(0, "key", 3),  # type: ignore[arg-type]
        lambda: emit.log(0, 3, "value"),  # type: ignore[arg-type]
        lambda: emit.go_unblock("ticket", None),  # type: ignore[arg-type]
        lambda: emit.go_resume(1),  # type: ignore[arg-type]
        lambda: emit.task_begin(1, 0, None, None),  # type: ignore[arg-type]
        lambda: emit.task_end("1"),  # type: ignore[arg-type]
        lambda: emit.go_block(None, None),  # type: ignore[arg-type]
        lambda: emit.frame("f", "g", "h"),  # type: ignore[arg-type]
        lambda: emit.run_chunk(len, 3, 0, 0, "len", None),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_errors_and_leave_the_tracer_whole(call: Callable[[], object]) -> None:
    with session.trace(io.BytesIO()):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            call()
        emit.log(0, "after", "it")


def test_chunks_behave_like_map() -> None:
    def explode(x: int) -> int:
        if x == 2:
            raise KeyError(x)
        return -x

    for context in (None, session.trace(io.BytesIO())):
        if context:
            context.__enter__()
        assert emit.run_chunk(abs, [-1, 2], 0, 0, "abs", None) == [1, 2]
        assert emit.run_chunk(pow, [(2, 3), [3, 2]], 1, 0, "pow", None) == [8, 9]
        assert emit.run_chunk(abs, (), 0, 0, "abs", None) == []
        with pytest.raises(KeyError):
            emit.run_chunk(explode, range(5), 0, 0, "explode", None)
        with pytest.raises(TypeError):
            emit.run_chunk(pow, [3], 1, 0, "pow", None)
        if context:
            context.__exit__(None, None, None)


def test_run_chunk_keeps_no_reference() -> None:
    class Thing:
        pass

    thing, result = Thing(), Thing()
    before = sys.getrefcount(thing), sys.getrefcount(result)
    with session.trace(io.BytesIO()):
        for _ in range(100):
            emit.run_chunk(lambda _: result, [thing], 0, 0, "f", None)
    assert (sys.getrefcount(thing), sys.getrefcount(result)) == before


def test_stacks_are_taken_once_and_know_their_frames() -> None:
    def here() -> emit.Stack:
        return emit.stack()

    stacks = [here() for _ in range(2)]
    assert stacks[0] is stacks[1]
    function, file, line = stacks[0].frames[0]
    assert function.endswith("here")
    assert os.path.basename(file) == "test_core.py"
    assert line > 0
    whole, outer = emit.stack(), emit.stack(1)
    assert outer.frames == whole.frames[1:]
    assert emit.frame("f", "g.py", 3).frames == (("f", "g.py", 3),)


def test_a_module_called_runtime_is_prefixed() -> None:
    space = {"__name__": "runtime", "emit": emit}
    exec("def f(): return emit.stack()", space)
    stack = space["f"]()  # type: ignore[operator]
    assert stack.frames[0][0] == "./runtime.f"


def test_quantiles_are_right_within_two_percent() -> None:
    """Durations that are known: the regions' own times in the file."""
    import tempfile

    from pooltrace.format import order

    with tempfile.NamedTemporaryFile(suffix=".trace") as file:
        with session.trace(file.name):
            emit.run_chunk(lambda n: sum(range(n)), [i * 37 % 1000 for i in range(1001)], 0, 0, "work", None)
        begins: list[int] = []
        durations: list[int] = []
        for event in order.read_events(file.name):
            if event.name == "UserRegionBegin":
                begins.append(event.time)
            elif event.name == "UserRegionEnd":
                durations.append(event.time - begins[-1])
    figures = session.summary()
    assert figures is not None
    (row,) = figures["functions"]
    durations.sort()
    assert row["count"] == len(durations) == 1001
    assert row["total_ns"] == sum(durations)
    assert row["max_ns"] == durations[-1]
    assert row["median_ns"] == pytest.approx(durations[500], rel=0.02)
    assert row["p99_ns"] == pytest.approx(durations[990], rel=0.02)
