"""Imports run one way: format <- tracer <- pool, format <- reader <- export, cli on top."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pooltrace.format

PACKAGE = Path(pooltrace.format.__file__).resolve().parent.parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))

MAY_IMPORT = {
    "errors": set[str](),
    "format": {"errors"},
    "tracer": {"errors", "format"},
    "pool": {"errors", "format", "tracer"},
    "reader": {"errors", "format"},
    "export": {"errors", "format", "reader"},
}
"""What of the project each part may import, besides itself. What is not named here (cli, public names) is on top."""

NEVER = {
    "format": {"numpy", "rich", "multiprocess", "multiprocessing", "cloudpickle"},
    "tracer": {"numpy", "rich"},
    "pool": {"numpy", "rich"},
    "reader": {"rich", "multiprocess", "multiprocessing", "cloudpickle"},
    "export": {"rich", "multiprocess", "multiprocessing", "cloudpickle"},
}
"""What of other projects each part may not import, not even late."""


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """All modules that a file imports anywhere in it, by absolute names, those imported for types only included."""
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    part = part_of(path)
    if part not in MAY_IMPORT:
        return
    for name in imports(path):
        words = name.split(".")
        if words[0] == PACKAGE.name:
            assert set(words[1:2]) <= MAY_IMPORT[part] | {part}, f"{part} imports {name}"
        else:
            assert words[0] not in NEVER.get(part, set()), f"{part} imports {name}"


def test_the_parts_are_those_that_are_there() -> None:
    """A part that is renamed would else be free to import anything."""
    on_top = {"cli", "__init__", "__main__", "_version"}
    assert {part_of(path) for path in MODULES} - on_top == set(MAY_IMPORT)


def loaded_after(code: str) -> set[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_of_the_package_is_light() -> None:
    """A worker imports pooltrace to unpickle what it gets: nothing for reading or showing traces may come with it."""
    loaded = loaded_after("import pooltrace")
    assert not loaded & {"numpy", "rich", "lz4", "pooltrace.cli", "pooltrace.reader", "pooltrace.export"}


def test_format_stands_alone() -> None:
    before = loaded_after("import pooltrace")
    loaded = loaded_after("import pooltrace.format.order, pooltrace.format.text") - before
    own = {name for name in loaded if name.startswith("pooltrace.")}
    assert {name.split(".")[1] for name in own} <= {"format", "errors"}
    assert not loaded & {"lz4", "numpy", "rich"}


def test_reading_takes_neither_the_write_side_nor_a_command_with_it() -> None:
    """Beyond what ``import pooltrace`` itself brings."""
    before = loaded_after("import pooltrace")
    loaded = loaded_after("import pooltrace.reader.samples, pooltrace.export.pprof") - before
    own = {name for name in loaded if name.startswith("pooltrace.")}
    assert {name.split(".")[1] for name in own} == {"format", "reader", "export"}
    assert not loaded & {"lz4", "numpy", "rich", "gzip"}


def test_modules_say_their_job_and_stay_small() -> None:
    for path in MODULES:
        source = path.read_text(encoding="utf-8")
        doc = ast.get_docstring(ast.parse(source)) or ""
        assert doc.split("\n")[0].strip(), f"{path} has no first line of a docstring"
        assert source.count("\n") < 500, f"{path} has two jobs"
