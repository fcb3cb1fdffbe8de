"""The C core without Python: the switch test and its negative control, everything at once, and the fuzz targets.

Short forms of what scripts/nightly runs for hours; built here with cc, from the sources beside the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pieces
import pytest
from pieces import SEED

from pooltrace.errors import BadTraceError
from pooltrace.format import cut, order
from pooltrace.format.order import Summary

ROOT = Path(__file__).resolve().parent.parent
FUZZ = ROOT / "scripts" / "fuzz"
SECONDS = 300
LIMIT = 2 * SECONDS  # of one test, see conftest
Judge = Callable[[str | os.PathLike[str]], Summary]


def need(command: str) -> None:
    if shutil.which(command) is None:
        text = f"no {command} here"
        if os.environ.get("POOLTRACE_CI"):
            pytest.fail(text)
        pytest.skip(text)


def run(*command: object, status: int = 0) -> str:
    """Runs a program; its standard output. Fails if it ends with another status."""
    env = os.environ | {"FUZZ_ENGINE": "own", "PYTHON": sys.executable}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=env, timeout=SECONDS, check=False
    )
    print(done.stdout, done.stderr, sep="")
    assert done.returncode == status, f"{command[0]} ended with status {done.returncode}"
    return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds a native test, once for each set of flags."""
    need(os.environ.get("CC", "cc").split()[0])
    folder = tmp_path_factory.mktemp("native")
    made: dict[tuple[str, ...], Path] = {}

    def once(target: str, *flags: str) -> Path:
        out = made.get((target, *flags))
        if out is None:
            out = made[(target, *flags)] = folder / f"{target}-{len(made)}"
            run(FUZZ / "build", target, out, *flags)
        return out

    return once


def count(word: str, text: str) -> int:
    found = re.search(rf"(\d+) {word}", text)
    assert found
    return int(found[1])


@pytest.mark.parametrize("workers", [["-workers", 3, "-threads", 1], ["-in-threads"]], ids=["processes", "threads"])
def test_no_event_is_lost_over_many_switches(build: Callable[..., Path], workers: list[object]) -> None:
    said = run(build("switch_test"), "-switches", 2000, "-ahead", 20000, *workers)
    assert count("switches", said) >= 2000
    assert count("events", said) > 10_000
    assert count("errors", said) == 0


def test_an_advance_ends_although_a_worker_writes_faster_than_it_is_read(build: Callable[..., Path]) -> None:
    said = run(build(GATHER[0], "asan"), *GATHER[1:])
    assert count("advances", said) == 50
    assert count("blocks", said) > 50 * 10
    assert count("errors", said) == 0


SWITCHES = ("switch_test", "-switches", 2000, "-ahead", 20000)
STARTS = ("state_test", "-starts", 2000)
LEAVE = """\
    STORE(word_on(word) ? &e->left[word_gen(word) & 1] : &e->left_off, word); /* leave first, */
    uint64_t fresh = make_word(word_gen(g), word_on(g), PT_STATE_UNSET);
    pt_pause();
    CAS(&e->word, &word, fresh);"""
LEAVE_LATE = """\
    uint64_t old = word, fresh = make_word(word_gen(g), word_on(g), PT_STATE_UNSET);
    CAS(&e->word, &word, fresh);
    pt_pause();
    STORE(word_on(old) ? &e->left[word_gen(old) & 1] : &e->left_off, old);"""
RACES = ("race_test", "-traces", 200)
GATHER = ("gather_test", "-advances", 50)
LIST = """\
    pthread_mutex_lock(&registry.lock);
    list_slots();
    pthread_mutex_unlock(&registry.lock);
    for (uint32_t i = 0; i < c.n; i++) {
        struct entry *e = c.slots[i]->entry;
"""
STORE_GEN = "    STORE(&registry.head->gen, make_word(gen, on, 0));\n"
UNITS = ("page_test", "-units", 50_000, "-patience", 5)
BEFORE, PAUSE = "    uint64_t before = now_ns();\n", "    pt_pause();\n"
CLAIM = """\
    uint64_t next = claim_word(seq, to);
    return atomic_compare_exchange_strong_explicit(&p->claim[seq % WINDOW], &offered, next, memory_order_acq_rel,
                                                   memory_order_acquire);
"""
PUT = "    ring_put(p, head, r, sizeof *r);\n    ring_put(p, head + sizeof *r, data, r->len);\n"
PUBLISH = "    atomic_store_explicit(&p->head, head + bytes, memory_order_release);\n"
HEARD = """\
    atomic_exchange(&p->rung, 0);
    page_pause();
    return atomic_load_explicit(&p->head, memory_order_acquire);
"""
BROKEN: dict[str, tuple[tuple[object, ...], str, str, str]] = {
    "published by a plain store": (
        SWITCHES,
        "writer.h",
        "    if (!CAS(&w->entry->word, &old, next)) return false;",
        "    (void)old;\n    STORE(&w->entry->word, next);",
    ),
    "moved first, left second": (SWITCHES, "writer.c", LEAVE, LEAVE_LATE),
    "a clock that is not read again": (
        SWITCHES,
        "writer.c",
        "            t = now_ns();\n            if (LOAD(&w->head->gen) != g) continue;\n",
        "",
    ),
    "a clock that is read after the switch": (
        SWITCHES,
        "coord.c",
        BEFORE + PAUSE + STORE_GEN,
        STORE_GEN + PAUSE + BEFORE,
    ),
    "listed first, stored second": (
        RACES,
        "coord.c",
        STORE_GEN + PAUSE + LIST,
        LIST.partition("    for ")[0] + PAUSE + STORE_GEN + "".join(LIST.partition("    for ")[1:]),
    ),
    "a pipe that is read until it is empty": (
        GATHER,
        "coord.c",
        "drain_standing(c.pipes[i]);",
        "drain(c.pipes[i], SIZE_MAX);",
    ),
    "a state by a plain store": (
        STARTS,
        "writer.c",
        "        if (CAS(&w->entry->word, &word, make_word(word_gen(word), false, state))) return true;",
        "        STORE(&w->entry->word, make_word(word_gen(word), false, state));\n        return true;",
    ),
    "moved first, left second, at a start": (STARTS, "writer.c", LEAVE, LEAVE_LATE),
    "the state that was left is not looked at": (
        STARTS,
        "coord.c",
        "    if (!word) word = LOAD(on ? &e->left[gen & 1] : &e->left_off);",
        "    if (!word) word = LOAD(&e->left[gen & 1]);",
    ),
    "a stop that forgets what runs": (
        STARTS,
        "coord.c",
        "        uint64_t unit = m->gs == GS_RUNNING ? m->g : 0;",
        "        uint64_t unit = 0;",
    ),
    "a claim by a plain store": (
        UNITS,
        "page.h",
        CLAIM,
        """\
    bool free = atomic_load(&p->claim[seq % WINDOW]) == offered;
    page_pause();
    if (free) atomic_store(&p->claim[seq % WINDOW], claim_word(seq, to));
    return free;
""",
    ),
    "published before it is written": (
        UNITS,
        "page.h",
        PUT + "    page_pause();\n" + PUBLISH,
        PUBLISH + "    page_pause();\n" + PUT,
    ),
    "a bell that is not due though there are results": (
        UNITS,
        "page.h",
        "    return atomic_load_explicit(&p->tail, memory_order_acquire) == "
        "atomic_load_explicit(&p->head, memory_order_relaxed);\n",
        "    return atomic_load_explicit(&p->rung, memory_order_acquire) == 0;\n",
    ),
    "a look that ends without hearing": (
        UNITS,
        "page.h",
        HEARD,
        """\
    if (p->rung++ % 2 == 0) p->rung = 0;
    return atomic_load_explicit(&p->head, memory_order_acquire);
""",
    ),
    "taken after the bell was heard": (
        UNITS,
        "page.h",
        HEARD,
        """\
    uint64_t head = atomic_load_explicit(&p->head, memory_order_acquire);
    page_pause();
    atomic_exchange(&p->rung, 0);
    return head;
""",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_core_that_is_broken_on_purpose_is_found(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative controls. Each is a matter of who comes in between, so more than one seed may be needed."""
    need(os.environ.get("CC", "cc").split()[0])
    (target, *words), name, right, wrong = BROKEN[how]
    core = tmp_path / "core"
    part, variable = ("pool", "POOLTRACE_CHANNEL") if name == "page.h" else ("tracer", "POOLTRACE_CORE")
    shutil.copytree(ROOT / "pooltrace" / part / "core", core)
    text = (core / name).read_text()
    assert text.count(right) == 1
    (core / name).write_text(text.replace(right, wrong))
    monkeypatch.setenv(variable, str(core))
    run(FUZZ / "build", target, tmp_path / "broken")
    for seed in range(1, 21):
        chance = () if target == "gather_test" else ("-seed", seed)
        command = map(str, (tmp_path / "broken", *words, *chance))
        done = subprocess.run(list(command), capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode in (0, 1), done.stderr
        if done.returncode:
            assert count("errors", done.stdout) > 0
            return
    pytest.fail("it was not found")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_start_knows_of_each_unit_once(build: Callable[..., Path], seed: int) -> None:
    said = run(build("state_test"), "-starts", 2000, "-seed", seed)
    assert count("units seen", said) > 10_000
    assert count("errors", said) == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_a_unit_is_run_once_and_its_result_arrives(build: Callable[..., Path], seed: int) -> None:
    said = run(build("page_test"), "-units", 200_000, "-seed", seed)
    assert count("taken back", said) > 1000
    assert count("looks", said) > 1000
    assert count("errors", said) == 0


def test_a_trace_of_many_switches_is_in_order(build: Callable[..., Path], tmp_path: Path, judge: Judge) -> None:
    run(build("switch_test"), "-switches", 60, "-ahead", 2000, "-o", tmp_path / "switches.trace")
    assert judge(tmp_path / "switches.trace").generations >= 60


def test_starts_stops_burials_and_ends_at_the_same_time(
    build: Callable[..., Path], tmp_path: Path, judge: Judge
) -> None:
    said = run(build("race_test"), "-traces", 4, "-o", f"{tmp_path}/")
    assert count("errors", said) == count("lost", said) == 0
    for i in range(4):
        judge(tmp_path / f"{i}.trace")


@pytest.mark.parametrize("what", [("-fail", 150), ("-starve", 2)], ids=["coordinator", "threads"])
def test_without_memory_a_file_is_cut_off_or_has_gaps_but_is_not_wrong(
    build: Callable[..., Path], what: tuple[str, int], tmp_path: Path, judge: Judge
) -> None:
    """Threads that cannot hand up a block lose what comes after it, so a unit is never told of only by its start."""
    said = run(build("race_test", "asan"), "-traces", 8, *what, "-seed", SEED, "-o", f"{tmp_path}/")
    assert count("errors", said) == 0
    assert count("allocations failed", said) > 0
    whole = 0
    for i in range(8):
        path = tmp_path / f"{i}.trace"
        try:
            borders = cut.read_borders(path)
        except BadTraceError:
            continue  # not even the first generation
        if borders.fault is None and _in_order(path):
            judge(path)
            whole += 1
            continue
        last = (
            len(borders.generations) - 1 - (borders.header.minor < 26)
        )  # there the last one does not say that it ends
        if last >= 0:
            judge(pieces.write_piece(path, tmp_path / f"{i}-piece.trace", 0, last))
    assert whole >= 8 - count("cut", said) - count("starts refused", said)


def _in_order(path: Path) -> bool:
    try:
        order.check(path)
    except BadTraceError:
        return False
    return True


@pytest.mark.parametrize("target", ["fuzz_merge", "fuzz_gather", "fuzz_parts", "fuzz_raw"])
def test_fuzz_targets_find_nothing_in_a_few_seconds(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(os.environ.get("CC", "cc").split()[0])
    monkeypatch.setenv("FUZZ_KEEP", str(tmp_path))
    said = run(FUZZ / "run", target, 3, SEED)
    assert count("executions", said) > 100
    assert "nothing wrong" in said


def test_the_seeds_are_those_that_their_generator_makes(tmp_path: Path) -> None:
    copy = tmp_path / "fuzz"
    copy.mkdir()
    shutil.copy(FUZZ / "make_seeds.py", copy)
    run(sys.executable, copy / "make_seeds.py")
    for folder in ("fuzz_merge", "fuzz_gather", "fuzz_parts"):
        made = {path.name: path.read_bytes() for path in (copy / "seeds" / folder).iterdir()}
        kept = {path.name: path.read_bytes() for path in (FUZZ / "seeds" / folder).iterdir()}
        assert {name: kept.get(name) for name in made} == made  # there may be more: what was found once
