"""What a lost unit's error says: which worker, how it ended, what ran in it, of which items."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import identity, killed, killed_at, killed_at_any, square

from pooltrace.errors import WorkerLostError
from pooltrace.pool import losses
from pooltrace.pool.jobs import short
from pooltrace.pool.pool import StdPool
from pooltrace.tracer import machine

three = functools.partial(killed_at, 3)
CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "apply": (lambda pool: pool.apply(killed_at, (3, 3)), "killed_at (first argument: 3)"),
    "apply, with keywords": (lambda pool: pool.apply(killed_at, kwds={"which": 1, "x": 1}), "killed_at"),
    "apply_async": (lambda pool: pool.apply_async(killed).get(), "killed"),
    "apply, of a set": (lambda pool: pool.apply(killed_at_any, {3}), "killed_at_any"),
    "apply_async, of a dict": (lambda pool: pool.apply_async(killed_at_any, {3: 4}).get(), "killed_at_any"),
    "map, items": (lambda pool: pool.map(three, range(6), 1), "killed_at (item 3: 3)"),
    "map, chunks": (lambda pool: pool.map(three, list(range(6)), 2), "killed_at (items 2 to 3, the first: 2)"),
    "map, a rest": (lambda pool: pool.map(three, range(4), 3), "killed_at (item 3: 3)"),
    "starmap": (
        lambda pool: pool.starmap(killed_at, [(0, 1), (1, 1), (0, 2)], 2),
        "killed_at (items 0 to 1, the first: (0, 1))",
    ),
    "imap": (lambda pool: list(pool.imap(three, range(6))), "killed_at (item 3: 3)"),
    "imap, chunks": (lambda pool: list(pool.imap(three, range(9), 2)), "killed_at (items 2 to 3, the first: 2)"),
    "imap, what is not kept": (
        lambda pool: list(pool.imap_unordered(functools.partial(killed_at, [1]), [[0], [1]])),
        "killed_at (item 1)",
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_error_names_the_items(call: str) -> None:
    run, text = CALLS[call]
    with StdPool(1) as pool:
        pid = pool.apply(identity, (1,)) and pool._pool[0].pid
        with pytest.raises(WorkerLostError) as caught:
            run(pool)
    assert str(caught.value) == f"worker pid {pid} was killed by SIGKILL while it ran faults.{text}"


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_values_are_shown_in_one_short_line() -> None:
    assert short(42) == "42"
    assert short("a\nb") == r"'a\nb'"
    assert short(Odd()).startswith("<Odd ")
    assert len(short("x" * 1000)) <= 60
    assert len(short([list(range(100))] * 100)) <= 60
    assert "\n" not in short(type("Lines", (), {"__repr__": lambda self: "a\n  b"})())


@pytest.fixture
def kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], object]:
    """Sets how often the kernel has killed for want of memory, by a cgroup that is made up."""
    (tmp_path / "cgroup").write_text("3:cpu:/x\n0::/job\n")
    (tmp_path / "job").mkdir()
    monkeypatch.setattr(machine, "_CGROUP", str(tmp_path / "cgroup"))
    monkeypatch.setattr(machine, "_ROOT", str(tmp_path))
    monkeypatch.setattr(losses._OomKills, "told", 0)
    events = tmp_path / "job" / "memory.events"

    def set_to(count: int) -> None:
        events.write_text(f"low 0\noom 9\noom_kill {count}\noom_group_kill 0\n")

    set_to(3)
    return set_to


def test_a_worker_that_was_killed_for_want_of_memory(kills: Callable[[int], object]) -> None:
    """One kill explains one death, of a worker that was there before it."""
    with StdPool(1) as pool:
        texts = []
        for count in (3, 4, 4, 6, 6, 6):
            assert pool.apply(square, (2,)) == 4  # the new one is there
            kills(count)
            with pytest.raises(WorkerLostError) as caught:
                pool.apply(killed)
            texts.append("SIGKILL (out of memory) while" in str(caught.value))
    assert texts == [False, True, False, True, False, False]


@pytest.mark.parametrize("version", [1, 2])
def test_the_counter_of_both_kinds_of_cgroup(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: Callable[[int], object]
) -> None:
    if version == 1:
        (tmp_path / "cgroup").write_text("4:memory:/job\n0::/\n")
        assert machine.oom_kills() == 0  # there is none
        (tmp_path / "memory" / "job").mkdir(parents=True)
        (tmp_path / "memory" / "job" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
        assert machine.oom_kills() == 7
    else:
        kills(5)
        assert machine.oom_kills() == 5
    monkeypatch.setattr(machine, "_CGROUP", str(tmp_path / "none"))
    assert machine.oom_kills() == 0
