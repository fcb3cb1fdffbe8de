"""What wakes the dispatcher: no change is missed, and one byte is enough."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from pooltrace.pool.waits import Waker


@pytest.fixture
def waker() -> Iterator[Waker]:
    made = Waker()
    yield made
    made.close()


def is_woken(waker: Waker) -> bool:
    return bool(select.select([waker], [], [], 0)[0])


def test_one_byte_ends_a_sleep_however_many_wake(waker: Waker) -> None:
    for _ in range(3):
        assert waker.may_sleep()
        for _ in range(5):
            waker.wake()
        assert is_woken(waker)
        assert waker._ours.recv(100) == b"."
        waker.rise()
    waker.wake()
    assert not is_woken(waker)  # nobody sleeps


def test_a_change_before_the_sleep_keeps_it_from_sleeping(waker: Waker) -> None:
    waker.wake()
    assert not waker.may_sleep()
    waker.rise()
    assert waker.may_sleep()


def test_a_change_while_it_falls_asleep_ends_the_sleep(waker: Waker) -> None:
    """It has asked, and does not wait yet."""
    assert waker.may_sleep()
    waker.wake()
    assert is_woken(waker)


def test_who_is_late_with_a_sleep_does_not_hide_the_next_one(waker: Waker, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a thread writes, the sleeper wakes up and sleeps again; then another thread has news."""
    theirs = waker._theirs

    class Slow:
        def send(self, data: bytes) -> None:
            theirs.send(data)
            waker.drain()
            waker.rise()
            assert waker.may_sleep()

    assert waker.may_sleep()
    monkeypatch.setattr(waker, "_theirs", Slow())
    waker.wake()
    monkeypatch.undo()
    assert not is_woken(waker)
    waker.wake()
    assert is_woken(waker)


def test_a_wake_that_is_interrupted_can_be_repeated(waker: Waker, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Exception):
        pass

    class Interrupts:
        def send(self, data: bytes) -> None:
            raise Interrupted

    assert waker.may_sleep()
    monkeypatch.setattr(waker, "_theirs", Interrupts())
    with pytest.raises(Interrupted):
        waker.wake()
    monkeypatch.undo()
    waker.wake()
    assert is_woken(waker)


def test_a_byte_from_elsewhere_wakes_as_well(waker: Waker) -> None:
    assert waker.may_sleep()
    os.write(waker.writer(), b".")
    assert is_woken(waker)
    waker.drain()
    assert not is_woken(waker)
