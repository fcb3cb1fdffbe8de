"""Waits: each is one GoBlock and exactly one GoUnblock, by the waker or by the waiter, whoever comes first."""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pooltrace import trace
from pooltrace.errors import MisuseError
from pooltrace.format import order
from pooltrace.pool import waits
from pooltrace.pool.waits import Condition, Event
from pooltrace.tracer import emit, session

Judge = Callable[[str | os.PathLike[str]], order.Summary]


def in_thread(call: Callable[[], object]) -> None:
    """Runs it in a thread of its own, which is in the trace while it waits only."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def wakings(path: Path) -> tuple[int, Counter[bool]]:
    """How many waits there were, and how many of them the waiter ended itself (True) and another thread (False)."""
    blocked: dict[int, int] = {}
    waits = 0
    ended: Counter[bool] = Counter()
    for event in order.read_events(path):
        if event.name == "GoBlock" and event.string("reason") == "test":
            blocked[event.g] = event.m
            waits += 1
        elif event.name == "GoUnblock" and event.arg("g") in blocked:
            ended[blocked.pop(event.arg("g")) == event.m] += 1
    assert not blocked
    return waits, ended


@pytest.mark.parametrize("switched", [False, True])
def test_a_wait_that_times_out(switched: bool, tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    path, event = tmp_path / "t.trace", Event("test")
    if switched:
        after(monkeypatch, session.advance)
    with trace(path, period=3600.0):
        for _ in range(3):
            in_thread(lambda: event.wait(0.0))
        event.set()
        in_thread(event.wait)  # does not wait
    judge(path)
    assert wakings(path) == (3, Counter({True: 3}))


def after(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> None:
    """Calls something when the wait is over and the waiter does not know yet."""
    wait = waits._Waiter.wait

    def lying(waiter: Any, timeout: float | None = None) -> bool:
        found = wait(waiter, 0.0)
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return found

    monkeypatch.setattr(waits._Waiter, "wait", lying)


@pytest.mark.parametrize("switched", ["not", "before", "between"])
def test_time_is_up_at_the_instant_of_the_waking(
    switched: str, tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waker was there first: the waiter, whose time is up, writes no second GoUnblock."""
    path, event = tmp_path / "t.trace", Event("test")

    def wake() -> None:
        if switched == "before":
            assert session.advance()
        event.set()
        if switched == "between":
            assert session.advance()

    after(monkeypatch, wake)
    with trace(path, period=3600.0):
        in_thread(lambda: event.wait(0.0))
    judge(path)
    assert wakings(path) == (1, Counter({False: 1}))


def test_a_wait_that_is_interrupted(tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """The waker who comes later has nothing to write, in this generation or in the next."""
    path, event = tmp_path / "t.trace", Event("test")

    def interrupted(waiter: Any, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(waits._Waiter, "wait", interrupted)
    with trace(path, period=3600.0):
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                in_thread(event.wait)
            assert session.advance()
        event.set()
        emit.log(0, "after", "it")
    judge(path)
    assert wakings(path) == (2, Counter({True: 2}))


def test_a_condition_wakes_in_order(tmp_path: Path, judge: Judge) -> None:
    path, cond = tmp_path / "t.trace", Condition("test")
    order_of: list[int] = []

    def wait(number: int) -> None:
        with cond:
            cond.wait()
            order_of.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(4)]
    with trace(path, period=3600.0):
        for number, thread in enumerate(threads):
            thread.start()
            waiting = 0
            while waiting <= number:
                with cond:
                    waiting = len(cond._waiters)
        with cond:
            cond.notify()
        threads[0].join()
        assert session.advance()
        with cond:
            cond.wait(0.0)  # this thread's time is up at once, the others wait on
            cond.notify_all()
        for thread in threads:
            thread.join()
    judge(path)
    assert order_of[0] == 0
    assert sorted(order_of) == [0, 1, 2, 3]
    assert wakings(path) == (5, Counter({False: 4, True: 1}))


def test_what_comes_before_the_wait_is_not_waited_for(
    tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its GoBlock, or between that and the last look."""
    path, enter, made = tmp_path / "t.trace", emit.enter, waits._Waiter.__init__

    def entered() -> bool:
        early.set()
        return enter()

    def making(waiter: Any, ticket: emit.Ticket | None) -> None:
        made(waiter, ticket)
        late.set()

    early, late = Event("test"), Event("test")
    with trace(path):
        with monkeypatch.context() as patched:
            patched.setattr(emit, "enter", entered)
            in_thread(early.wait)
        monkeypatch.setattr(waits._Waiter, "__init__", making)
        in_thread(late.wait)
    judge(path)
    assert wakings(path) == (1, Counter({True: 1}))
    assert not early._waiters
    assert not late._waiters


def test_whoever_sets_an_event_again_wakes_those_whom_it_did_not_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was interrupted amid that."""
    event, wake = Event("test"), waits._Waiter.wake
    threads = [threading.Thread(target=event.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(event._waiters) < 3:
        pass
    woken: list[Any] = []

    def interrupted(waiter: Any) -> None:
        if woken:
            raise KeyboardInterrupt
        woken.append(waiter)
        wake(waiter)

    monkeypatch.setattr(waits._Waiter, "wake", interrupted)
    with pytest.raises(KeyboardInterrupt):
        event.set()
    monkeypatch.setattr(waits._Waiter, "wake", wake)
    event.set()
    for thread in threads:
        thread.join()


def test_a_condition_is_let_go_as_often_as_it_was_taken() -> None:
    """By a handler, say, that came within its lock."""
    cond = Condition("test")

    def wake() -> None:
        with cond:
            cond.notify_all()

    thread = threading.Thread(target=wake)
    with cond, cond:
        thread.start()
        assert cond.wait()
        assert not cond.wait(0.0)
    thread.join()
    in_thread(wake)  # it is free


class Appending(deque[Any]):
    """A handler raises when something was appended."""

    def append(self, item: Any) -> None:
        super().append(item)
        raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["append", "release", "wait", "reacquire"])
def test_a_condition_whose_wait_is_interrupted_is_held(
    at: str, tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The `with` around it lets it go, nobody is woken in its place, and its thread is not told as blocked."""

    class Interrupting(Condition):
        def _release_save(self) -> Any:
            state = super()._release_save()  # type: ignore[misc]
            if at == "release":
                raise KeyboardInterrupt
            return state

        def _acquire_restore(self, state: Any) -> None:
            super()._acquire_restore(state)  # type: ignore[misc]
            if at == "reacquire":
                raise KeyboardInterrupt

    def interrupted(waiter: Any, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    def again() -> None:
        assert cond.acquire(timeout=60.0)
        with pytest.raises(KeyboardInterrupt) if at in ("release", "reacquire") else nullcontext():
            cond.wait(0.0)
        cond.release()

    path, cond = tmp_path / "t.trace", Interrupting("test")
    with trace(path, period=3600.0):
        with monkeypatch.context() as patched:
            if at == "append":
                patched.setattr(cond, "_waiters", Appending())
            elif at == "wait":
                patched.setattr(waits._Waiter, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt), cond:
                cond.wait(0.0)
            assert not cond._waiters
        again()
        in_thread(again)
    judge(path)
    assert not cond._waiters
    assert wakings(path) == (3, Counter({True: 3}))


def test_a_condition_is_waited_for_by_who_holds_it() -> None:
    cond = Condition("test")
    with pytest.raises(RuntimeError, match="un-acquired"):
        cond.wait(0.0)
    assert cond.acquire(blocking=False)


def test_an_event_whose_wait_is_interrupted_forgets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    event = Event("test")
    monkeypatch.setattr(event, "_waiters", Appending())
    with pytest.raises(KeyboardInterrupt):
        event.wait(0.0)
    assert not event._waiters


def test_waiters_that_change_while_they_are_listed_are_listed_again() -> None:
    """A collection may come in between, and with it another thread."""

    class Changing(deque[Any]):
        times = 0

        def __iter__(self) -> Iterator[Any]:
            self.times += 1
            if self.times < 3:
                raise RuntimeError("deque mutated during iteration")
            return super().__iter__()

    event = Event("test")
    event._waiters = Changing()
    thread = threading.Thread(target=event.wait)
    thread.start()
    while not event._waiters:
        pass
    event.set()
    thread.join()


def test_the_one_who_would_wake_must_not_wait() -> None:
    event = Event("test", thread=threading.current_thread())
    with pytest.raises(MisuseError, match="a callback waits for a result of its own pool"):
        event.wait()
    assert not event.wait(0.0)
    event.set()
    assert event.wait()
