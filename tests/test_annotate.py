"""Annotations: what is in the trace is what the program said, wherever it said it, in the tasks in which it was."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import annotated
import multiprocess
import pytest
from annotated import Said
from faults import METHODS, Fifos

import pooltrace
from pooltrace import log, region, task, trace
from pooltrace.format.order import Summary
from pooltrace.tracer import _core, annotate, emit

Judge = Callable[[str | os.PathLike[str]], Summary]
FACES = {"multiprocess": (multiprocess, pooltrace.Pool), "multiprocessing": (multiprocessing, pooltrace.StdPool)}


def pool_of(face: str, method: str, workers: int = 2) -> Any:
    family, cls = FACES[face]
    return cls(workers, context=family.get_context(method))


def in_thread(function: Callable[[], object]) -> None:
    """Runs it in a thread of its own; what it raises is raised here."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in failed:
        raise error


# Where it is said


@pytest.mark.parametrize("period", [1.0, 0.0])
@pytest.mark.parametrize("header", ["1.22", "1.26"])
def test_the_parent_s_threads_and_coroutines(tmp_path: Path, judge: Judge, header: str, period: float) -> None:
    path = tmp_path / "t.trace"
    with trace(path, header=header, period=period), task("u all"):
        inside = [*annotated.in_main("main"), *annotated.in_coroutines("coroutine")]
        outside = annotated.in_threads("thread")  # their contexts are new: they are in no task
    judge(path)
    said = Said(path)
    assert said.tasks[said.number("u all")].parent == 0
    for noted in inside:
        said.holds(noted, said.number("u all"))
    for noted in outside:
        said.holds(noted, 0)
    assert len(said.regions) == len(said.logs) == 5
    assert len(said.tasks) == 6 == len(said.ended)
    figures = pooltrace.summary()
    assert figures is not None
    assert (figures["jobs"], figures["lost_events"]) == (0, 0)


CALLS: dict[str, Callable[[Any, list[tuple[str, str]]], Any]] = {
    "map": lambda pool, pairs: pool.map(annotated.unit_of_pair, pairs, chunksize=2),
    "starmap": lambda pool, pairs: pool.starmap(annotated.unit, pairs),
    "imap": lambda pool, pairs: list(pool.imap(annotated.unit_of_pair, iter(pairs))),
    "imap_unordered": lambda pool, pairs: list(pool.imap_unordered(annotated.unit_of_pair, pairs, chunksize=2)),
    "map_async": lambda pool, pairs: pool.map_async(annotated.unit_of_pair, pairs).get(),
    "apply": lambda pool, pairs: [pool.apply(annotated.unit, pair) for pair in pairs],
    "apply_async": lambda pool, pairs: [r.get() for r in [pool.apply_async(annotated.unit, pair) for pair in pairs]],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("face", FACES)
def test_units_belong_to_their_job_and_jobs_to_the_caller_s_task(
    tmp_path: Path, judge: Judge, face: str, method: str
) -> None:
    path = tmp_path / "t.trace"
    noted: dict[str, list[annotated.Noted]] = {}
    with trace(path):
        with task("u pool"), pool_of(face, method) as pool:  # a forked worker has been forked inside a task
            for call, run in CALLS.items():
                with task(f"u {call}"):
                    pairs = [(way, f"{call} {i} {way}") for i, way in enumerate([*annotated.WAYS] * 2)]
                    noted[call] = [one for unit in run(pool, pairs) for one in unit]
    judge(path)
    said = Said(path)
    for call, found in noted.items():
        number = said.number(f"u {call}")
        assert said.tasks[number].parent == said.number("u pool")
        jobs = {n for n, one in said.tasks.items() if one.parent == number}
        name = call.removesuffix("_async")
        assert {said.tasks[n].name.partition("(")[0] for n in jobs} == {name}
        assert len(jobs) == (6 if name == "apply" else 1)
        assert len(found) == 10
        for one in found:
            job = said.region(f"u region {one.name}").task
            assert job in jobs
            said.holds(one, job)
    figures = pooltrace.summary()
    assert figures is not None
    assert (figures["jobs"], figures["lost_events"]) == (5 + 2 * 6, 0)


def test_coroutines_and_threads_of_a_coroutine(tmp_path: Path, judge: Judge) -> None:
    """asyncio's tasks inherit the task in which they were made, and so does what runs in a copy of the context."""
    path = tmp_path / "t.trace"

    async def child(name: str) -> None:
        await asyncio.sleep(0)
        log("u inherited", name)
        with task(f"u own {name}"):
            await asyncio.sleep(0)
            log("u own", name)

    async def main() -> None:
        with task("u outer"):
            children = [asyncio.create_task(child(str(i))) for i in range(3)]
            await asyncio.to_thread(log, "u thread", "")
            await asyncio.gather(*children)
            late = asyncio.create_task(child("late"))
        await late  # its task is over, and still its own
        log("u after", "")

    with trace(path):
        asyncio.run(main())
    judge(path)
    said = Said(path)
    outer = said.number("u outer")
    assert [one.task for one in said.logs if one.key == "u inherited"] == [outer] * 4
    for one in said.logs:
        if one.key == "u own":
            assert (said.tasks[one.task].name, said.tasks[one.task].parent) == (f"u own {one.value}", outer)
    assert said.log("u thread").task == outer
    assert said.log("u thread").m != said.tasks[outer].m
    assert said.log("u after").task == 0


def test_the_iterator_of_an_imap_runs_in_the_caller_s_context(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="nobody")

    def numbers() -> Iterator[str]:
        for i in range(3):
            with region("u region of the iterator"):
                log("u made", mine.get())
                yield str(i)

    @region("u step")
    def steps() -> Iterator[str]:
        for i in range(3):
            log("u stepped", mine.get())
            yield str(i)

    with trace(path), pooltrace.StdPool(1) as pool:
        mine.set("me")
        with task("u caller"):
            results = [pool.imap(annotated.log_only, numbers()), pool.imap_unordered(annotated.log_only, steps())]
        for result in results:
            list(result)
    judge(path)
    said = Said(path)
    caller = said.number("u caller")
    made = [one for one in said.logs if one.key in ("u made", "u stepped")]
    assert [(one.value, one.task) for one in made] == [("me", caller)] * 6
    assert [one.name for one in said.regions].count("u region of the iterator") == 3
    assert [one.name for one in said.regions].count("u step") == 4  # the last one finds the end
    jobs = {one.task for one in said.logs if one.key == "u log"}
    assert {said.tasks[job].parent for job in jobs} == {caller}
    assert len(jobs) == 2


def test_a_task_that_a_unit_leaves_open_is_not_the_next_job_s(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    with trace(path), pooltrace.StdPool(1) as pool:
        assert pool.apply(annotated.leave_open, ("left",)) == pool.apply(annotated.log_only, ("next",))
    judge(path)
    said = Said(path)
    left = said.number("u task left")
    assert said.tasks[said.tasks[left].parent].name == "apply(leave_open)"
    assert said.log("u log in the open one").task == left
    assert said.tasks[said.log("u log").task].name == "apply(log_only)"
    assert left not in said.ended


def hold(begun: str, go: str) -> None:
    with task("u held"), region("u held"):
        Fifos(Path(begun), Path(go)).begun.write_bytes(b"")
        Path(go).read_bytes()


def test_a_killed_worker_s_region_ends_with_it(tmp_path: Path, judge: Judge, fifos: Fifos) -> None:
    path = tmp_path / "t.trace"
    with trace(path), pooltrace.StdPool(1) as pool:
        result = pool.apply_async(hold, fifos.names())
        fifos.wait()
        os.kill(pool._pool[0].pid, signal.SIGKILL)
        with pytest.raises(pooltrace.WorkerLostError):
            result.get()
    judge(path)
    said = Said(path)
    assert said.region("u held").task == said.number("u held")


# Traces that begin and end meanwhile


def test_across_starts_and_stops(tmp_path: Path, judge: Judge) -> None:
    first, second = tmp_path / "1.trace", tmp_path / "2.trace"
    before, kept = (task("u task before"), region("u before")), (task("u task kept"), region("u kept"))
    with contextlib.ExitStack() as stack:
        for one in before:
            one.__enter__()
        with trace(first):
            log("u log of none", "")
            for one in reversed(before):
                one.__exit__(None, None, None)
            for one in kept:
                stack.enter_context(one)
        log("u log between", "")
        with trace(second):
            log("u log of kept", "")
            stack.close()
            log("u log after", "")
            annotated.say("whole")
    judge(first)
    judge(second)
    one, two = Said(first), Said(second)
    assert (one.log("u log of none").task, len(one.logs)) == (0, 1)
    assert one.users().keys() == {"u task kept"}
    assert (one.ended, one.regions, one.open) == ({}, [], ["u kept"])
    kept_number = one.number("u task kept")
    assert two.log("u log of kept").task == kept_number  # as in Go: what began before is known by its number
    assert two.log("u log after").task == 0
    assert two.users().keys() == {"u task whole"}
    assert two.ended.keys() == {two.number("u task whole")}
    assert two.number("u task whole") > kept_number
    assert [region.name for region in two.regions] == ["u region whole"]


@pytest.mark.parametrize("where", ["main", "thread"])
def test_what_is_made_without_a_trace_serves_with_one(tmp_path: Path, judge: Judge, where: str) -> None:
    """And what a thread has open when a trace ends leaves nothing behind in the next one."""
    path, kept, again = tmp_path / "t.trace", region("u kept"), task("u again")

    def run() -> None:
        with kept, again:
            log("u log", "not in it")
        pooltrace.start(tmp_path / "older.trace")
        kept.__enter__()
        pooltrace.stop()
        pooltrace.start(path)
        for i in range(2):
            with kept, again:
                log("u log", i)
        kept.__exit__(None, None, None)
        pooltrace.stop()

    in_thread(run) if where == "thread" else run()
    judge(path)
    said = Said(path)
    assert [one.name for one in said.regions] == ["u kept"] * 2
    assert [said.tasks[one.task].name for one in said.logs] == ["u again"] * 2
    assert said.ended.keys() == said.tasks.keys()


def test_a_thread_is_in_the_trace_only_while_it_says_something(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    depths: list[bool] = []

    def run() -> None:
        log("u log", "")
        with task("u task"):
            pass
        annotated.decorated(1)
        with region("u region"):
            with region("u inner"):
                pass
            depths.append(emit.go_create(emit.new_g(), None, None) != 0)
        depths.append(emit.go_create(emit.new_g(), None, None) != 0)

    with trace(path):
        in_thread(run)
    judge(path)
    assert depths == [True, False]
    assert len(Said(path).regions) == 3


# What may be done with them


def test_one_object_serves_again_inside_itself_and_in_threads(tmp_path: Path, judge: Judge) -> None:
    path, one, whole = tmp_path / "t.trace", region("u one"), task("u whole")
    together = threading.Barrier(3)

    def run() -> None:
        with one:
            together.wait()
            with one:
                together.wait()

    with trace(path):
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        with one, one:
            together.wait()
            with whole, whole:
                log("u log", "")
            together.wait()
        for thread in threads:
            thread.join()
    judge(path)
    said = Said(path)
    tids = [one.m for one in said.regions]
    assert {tids.count(tid) for tid in tids} == {2}
    assert len(said.regions) == 6
    inner = said.log("u log").task
    assert said.tasks[inner].parent in said.tasks
    assert said.ended.keys() == said.tasks.keys()
    assert said.ended[inner] < said.ended[said.tasks[inner].parent]


def test_coroutines_may_share_objects(tmp_path: Path, judge: Judge) -> None:
    """The first ends its own, though the second's began later."""
    path, shared, whole = tmp_path / "t.trace", region("u shared"), task("u whole")

    async def first(begun: asyncio.Event, over: asyncio.Event) -> None:
        with shared, whole:
            log("u first", "")
            await begun.wait()
        log("u first", "")
        over.set()

    async def second(begun: asyncio.Event, over: asyncio.Event) -> None:
        with shared, whole:
            log("u second", "")
            begun.set()
            await over.wait()
            log("u second", "")

    async def main() -> None:
        events = asyncio.Event(), asyncio.Event()
        await asyncio.gather(first(*events), second(*events))

    with trace(path):
        asyncio.run(main())
    judge(path)
    said = Said(path)
    tasks = {key: [one.task for one in said.logs if one.key == key] for key in ("u first", "u second")}
    one, two = tasks["u first"][0], tasks["u second"][0]
    assert tasks == {"u first": [one, 0], "u second": [two, two]}
    assert one != two
    after_first, after_second = said.logs[2].time, said.logs[3].time
    assert said.ended[one] < after_first < after_second < said.ended[two]
    assert all(region.end < after_first for region in said.regions)  # regions nest: it ends the one inside
    assert len(said.regions) == 2


def test_tasks_of_one_context_may_end_in_any_order(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"
    first, second, third = (task(f"u {i}") for i in range(3))
    with trace(path):
        for one in (first, second, third):
            one.__enter__()
        for i, one in enumerate((second, third, first)):
            one.__exit__(None, None, None)
            log("u log", i)
    judge(path)
    said = Said(path)
    numbers = [said.number(f"u {i}") for i in range(3)]
    assert [one.task for one in said.logs] == [numbers[2], numbers[0], 0]
    assert [said.tasks[number].parent for number in numbers] == [0, *numbers[:2]]


def test_what_began_in_another_thread(tmp_path: Path, judge: Judge) -> None:
    """A task ends wherever it is ended; a region does not, and nor does the other thread's stay in the trace."""
    path = tmp_path / "t.trace"
    moved, stays = task("u moved"), region("u stays")

    def end() -> None:
        with region("u other"):
            stays.__exit__(None, None, None)
            moved.__exit__(None, None, None)
            log("u log", "")

    with trace(path):
        with task("u around"):
            moved.__enter__()
            stays.__enter__()
            in_thread(end)
    judge(path)
    said = Said(path)
    assert said.ended.keys() == {said.number("u moved"), said.number("u around")}
    assert [one.name for one in said.regions] == ["u other"]
    assert said.open == ["u stays"]
    assert said.regions[0].begin < said.log("u log").time < said.regions[0].end


def test_no_chain_is_kept_of_tasks_that_beget_tasks(tmp_path: Path) -> None:
    depths: list[int] = []

    async def main() -> None:
        done = asyncio.get_running_loop().create_future()

        def again(left: int) -> None:
            with task("u again"):
                if left:
                    asyncio.get_running_loop().call_soon(again, left - 1)
                found, depth = annotate._current.get(), 0
                while found is not None:
                    found, depth = found.parent, depth + 1
                depths.append(depth)
            if not left:
                done.set_result(None)

        again(50)
        await done

    with trace(tmp_path / "t.trace"):
        asyncio.run(main())
    assert len(depths) == 51
    assert max(depths) == 2


def test_names_and_values_are_cut_and_escaped(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"

    class Name(str):
        __slots__ = ()

    with trace(path), task("u " + "ä" * 1000), region(Name("u \udc80")):
        log("u " + "k" * 2000, "v" * 2000)
    judge(path)
    said = Said(path)
    assert list(said.users()) == ["u " + "ä" * 511]
    assert [region.name for region in said.regions] == ["u \\udc80"]
    assert (len(said.logs[0].key), len(said.logs[0].value)) == (1024, 1024)


@pytest.mark.parametrize("on", [False, True])
def test_wrong_arguments(tmp_path: Path, on: bool) -> None:
    with trace(tmp_path / "t.trace") if on else contextlib.nullcontext():
        for call, text in (
            (lambda: task(3), r"task\(\) takes a name, which is a str, not int"),
            (lambda: region(None), r"region\(\) takes a name, which is a str, not NoneType"),
            (lambda: region(print), r"region\(\) takes a name, which is a str, not builtin_function"),
            (lambda: log(b"x", ""), r"log\(\) takes a category, which is a str, not bytes"),
            (lambda: region("x")(3), r"region\('x'\) decorates functions, not 3"),
            (lambda: region("x")(int), r"region\('x'\) decorates functions, not <class 'int'>"),
            (lambda: task(), "name"),
            (lambda: region("x", "y"), "argument"),
        ):
            with pytest.raises(TypeError, match=text):
                call()  # type: ignore[no-untyped-call]


def test_a_message_is_made_a_str_only_for_a_trace(tmp_path: Path, judge: Judge) -> None:
    path, asked = tmp_path / "t.trace", []

    class Message:
        def __str__(self) -> str:
            asked.append(1)
            return "said"

    class Refuses:
        def __str__(self) -> str:
            raise ValueError

    log("u log", Message())
    log("u log", Refuses())
    assert not asked
    with trace(path):
        for message in (Message(), Refuses(), 7, None):
            log("u log", message)
    judge(path)
    values = [one.value for one in Said(path).logs]
    assert values == ["said", "<Refuses object whose str() fails>", "7", "None"]


def test_without_a_trace_nothing_is_begun(tmp_path: Path) -> None:
    begun: list[int] = []

    class Counted(_core.Annotation):
        def _begin(self) -> None:
            begun.append(1)
            self._begun.append(1)

        def _end(self) -> None:
            self._begun.pop()
            begun.append(-1)

    with Counted("off"):
        assert not begun
    with trace(tmp_path / "t.trace"):
        with Counted("on"):
            assert begun == [1]
    assert begun == [1, -1]


def nested(number: int) -> int:
    with pooltrace.StdPool(1) as pool, task("u nested"):
        pool.apply(abs, (number,))
        return emit.new_task()


def test_a_pool_inside_a_worker(tmp_path: Path, judge: Judge) -> None:
    """Its jobs are not in the trace, and their numbers are nobody else's."""
    path = tmp_path / "t.trace"

    class Outer(pooltrace.StdPool):
        @staticmethod
        def Process(ctx: Any, **options: Any) -> Any:
            return Process(**options)

    class Process(multiprocessing.get_context("fork").Process):  # type: ignore[name-defined,misc]
        daemon = property(lambda self: False, lambda self, value: None)

    with trace(path), Outer(1, context=multiprocessing.get_context("fork")) as pool:
        with task("u caller"):
            numbers = pool.map(nested, range(2), chunksize=1)
    judge(path)
    said = Said(path)
    assert sorted(one.name for one in said.tasks.values()) == ["map(nested)", "u caller", "u nested", "u nested"]
    assert not set(numbers) & said.tasks.keys()
    assert min(numbers) > min(said.tasks)


def test_is_enabled(tmp_path: Path) -> None:
    assert not pooltrace.is_enabled()
    with trace(tmp_path / "t.trace"), pooltrace.StdPool(1) as pool:
        assert pooltrace.is_enabled()
        assert pool.apply(pooltrace.is_enabled)
    assert not pooltrace.is_enabled()


# Decorators


def test_a_decorated_function_is_the_same_function(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"

    @region("u call")
    def f(a: int, *, b: str = "x") -> str:
        """Its docstring."""
        if b == "raise":
            raise LookupError(a)
        return b * a

    assert str(inspect.signature(f)) == "(a: 'int', *, b: 'str' = 'x') -> 'str'"
    assert (f.__name__, f.__doc__, f.__module__) == ("f", "Its docstring.", __name__)
    assert f(2) == "xx"
    with trace(path):
        assert f(2, b="y") == "yy"
        with pytest.raises(LookupError, match="3"):
            f(3, b="raise")
    judge(path)
    said = Said(path)
    assert [(one.name, one.stack) for one in said.regions] == [("u call", (f"{__name__}.{f.__qualname__}",))] * 2


def test_what_may_be_decorated(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"

    class Callable_:
        def __call__(self, x: int) -> int:
            return x

    class AsyncCallable:
        async def __call__(self, x: int) -> int:
            with region("u inside"):
                await asyncio.sleep(0)
            return x

    class Methods:
        @region("u method")
        def method(self, x: int) -> int:
            return x

        @region("u static")
        @staticmethod
        def static(x: int) -> int:
            return x

        @region("u class")
        @classmethod
        def of_class(cls, x: int) -> int:
            assert cls is Methods
            return x

    @region("u old")
    @types.coroutine
    def old(x: int) -> Iterator[None]:
        yield
        return x  # type: ignore[return-value]

    with trace(path):
        methods = Methods()
        assert [methods.method(1), methods.static(2), Methods.static(3), methods.of_class(4)] == [1, 2, 3, 4]
        assert region("u object")(Callable_())(5) == 5
        assert asyncio.run(region("u async object")(AsyncCallable())(6)) == 6
        assert asyncio.run(old(7)) == 7  # type: ignore[arg-type]
    judge(path)
    said = Said(path)
    names = ["method", "static", "static", "class", "object", "inside", "async object", "old"]
    assert [one.name for one in said.regions] == [f"u {name}" for name in names]
    assert said.region("u async object").begin < said.region("u inside").begin


def test_a_coroutine_s_region_spans_what_it_awaits(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"

    @region("u call")
    async def f(x: int) -> int:
        log("u first", "")
        await asyncio.sleep(0)
        log("u last", "")
        if x < 0:
            raise LookupError(x)
        return x

    assert inspect.iscoroutinefunction(f)
    assert asyncio.run(f(1)) == 1
    with trace(path):
        assert asyncio.run(f(2)) == 2
        with pytest.raises(LookupError):
            asyncio.run(f(-1))
        f(3).close()  # never awaited: it has not begun
    judge(path)
    said = Said(path)
    assert len(said.regions) == 2
    for one, first, last in zip(said.regions, said.logs[::2], said.logs[1::2], strict=True):
        assert one.begin < first.time < last.time < one.end


def echo() -> Iterator[object]:
    """Yields what it is sent, or what is thrown; "end" ends it."""
    got: object = "begun"
    try:
        while got != "end":
            try:
                got = yield got
            except LookupError as error:
                got = error
        return got
    finally:
        log("u closed", "")


def test_a_generator_s_regions_are_its_steps(tmp_path: Path, judge: Judge) -> None:
    path, error = tmp_path / "t.trace", LookupError("thrown")
    decorated = region("u step")(echo)
    assert inspect.isgeneratorfunction(decorated)
    with trace(path):
        generator: Any = decorated()
        for step in (lambda: next(generator), lambda: generator.send("sent"), lambda: generator.throw(error)):
            with region("u consumer"):
                log("u got", step())
        with pytest.raises(StopIteration) as end:
            generator.send("end")
        assert end.value.value == "end"
        other: Any = decorated()
        next(other)
        other.close()
        third: Any = decorated()
        next(third)
        with pytest.raises(ZeroDivisionError):
            third.throw(ZeroDivisionError)
        assert list(region("u numbers")(range_of)(3)) == [0, 1, 2]
    judge(path)
    said = Said(path)
    assert [one.value for one in said.logs if one.key == "u got"] == ["begun", "sent", "thrown"]
    steps = [one for one in said.regions if one.name == "u step"]
    assert len(steps) == 4 + 2 + 2
    for consumer, step in zip([one for one in said.regions if one.name == "u consumer"], steps, strict=False):
        assert consumer.begin < step.begin < step.end < consumer.end
    closed = [one.time for one in said.logs if one.key == "u closed"]
    for when, step in zip(closed, (steps[3], steps[5], steps[7]), strict=True):
        assert step.begin < when < step.end
    assert len([one for one in said.regions if one.name == "u numbers"]) == 4


def range_of(count: int) -> Iterator[int]:
    yield from range(count)


def test_an_async_generator_s_regions_are_its_steps(tmp_path: Path, judge: Judge) -> None:
    path = tmp_path / "t.trace"

    @region("u step")
    async def numbers() -> AsyncIterator[Any]:
        got: object = None
        try:
            for i in range(3):
                await asyncio.sleep(0)
                try:
                    got = yield i if got is None else got
                except LookupError as error:
                    got = error
        finally:
            await asyncio.sleep(0)
            log("u closed", "")

    async def main() -> None:
        assert [x async for x in numbers()] == [0, 1, 2]
        second: Any = numbers()
        assert [await second.asend(None), await second.asend("sent")] == [0, "sent"]
        assert repr(await second.athrow(LookupError("thrown"))) == "LookupError('thrown')"
        await second.aclose()
        third: Any = numbers()
        await anext(third)
        with pytest.raises(ZeroDivisionError):
            await third.athrow(ZeroDivisionError())

    assert inspect.isasyncgenfunction(numbers)
    asyncio.run(main())
    with trace(path):
        asyncio.run(main())
    judge(path)
    said = Said(path)
    steps = [one for one in said.regions if one.name == "u step"]
    assert len(steps) == 4 + 4 + 2
    for closed, step in zip(said.logs, (steps[3], steps[7], steps[9]), strict=True):
        assert step.begin < closed.time < step.end


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_decorated_functions_of_a_pool(tmp_path: Path, judge: Judge, face: str, method: str) -> None:
    """By name, and by value: what is defined in a function, or in `__main__`."""
    path, offset = tmp_path / "t.trace", 5
    assert pickle.loads(pickle.dumps(annotated.decorated)) is annotated.decorated

    @region("u local")
    def local(x: int) -> int:
        return x + offset

    with trace(path), pool_of(face, method) as pool:
        assert pool.map(annotated.decorated, range(4)) == [1, 2, 3, 4]
        assert pool.map(local, range(4)) == [5, 6, 7, 8]
    judge(path)
    said = Said(path)
    jobs = {said.tasks[one.task].name: one.name for one in said.regions}
    assert jobs == {"map(decorated)": "u decorated", "map(local)": "u local"}
    assert len(said.regions) == 8


def test_a_unit_of_a_decorated_function_is_where_that_is_defined() -> None:
    from pooltrace.pool.serialize import describe

    name, file, line = describe(annotated.decorated)
    assert (name, file) == ("annotated.decorated", annotated.__file__)
    assert line == inspect.unwrap(annotated.decorated).__code__.co_firstlineno


# Elsewhere


def test_the_child_of_a_fork_has_neither_tracer_nor_task(tmp_path: Path, judge: Judge) -> None:
    """It leaves what it was in without harm; a trace of its own knows nothing of that."""
    path, own = tmp_path / "t.trace", tmp_path / "own.trace"
    with trace(path):
        pid = -1
        with region("u parent"), task("u parent"):
            pid = os.fork()
            if pid == 0:
                try:
                    assert not pooltrace.is_enabled()
                    assert annotate.current() == 0
                    with region("u child"), task("u child"):
                        log("u child", "")
                    pooltrace.start(own)
                    annotated.say("own")
                except BaseException:
                    os._exit(1)
        if pid == 0:
            try:
                log("u after", "")
                pooltrace.stop()
                os._exit(7)
            finally:
                os._exit(2)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7
    judge(path)
    judge(own)
    said, child = Said(path), Said(own)
    assert ([one.name for one in said.regions], said.logs) == (["u parent"], [])
    assert said.ended.keys() == said.tasks.keys()
    assert [one.name for one in child.regions] == ["u region own"]
    assert [one.parent for one in child.tasks.values()] == [0]
    assert child.log("u after").task == 0
    assert child.ended.keys() == child.tasks.keys()


def fork_in_unit() -> tuple[int, int]:
    """The current task, and that of a child, which is in no unit."""
    pid = os.fork()
    if pid == 0:
        os._exit(min(annotate.current() + annotate.unit.thread, 100))
    return annotate.current(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_child_of_a_fork_in_a_unit_is_in_no_unit() -> None:
    with pooltrace.StdPool(1) as pool:
        job, child = pool.apply(fork_in_unit)
    assert job > 0
    assert child == 0


def test_a_program_without_pool_or_trace() -> None:
    """Nothing more is imported for it than `import pooltrace` does, and nothing is said."""
    code = """
import sys, pooltrace
before = set(sys.modules)
with pooltrace.task("a"), pooltrace.region("b"):
    pooltrace.log("c", "d")
assert not pooltrace.is_enabled()
assert set(sys.modules) == before, set(sys.modules) - before
assert not {"inspect", "asyncio", "opentelemetry"} & set(sys.modules)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# What the second review found


SETUP = """\
import asyncio, multiprocess, multiprocessing
import pooltrace

CFG = None

def setup(value):
    global CFG
    CFG = value

def function(i):
    return CFG

def generator():
    yield CFG

async def coroutine():
    return CFG

def steps(i):
    return next(generator())

def awaited(i):
    return asyncio.run(coroutine())

class Plain:
    def method(self, i):
        return CFG

@pooltrace.region("function")
def heard(i):
    return CFG

@pooltrace.region("generator")
def heard_generator():
    yield CFG

@pooltrace.region("coroutine")
async def heard_coroutine():
    return CFG

def heard_steps(i):
    return next(heard_generator())

def heard_awaited(i):
    return asyncio.run(heard_coroutine())

class Heard:
    @pooltrace.region("method")
    def method(self, i):
        return CFG

if __name__ == "__main__":
    pairs = (function, heard), (steps, heard_steps), (awaited, heard_awaited), (Plain().method, Heard().method)
    pools = [pooltrace.Pool, pooltrace.StdPool]
    pools += [family.get_context(how).Pool for family in (multiprocess, multiprocessing) for how in ("fork", "spawn")]
    for pool in pools:
        with pool(1, setup, ("set",)) as made:
            for plain, work in pairs:
                assert made.map(work, [1]) == made.map(plain, [1]), (pool, work)
    print("fine")
"""


def test_decorated_functions_of_main_see_their_own_globals(tmp_path: Path) -> None:
    """Whoever pickles them by value (dill) takes what stands in their globals along: they do as undecorated ones do."""
    (tmp_path / "decorated.py").write_text(SETUP)
    for command in (["-W", "error", "decorated.py"], ["-m", "pooltrace", "run", "-o", "t.trace", "decorated.py"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_a_shared_task_that_somebody_entered_before_the_trace(tmp_path: Path, judge: Judge) -> None:
    """He leaves first: that is not the end of the other's."""
    path, shared, inner = tmp_path / "t.trace", task("u shared"), region("u region")
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()

    def early() -> None:
        with shared, inner:
            entered.set()
            leave.wait()
        left.set()

    thread = threading.Thread(target=early)
    thread.start()
    entered.wait()

    def late() -> None:
        with shared, inner:
            leave.set()
            left.wait()
            log("u log", "inside")
        with region("u later"):
            pass

    with trace(path):
        in_thread(late)
    thread.join()
    judge(path)
    said = Said(path)
    [number] = said.tasks
    assert said.log("u log").task == number
    assert said.ended[number] > said.log("u log").time
    assert [(one.name, one.task) for one in said.regions] == [("u region", number), ("u later", 0)]
    assert said.regions[0].end > said.log("u log").time


def test_what_a_signal_s_handler_raises_leaves_no_task_behind(tmp_path: Path, judge: Judge) -> None:
    class InterruptError(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise InterruptError

    path, before = tmp_path / "t.trace", signal.signal(signal.SIGALRM, interrupt)
    hits = 0
    try:
        with trace(path):
            for i in range(200):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0003 + i % 37 * 1e-5)
                    for _ in range(2000):
                        with task("u task"), region("u region"):
                            log("u log", "inside")
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except InterruptError:
                    hits += 1
            assert annotate.current() == 0
            with region("u after"):
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    judge(path)
    assert hits > 100
    [after] = [one for one in Said(path).regions if one.name == "u after"]
    assert after.task == 0
