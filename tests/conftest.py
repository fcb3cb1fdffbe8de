"""Fixtures that all tests share: the judge of every trace that any test makes."""

from __future__ import annotations

import os
from collections.abc import Callable

import gotool
import pytest

from pooltrace.format import order
from pooltrace.format.order import Summary


@pytest.fixture
def judge() -> Callable[[str | os.PathLike[str]], Summary]:
    """Checks a trace: our ordering check and Go's reader accept it, and read the same events at the times written.

    Returns the counts. Without Go the first half is still done, then the test is skipped (or fails, with
    POOLTRACE_CI=1).
    """

    def check_and_compare(path: str | os.PathLike[str]) -> Summary:
        summary = order.check(path)
        gotool.require_go()
        gotool.compare(path)
        return summary

    return check_and_compare
