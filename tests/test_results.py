"""How answers become results: in whatever order and company they come, the result is the stock class's own."""

from __future__ import annotations

import importlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pooltrace.pool import results
from pooltrace.pool.results import Outcome

ANSWERS: list[tuple[int, Outcome]] = [(0, (True, "ab")), (1, (True, "cd")), (2, (True, "ef")), (3, (True, "g"))]


class Pool:
    """What a result needs of its pool."""

    def __init__(self) -> None:
        self._cache: dict[int, Any] = {}


@pytest.fixture(params=["multiprocessing", "multiprocess"])
def made(request: pytest.FixtureRequest) -> tuple[Any, list[str]]:
    """A map's result over seven items in chunks of two, and who was called back."""
    called: list[str] = []
    stock = importlib.import_module(f"{request.param}.pool").MapResult
    return (
        stock(
            Pool(),
            2,
            7,
            lambda value: called.append(f"ok {''.join(value)}"),
            error_callback=lambda error: called.append(f"error {error}"),
        ),
        called,
    )


def batches(answers: list[tuple[int, Outcome]]) -> Iterator[list[list[tuple[int, Outcome]]]]:
    """All ways to cut them into batches."""
    places = range(1, len(answers))
    for count in range(len(answers)):
        for cuts in itertools.combinations(places, count):
            yield [answers[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(answers)])]


ORDERS = [list(order) for order in itertools.permutations(ANSWERS)]


@pytest.mark.parametrize("how", range(8))
def test_a_map_is_filled_in_whatever_comes_together(how: int, made: tuple[Any, list[str]]) -> None:
    for order in ORDERS:
        result, called = fresh(made)
        for batch in next(itertools.islice(batches(order), how, None)):
            assert not result.ready()
            results.deliver(result, list(batch))
        assert result.get(0) == list("abcdefg")
        assert called == ["ok abcdefg"]
        assert result._cache == {}


@pytest.mark.parametrize("how", range(8))
def test_a_maps_first_error_is_its_result_when_all_are_in(how: int, made: tuple[Any, list[str]]) -> None:
    for bad, order in itertools.product([{0}, {1, 3}, {0, 1, 2, 3}], ORDERS):
        result, called = fresh(made)
        answers = [(index, (False, KeyError(index)) if index in bad else outcome) for index, outcome in order]
        for batch in next(itertools.islice(batches(answers), how, None)):
            assert not result.ready()
            results.deliver(result, list(batch))
        first = next(index for index, _ in order if index in bad)
        with pytest.raises(KeyError, match=str(first)):
            result.get(0)
        assert called == [f"error {first}"]
        assert result._cache == {}


def fresh(made: tuple[Any, list[str]]) -> tuple[Any, list[str]]:
    """The same again."""
    old, called = made
    called.clear()
    return type(old)(Pool(), 2, 7, old._callback, error_callback=old._error_callback), called


def test_answers_of_a_result_that_was_given_up_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a class that we do not know, say."""
    seen: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_value))

    class Broken:
        _success = False

        def _set(self, index: int, outcome: Outcome) -> None:
            raise KeyError(index)

    results.deliver(Broken(), list(ANSWERS))
    assert [str(error) for error in seen] == ["0", "1", "2", "3"]
