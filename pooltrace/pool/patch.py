"""install(): the pools of multiprocessing and multiprocess become ours, for a program that knows nothing of us.

`multiprocessing.Pool` and every context's `Pool` look their class up in `multiprocessing.pool` when they are called, so
that one attribute is all that has to change. multiprocess is changed when the program imports it, if it ever does.
ThreadPool stays as it is.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

_MODULE = "multiprocess.pool"
_finder: _Finder | None = None  # installed while patched
_stock: dict[str, Any] = {}  # by module name: what stood there before


def install() -> None:
    """Makes the pools of both families ours. A second call does nothing."""
    global _finder
    if _finder is not None:
        return
    from pooltrace.pool.pool import StdPool

    _finder = _Finder()
    _replace(sys.modules["multiprocessing.pool"], StdPool)
    sys.meta_path.insert(0, _finder)
    if _MODULE in sys.modules:
        _patch_multiprocess()


def uninstall() -> None:
    """Puts the stock pools back. Pools that were made meanwhile stay what they are."""
    global _finder
    if _finder is None:
        return
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    _finder = None
    for name, pool in _stock.items():
        sys.modules[name].__dict__["Pool"] = pool
    _stock.clear()


def face_ready(pool: type[Any]) -> None:
    """The face over multiprocess has just been made; if the import hook asked for it, this completes the patch."""
    if _finder is not None and _MODULE not in _stock:
        _replace(sys.modules[_MODULE], pool)


def _replace(module: ModuleType, pool: type[Any]) -> None:
    _stock.setdefault(module.__name__, module.__dict__["Pool"])
    module.__dict__["Pool"] = pool


def _patch_multiprocess() -> None:
    face = importlib.import_module("pooltrace.pool.multi")
    pool = getattr(face, "Pool", None)
    if pool is not None:  # else that module is being imported, and calls face_ready at its end
        face_ready(pool)


class _Finder(MetaPathFinder):
    """Finds multiprocess.pool as everybody does, and changes it once it has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # what the module shows of itself is as without us
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        if _finder is not None:
            _patch_multiprocess()
