"""Runs the pool tests of CPython, or of multiprocess, with a class of ours in place of the one they are for.

`python -c 'import suite; suite.main()' SUITE FACE METHOD`: SUITE is `multiprocess.tests` or
`test._test_multiprocessing`, as they are installed, FACE a name in pooltrace. The last line of its output is
{"passed": [...], "failed": {...}, "skipped": {...}, "pools": how many were made}.

The suites make their test classes for one start method at a time, in a module that they are given: this one. What they
know as `multiprocessing` is for them, and for them alone, a module whose `Pool` is ours; no library is changed.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
import unittest
from typing import Any

CASES = ("TestPool", "TestPoolWorkerErrors", "TestPoolWorkerLifetime")  # made for each start method
PLAIN = {"TestInitializers": "test_pool_initializer", "TestPoolNotLeakOnFailure": "test_release_unused_processes"}


def __getattr__(name: str) -> Any:
    """A spawned worker looks for the suite's classes here, where it has to make them first."""
    if name.startswith("With") and "POOLTRACE_SUITE" in os.environ:
        _make_cases(os.environ["POOLTRACE_SUITE"], "spawn")
        return globals()[name]
    raise AttributeError(name)


def _make_cases(name: str, method: str) -> Any:
    suite = importlib.import_module(name)
    suite.install_tests_in_module_dict(globals(), method)
    return suite


class Seen(types.ModuleType):
    """A module, with other things under some of its names."""

    def __init__(self, real: types.ModuleType, **others: object) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(others, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


class Told(unittest.TestResult):
    def __init__(self) -> None:
        super().__init__()
        self.passed: list[str] = []

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self.passed.append(test.id())


def main() -> None:
    name, face, method = sys.argv[1:]
    os.environ["POOLTRACE_SUITE"] = name
    import pooltrace

    suite = _make_cases(name, method)
    real = suite.multiprocessing
    pool = getattr(pooltrace, face)
    made: list[str] = []

    def make(*args: Any, **kwargs: Any) -> Any:
        made.append(face)
        return pool(*args, **kwargs)

    suite.multiprocessing = Seen(real, Pool=make, pool=Seen(real.pool, Pool=make))
    suite.ProcessesMixin.Pool = staticmethod(make)
    real.set_start_method(method, force=True)
    _in_scripts(real.__name__, face)
    tests = unittest.TestSuite()
    for case in CASES:
        tests.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(globals()["WithProcesses" + case]))
    for case, test in PLAIN.items():
        tests.addTest(globals()[case](test))
    result = Told()
    tests.run(result)
    failed = {test.id(): text for test, text in (*result.failures, *result.errors)}
    skipped = {test.id(): why for test, why in result.skipped}
    print("\n" + json.dumps({"passed": result.passed, "failed": failed, "skipped": skipped, "pools": len(made)}))


def _in_scripts(stock: str, face: str) -> None:
    """One test starts a Python of its own, with a script that imports the stock pool."""
    from test.support import script_helper

    run = script_helper.assert_python_ok

    def assert_python_ok(*args: str, **env: Any) -> Any:
        line, ours = f"from {stock} import Pool", f"from pooltrace import {face} as Pool"
        assert any(line in arg for arg in args)
        return run(*(arg.replace(line, ours) for arg in args), **{"__isolated": False, "__cleanenv": False, **env})

    script_helper.assert_python_ok = assert_python_ok
