"""The golden traces as the tests see them: what each file's head says, and its bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pooltrace.format import text

FOLDER = Path(__file__).resolve().parent / "golden"


class Golden(NamedTuple):
    """One golden trace. ``outcome`` is good, broken, strict or misread; ``says`` is part of the complaint."""

    name: str
    outcome: str
    says: str
    text: str

    def data(self) -> bytes:
        """The trace, be it as broken as it may."""
        return b"".join(text.parse_text(self.text.splitlines(), limits=False))


def _read(path: Path) -> Golden:
    lines = path.read_text(encoding="ascii")
    head = dict(re.findall(r"^# (\w+): (.*)$", lines, re.MULTILINE))
    return Golden(path.stem, head["outcome"], head.get("says", ""), lines)


GOLDENS = [_read(path) for path in sorted(FOLDER.glob("*.txt"))]


def named(name: str) -> Golden:
    """One of them."""
    return next(golden for golden in GOLDENS if golden.name == name)


def one_line(error: Exception) -> None:
    """Asserts that an error says something, in one line."""
    text = str(error)
    assert text
    assert "\n" not in text
