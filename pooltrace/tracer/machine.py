"""What the machine gives this process: how much memory it may use."""

from __future__ import annotations

import contextlib
import os


def _cgroup_limit() -> int:
    """The tightest memory limit of this process's cgroup and those above it in bytes, 0 for none."""
    limits = []
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, name = (
            ("/sys/fs/cgroup", "memory.max")
            if controllers == ""
            else ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        )
        while True:
            with (
                contextlib.suppress(OSError, ValueError),
                open(root + path.rstrip("/") + "/" + name, encoding="ascii") as file,
            ):
                limits.append(int(file.read()))
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
    return min(limits, default=0)


def memory_limit() -> int:
    """Bytes that the process and its workers may use together: the cgroup's limit, else the machine's memory."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _cgroup_limit()
    return min(limit, total) if limit else total
