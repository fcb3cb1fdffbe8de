"""What the machine gives this process: how much memory it may use, and whether that was too little."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_CGROUP, _ROOT = "/proc/self/cgroup", "/sys/fs/cgroup"  # which are this process's; where they are


def _cgroups(controller: str) -> Iterator[tuple[int, str]]:
    """Version and directory of each cgroup that has a say in this process's memory or cpu, the innermost first."""
    try:
        with open(_CGROUP, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        version, root = (2, _ROOT) if controllers == "" else (1, f"{_ROOT}/{controllers}")
        while True:
            yield version, root + path.rstrip("/")
            if path in ("", "/"):
                break
            path = os.path.dirname(path)


def _cgroup_limit() -> int:
    """The tightest memory limit of this process's cgroup and those above it in bytes, 0 for none."""
    limits = []
    for version, directory in _cgroups("memory"):
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        with contextlib.suppress(OSError, ValueError), open(f"{directory}/{name}", encoding="ascii") as file:
            limits.append(int(file.read()))
    return min(limits, default=0)


def oom_kills() -> int:
    """How many processes of this cgroup the kernel has killed because memory was short; 0 too if it does not say."""
    for version, directory in _cgroups("memory"):
        name = "memory.events" if version == 2 else "memory.oom_control"
        with contextlib.suppress(OSError, ValueError), open(f"{directory}/{name}", encoding="ascii") as file:
            for line in file:
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
    return 0


def memory_limit() -> int:
    """Bytes that the process and its workers may use together: the cgroup's limit, else the machine's memory."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _cgroup_limit()
    return min(limit, total) if limit else total


def throttle_source() -> tuple[str, str, int]:
    """Where it says how long this process's cgroup had to stand still, because its share of the processors was used up.

    The file, the beginning of the line, and how many of its numbers are 1 us.  Empty where nothing limits it.
    """
    for version, directory in _cgroups("cpu"):
        name = "cpu.max" if version == 2 else "cpu.cfs_quota_us"
        with contextlib.suppress(OSError), open(f"{directory}/{name}", encoding="ascii") as file:
            if not file.read().startswith(("max", "-1")):
                key, unit = ("throttled_usec ", 1) if version == 2 else ("throttled_time ", 1000)
                return f"{directory}/cpu.stat", key, unit
    return "", "", 1
