"""The tests that come with the stock pools, for ours: with multiprocess as it is installed, and with this Python."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import METHODS

LIMIT = 300.0  # seconds, see conftest
HERE = Path(__file__).resolve().parent
SUITES = {"Pool": ("multiprocess.tests", 28), "StdPool": ("test._test_multiprocessing", 30)}
"""Where they are, and how many there are at least, in any version."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("face", SUITES)
def test_the_tests_of_the_stock_pool(face: str, method: str, tmp_path: Path) -> None:
    name, least = SUITES[face]
    try:
        found = importlib.util.find_spec(name) is not None and importlib.util.find_spec("test.support") is not None
    except ImportError:
        found = False
    if not found:
        text = f"this Python has come without {name}"
        if os.environ.get("POOLTRACE_CI"):
            pytest.fail(text)
        pytest.skip(text)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", "import suite; suite.main()", name, face, method],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{HERE}:{HERE / 'suite_site'}"},
        check=False,
    )
    print(done.stdout, done.stderr, sep="")
    assert done.returncode == 0
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["failed"] == {}
    assert len(told["passed"]) >= least
    assert len(told["skipped"]) <= 3, told["skipped"]
    assert told["pools"] > 10
