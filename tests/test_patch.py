"""install(): an unchanged program's pools become ours, whenever and however it gets at them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

START = """
    import sys
    from pooltrace.pool import patch
"""


def run(code: str) -> str:
    """Runs a program of its own, since what it checks is import order; returns what it prints."""
    text = textwrap.dedent(START) + textwrap.dedent(code)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=env, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


KINDS = """
    import warnings
    warnings.simplefilter("ignore", ResourceWarning)
    def kinds(*pools):
        for pool in pools:
            print(type(pool).__name__, type(pool).__module__, end=" ")
            with pool:
                assert pool.map(abs, [-1]) == [1]
"""


@pytest.mark.parametrize("first", ["import multiprocessing, multiprocessing.pool", "import multiprocessing", ""])
def test_the_standard_family(first: str) -> None:
    out = run(
        f"""
    {first}
    patch.install()
    patch.install()
    import multiprocessing, multiprocessing.pool
    from multiprocessing import Pool
    {KINDS}
    kinds(multiprocessing.Pool(1), Pool(1), multiprocessing.pool.Pool(1), multiprocessing.get_context("fork").Pool(1),
          multiprocessing.get_context("spawn").Pool(1), multiprocessing.get_context("forkserver").Pool(1))
    assert "multiprocess" not in sys.modules and "dill" not in sys.modules and "numpy" not in sys.modules
    """
    )
    assert out.split() == ["StdPool", "pooltrace.pool.pool"] * 6


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import multiprocess", ""),
        ("import multiprocess.pool", ""),
        ("", "import multiprocess"),
        ("", "import multiprocess.pool"),
        ("", "from pooltrace.pool.pool import Pool"),
        ("from pooltrace.pool.pool import Pool", ""),
    ],
)
def test_multiprocess_before_and_after(before: str, after: str) -> None:
    out = run(
        f"""
    {before}
    patch.install()
    {after}
    import multiprocess, multiprocess.pool
    {KINDS}
    kinds(multiprocess.Pool(1), multiprocess.pool.Pool(1), multiprocess.get_context("fork").Pool(1))
    import multiprocessing.pool
    kinds(multiprocessing.Pool(1))
    """
    )
    assert out.split() == ["Pool", "pooltrace.pool.multi"] * 3 + ["StdPool", "pooltrace.pool.pool"]


def test_thread_pools_stay() -> None:
    out = run(
        f"""
    patch.install()
    import multiprocessing.pool, multiprocess.pool, multiprocess.dummy
    {KINDS}
    kinds(multiprocessing.pool.ThreadPool(1), multiprocess.pool.ThreadPool(1), multiprocess.dummy.Pool(1))
    """
    )
    assert out.split() == [
        *("ThreadPool", "multiprocessing.pool"),
        *("ThreadPool", "multiprocess.pool"),
        *("ThreadPool", "multiprocess.pool"),
    ]


def test_subclasses() -> None:
    """One that only adds is on our engine; one that works on the stock pool's insides is on the stock pool."""
    run(
        f"""
    import multiprocessing.pool
    stock = multiprocessing.pool.Pool
    patch.install()
    class Mine(multiprocessing.pool.Pool):
        def double(self, it):
            return [2 * x for x in self.map(abs, it)]
    class Inner(multiprocessing.pool.Pool):
        def _setup_queues(self):
            super()._setup_queues()
            self.seen = self._inqueue
    class Further(Inner):
        pass
    {KINDS}
    with Mine(1) as pool:
        assert pool.double([-1]) == [2] and hasattr(pool, "_engine")
        assert isinstance(pool, stock) and isinstance(pool, multiprocessing.pool.Pool)
    for cls in (Inner, Further):
        with cls(1) as pool:
            assert pool.map(abs, [-1]) == [1] and pool.seen is pool._inqueue and not hasattr(pool, "_engine")
            assert isinstance(pool, stock)
    """
    )


def test_uninstall_puts_the_stock_back() -> None:
    run(
        """
    import multiprocessing.pool
    stock, finders = multiprocessing.pool.Pool, list(sys.meta_path)
    patch.install()
    import multiprocess.pool
    assert multiprocessing.pool.Pool is not stock
    assert multiprocess.pool.Pool.__module__ == "pooltrace.pool.multi"
    patch.uninstall()
    patch.uninstall()
    assert multiprocessing.pool.Pool is stock
    assert multiprocess.pool.Pool.__module__ == "multiprocess.pool"
    assert sys.meta_path == finders
    """
    )
