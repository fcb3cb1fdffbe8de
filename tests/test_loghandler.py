"""The program's log records in the trace: which, where, and that nothing of it comes back to the program."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from annotated import Said
from faults import METHODS

import pooltrace
from pooltrace import LogHandler, task, trace
from pooltrace.format.order import Summary

Judge = Callable[[str | os.PathLike[str]], Summary]


@pytest.fixture
def logger() -> logging.Logger:
    """One that pytest's own handlers do not listen to."""
    return logging.Logger("app.db", logging.INFO)


def test_records_are_logs_of_the_current_task(tmp_path: Path, judge: Judge, logger: logging.Logger) -> None:
    path = tmp_path / "t.trace"
    handler = LogHandler(logging.WARNING)
    handler.setFormatter(logging.Formatter("<%(message)s>"))
    logger.addHandler(handler)
    with trace(path), task("u task"):
        logger.warning("%d rows", 3)
        logger.info("below the handler's level")
        thread = threading.Thread(target=logger.error, args=("in a thread",))
        thread.start()
        thread.join()
        try:
            raise LookupError("x")
        except LookupError:
            logger.exception("failed")
    judge(path)
    said = Said(path)
    assert [one.key for one in said.logs] == ["WARNING app.db", "ERROR app.db", "ERROR app.db"]
    assert [one.value for one in said.logs[:2]] == ["<3 rows>", "<in a thread>"]
    assert said.logs[2].value.startswith("<failed>\nTraceback")
    assert said.logs[2].value.endswith("LookupError: x")
    number = said.number("u task")
    assert [one.task for one in said.logs] == [number, 0, number]
    assert said.logs[1].m == thread.native_id


def use_handler() -> None:
    logging.getLogger("worker").addHandler(LogHandler())


def warn(x: int) -> int:
    def run() -> None:
        logging.getLogger("worker").warning("thread %d", x)

    logging.getLogger("worker").warning("unit %d", x)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return x


@pytest.mark.parametrize("method", METHODS)
def test_workers_and_their_threads(tmp_path: Path, judge: Judge, method: str) -> None:
    path, context = tmp_path / "t.trace", __import__("multiprocessing").get_context(method)
    with trace(path), pooltrace.StdPool(2, use_handler, context=context) as pool:
        pool.map(warn, range(4), chunksize=1)
    judge(path)
    said = Said(path)
    assert sorted(one.value for one in said.logs) == sorted(
        f"{who} {i}" for who in ("unit", "thread") for i in range(4)
    )
    assert {one.key for one in said.logs} == {"WARNING worker"}
    assert {said.tasks[one.task].name for one in said.logs} == {"map(warn)"}


def test_nothing_is_formatted_without_a_trace(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    class Message:
        def __str__(self) -> str:
            raise AssertionError

    def refuse(record: logging.LogRecord) -> bool:
        raise AssertionError

    handler = LogHandler()
    handler.addFilter(refuse)
    logger.addHandler(handler)
    logger.warning("%s", Message())
    handler.emit(logging.makeLogRecord({"msg": Message()}))
    assert capsys.readouterr().err == ""


def test_what_fails_is_the_handler_s(
    tmp_path: Path, judge: Judge, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.trace"
    handler = LogHandler()
    logger.addHandler(handler)
    with trace(path):
        logger.warning("%d", "no number")
        handler.addFilter(lambda record: {}["missing"])
        logger.warning("to a filter that fails")
        handler.filters.clear()
        handler.addFilter(lambda record: record.args != ("dropped",))
        logger.warning("%s", "dropped")
        logger.warning("%s", "kept")
    judge(path)
    assert [one.value for one in Said(path).logs] == ["kept"]
    told = capsys.readouterr().err
    assert told.count("--- Logging error ---") == 2
    assert "TypeError" in told
    assert "KeyError" in told


def test_what_is_logged_while_a_record_is_formatted(tmp_path: Path, judge: Judge, logger: logging.Logger) -> None:
    """It is left out, in this thread; and pooltrace's own records are no different from others."""
    path = tmp_path / "t.trace"

    class Talks:
        def __str__(self) -> str:
            logger.warning("%s", self)
            thread = threading.Thread(target=logger.warning, args=("another thread's",))
            thread.start()
            thread.join()
            return "said"

    ours, handler = logging.getLogger("pooltrace"), LogHandler()
    logger.addHandler(handler)
    ours.addHandler(handler)
    try:
        with trace(path):
            logger.warning("%s", Talks())
            ours.warning("ours")
    finally:
        ours.removeHandler(handler)
    judge(path)
    said = [(one.key, one.value) for one in Said(path).logs]
    assert said == [
        ("WARNING app.db", "another thread's"),
        ("WARNING app.db", "said"),
        ("WARNING pooltrace", "ours"),
    ]
