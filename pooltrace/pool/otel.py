"""OpenTelemetry's context goes with a job into the workers, so that spans begun in a unit have the right parent.

Only where the program uses it: nothing is imported in the parent that is not in use there already.  What fails here is
logged once, and never breaks a job.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

_log = logging.getLogger("pooltrace")
_told = False  # that something failed: once per process


def carrier() -> tuple[dict[str, str] | None, str]:
    """The context of the caller's span in the form in which it travels (W3C's, unless the program has set another
    propagator), and the id of its trace; (None, "") when there is no such span."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None, ""
    try:
        found = trace.get_current_span().get_span_context()
        if not found.is_valid:
            return None, ""
        into: dict[str, str] = {}
        importlib.import_module("opentelemetry.propagate").inject(into)
        return {str(key): str(value) for key, value in into.items()}, f"{found.trace_id:032x}"
    except Exception as error:
        _failed("was not sent to the workers", error)
        return None, ""


def attach(carried: dict[str, str]) -> Any:
    """In a worker, before the user's code of a unit: its job's context becomes the current one. For ``detach``."""
    try:
        context = importlib.import_module("opentelemetry.propagate").extract(carried)
        return importlib.import_module("opentelemetry.context").attach(context)
    except Exception as error:
        _failed("is not there in the workers", error)
        return None


def detach(token: Any) -> None:
    """After it."""
    try:
        importlib.import_module("opentelemetry.context").detach(token)
    except Exception as error:
        _failed("could not be left", error)


def forget() -> None:
    """In a worker that was forked: whatever its parent was in then, no unit is in that."""
    context = sys.modules.get("opentelemetry.context")
    if context is None:
        return
    try:
        context.attach(context.Context())
    except Exception as error:
        _failed("could not be left", error)


def _failed(what: str, error: Exception) -> None:
    global _told
    if not _told:
        _told = True
        _log.warning("pooltrace: the OpenTelemetry context of a job %s: %s: %s", what, type(error).__name__, error)
