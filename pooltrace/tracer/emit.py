"""One name per event: the C functions themselves, and the only door to the tracer for pool code.

They take positional arguments, return at once, and never raise for what the tracer could not do (only for a wrong
argument).  With no trace on, each costs a load and a branch.  Which thread may call what:

    any thread of the parent   enter, leave, go_create, go_cancel, go_block, go_unblock, go_resume, task_begin, task_end
    a worker's main thread     unit_begin, unit_end, idle, run_chunk, run_call
    its other threads          enter, leave, go_block, go_resume
    all of them                region_begin, region_end, log, user_task_begin, user_task_end

``Stack`` objects are handles for Python stacks; ``None`` in a stack's place means the stack of now (a start function
that is ``None`` is left out).  Times are CLOCK_MONOTONIC in ns, taken inside.
"""

from __future__ import annotations

from pooltrace.tracer._core import (
    ITEM,
    PHASE,
    REGION,
    Stack,
    Ticket,
    enabled,
    enter,
    frame,
    free_p,
    go_block,
    go_cancel,
    go_create,
    go_create_row,
    go_resume,
    go_unblock,
    idle,
    leave,
    log,
    new_g,
    new_p,
    new_task,
    region_begin,
    region_end,
    run_call,
    run_chunk,
    stack,
    task_begin,
    task_end,
    unit_begin,
    unit_end,
    user_task_begin,
    user_task_end,
)

__all__ = [
    "ITEM",
    "PHASE",
    "REGION",
    "Stack",
    "Ticket",
    "enabled",
    "enter",
    "frame",
    "free_p",
    "go_block",
    "go_cancel",
    "go_create",
    "go_create_row",
    "go_resume",
    "go_unblock",
    "idle",
    "leave",
    "log",
    "new_g",
    "new_p",
    "new_task",
    "region_begin",
    "region_end",
    "run_call",
    "run_chunk",
    "stack",
    "task_begin",
    "task_end",
    "unit_begin",
    "unit_end",
    "user_task_begin",
    "user_task_end",
]
