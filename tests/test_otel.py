"""OpenTelemetry: a span that is active at a job's submission is the parent of those that begin in its units."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import multiprocess
import pytest
from annotated import Said
from faults import METHODS

import pooltrace
from pooltrace import trace
from pooltrace.format.order import Summary
from pooltrace.pool import otel

Judge = Callable[[str | os.PathLike[str]], Summary]


@pytest.fixture
def tracer() -> Any:
    """A tracer with spans that are recorded."""
    try:
        return importlib.import_module("opentelemetry.sdk.trace").TracerProvider().get_tracer("test")
    except ImportError as error:
        if os.environ.get("POOLTRACE_CI") == "1":
            pytest.fail(f"no OpenTelemetry here: {error}")
        pytest.skip(f"no OpenTelemetry here: {error}")


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "_told", False)


def parent_of_a_span(_: object = None) -> tuple[str, str]:
    """In a unit: of the span that is current there, the ids of trace and span; and that a new one is its child."""
    provider = importlib.import_module("opentelemetry.sdk.trace").TracerProvider()
    now = importlib.import_module("opentelemetry.trace").get_current_span().get_span_context()
    with provider.get_tracer("unit").start_as_current_span("unit") as span:
        if now.is_valid:
            assert (span.parent.trace_id, span.parent.span_id, span.parent.is_remote) == (
                now.trace_id,
                now.span_id,
                True,
            )
            assert span.get_span_context().trace_id == now.trace_id
        else:
            assert span.parent is None
    return f"{now.trace_id:032x}", f"{now.span_id:016x}"


def parent_of_items(items: Iterator[object]) -> list[tuple[str, str]]:
    return [parent_of_a_span(item) for item in items]


def ids(span: Any) -> tuple[str, str]:
    context = span.get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


NONE = ("0" * 32, "0" * 16)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("face", ["Pool", "StdPool"])
def test_spans_of_units_have_the_span_of_the_submission(
    tmp_path: Path, judge: Judge, tracer: Any, face: str, method: str
) -> None:
    path = tmp_path / "t.trace"
    family = multiprocess if face == "Pool" else importlib.import_module("multiprocessing")
    with trace(path):
        with tracer.start_as_current_span("outer"):
            pool = getattr(pooltrace, face)(2, context=family.get_context(method))
        with pool:
            assert pool.apply(parent_of_a_span) == NONE  # nor that in which a worker was forked
            with tracer.start_as_current_span("first") as first:
                assert set(pool.map(parent_of_a_span, range(6), chunksize=2)) == {ids(first)}
                lazy = pool.imap(parent_of_a_span, range(3))
                waiting = pool.apply_async(parent_of_a_span)
                with tracer.start_as_current_span("second") as second:
                    assert pool.apply(parent_of_a_span) == ids(second)
                    assert second.get_span_context().trace_id == first.get_span_context().trace_id
            with tracer.start_as_current_span("other"):
                assert set(lazy) == {ids(first)}
                assert waiting.get() == ids(first)
            assert pool.apply(parent_of_a_span) == NONE
    judge(path)
    said = Said(path)
    logs = [(said.tasks[one.task].name, one.value) for one in said.logs if one.key == "otel trace id"]
    trace_id = ids(first)[0]
    calls = ("map", "imap", "apply", "apply")
    assert logs == [(f"{call}(parent_of_a_span)", trace_id) for call in calls]


def test_without_a_trace_too(tracer: Any) -> None:
    with pooltrace.StdPool(1) as pool, tracer.start_as_current_span("outer") as outer:
        assert pool.apply(parent_of_a_span) == ids(outer)


def fail() -> None:
    raise LookupError("in the unit")


def test_a_unit_that_fails_leaves_the_context(tracer: Any) -> None:
    with pooltrace.StdPool(1) as pool:
        with tracer.start_as_current_span("outer"), pytest.raises(LookupError):
            pool.apply(fail)
        assert pool.apply(parent_of_a_span) == NONE


def test_what_fails_in_the_parent_is_told_once(
    tracer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(carrier: dict[str, str]) -> None:
        raise ValueError("no")

    monkeypatch.setattr(importlib.import_module("opentelemetry.propagate"), "inject", refuse)
    with pooltrace.StdPool(1) as pool, tracer.start_as_current_span("outer"):
        with caplog.at_level(logging.WARNING, "pooltrace"):
            assert [pool.apply(parent_of_a_span) for _ in range(2)] == [NONE, NONE]
    assert [record.getMessage() for record in caplog.records] == [
        "pooltrace: the OpenTelemetry context of a job was not sent to the workers: ValueError: no"
    ]


def break_extract(told: str) -> None:
    """In a worker: nothing can be extracted; where that is told."""

    def refuse(carrier: dict[str, str]) -> None:
        raise ValueError("no")

    importlib.import_module("opentelemetry.propagate").extract = refuse  # type: ignore[attr-defined]
    logging.getLogger("pooltrace").addHandler(logging.FileHandler(told))


def test_what_fails_in_a_worker_is_told_once(tmp_path: Path, tracer: Any) -> None:
    told = tmp_path / "told"
    with pooltrace.StdPool(1, break_extract, (str(told),)) as pool, tracer.start_as_current_span("outer"):
        assert [pool.apply(parent_of_a_span) for _ in range(2)] == [NONE, NONE]
    text = "pooltrace: the OpenTelemetry context of a job is not there in the workers: ValueError: no"
    assert told.read_text().splitlines() == [text]


def test_carriers_that_a_job_cannot_send(tracer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a propagator puts in that is no str is made one."""

    def inject(carrier: dict[Any, Any]) -> None:
        carrier[b"key"] = tracer

    monkeypatch.setattr(importlib.import_module("opentelemetry.propagate"), "inject", inject)
    with pooltrace.StdPool(1) as pool, tracer.start_as_current_span("outer"):
        assert pool.apply(parent_of_a_span) == NONE


def test_it_is_never_imported_in_the_parent() -> None:
    code = """
import sys, pooltrace
with pooltrace.StdPool(1) as pool:
    assert pool.map(abs, [-1]) == [1]
    assert pool.apply(sys.modules.__contains__, ("opentelemetry",)) is False
assert "opentelemetry" not in sys.modules
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
