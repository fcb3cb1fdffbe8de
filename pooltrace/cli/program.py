"""Runs somebody's program in this process as python itself would have.

Knows nothing of traces. What python does at its start is in CPython's ``Modules/main.c`` (which of script, directory,
zip file and module it is, ``sys.path[0]``), ``Python/pythonrun.c`` (a script's globals) and ``runpy`` (the others).
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import io
import marshal
import os
import pkgutil
import runpy
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from typing import Any, Final

from pooltrace.errors import MisuseError

_PYC_HEADER_BYTES: Final = 16

_replaced: list[types.ModuleType | None] = []
"""The ``__main__`` that started us: its globals are those of frames that still run, so it must not go away."""


@dataclass(frozen=True)
class Program:
    """What is to run: a script (``code`` is there) or a module that runpy finds (``module``)."""

    name: str
    """Short name, for the name of the trace."""
    argv: list[str]
    """``sys.argv`` of the program."""
    path0: str
    """What python puts at the head of ``sys.path``."""
    safe: bool
    """Whether ``path0`` is left out when python was started with a safe path (-P, -I)."""
    filename: str = ""
    """The script, directory or zip file; none of a module."""
    code: types.CodeType | None = None
    module: str = "__main__"


def find(script: str, args: Sequence[str]) -> Program:
    """The program of ``python script args...``: a file, or a directory or zip file with a ``__main__`` module.

    Raises MisuseError if there is none; a SyntaxError of the script is raised as python would show it.
    """
    if script == "-":
        raise MisuseError("a program cannot come from standard input; put it into a file")
    filename = _absolute(script)
    name = os.path.splitext(os.path.basename(filename.rstrip(os.sep)))[0]
    argv = [script, *args]
    importer: Any = pkgutil.get_importer(filename)
    if importer is not None:
        if importer.find_spec("__main__") is None:
            raise MisuseError(f"can't find a __main__ module in {script!r}")
        return Program(name, argv, path0=filename, safe=False, filename=filename)
    try:
        with io.open_code(filename) as file:
            data = file.read()
    except OSError as error:
        raise MisuseError(f"can't open file {script!r}: {error.strerror}") from None
    path0 = os.path.dirname(os.path.realpath(filename))
    return Program(name, argv, path0, safe=True, filename=filename, code=_compile(data, filename))


def find_module(module: str, args: Sequence[str]) -> Program:
    """The program of ``python -m module args...``. Raises MisuseError if its top-level module is nowhere.

    The rest is found when it runs: finding a submodule imports its package, which is the program's own code.
    """
    path0 = os.getcwd()
    program = Program(module.rpartition(".")[2], ["-m", *args], path0, safe=True, module=module)
    _set_path0(program)
    top = module.partition(".")[0]
    try:
        found = importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise MisuseError(f"no module named {top!r}")
    return program


def execute(program: Program) -> None:
    """Run the program as ``__main__``. Whatever it raises is raised, and python will show it without our frames."""
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    _replaced.append(sys.modules.get("__main__"))
    sys.modules["__main__"] = main
    if (
        "__mp_main__" in sys.modules
    ):  # set when multiprocessing is imported; what spawned workers send back is found there
        sys.modules["__mp_main__"] = main
    sys.argv = program.argv
    _set_path0(program)
    if program.code is not None:
        compiled = program.filename.endswith(".pyc")
        main.__dict__["__loader__"] = (SourcelessFileLoader if compiled else SourceFileLoader)(
            "__main__", program.filename
        )
        main.__dict__.update(__file__=program.filename, __cached__=None)
    run_module: Callable[[str, bool], object] = runpy._run_module_as_main  # type: ignore[attr-defined]  # as main.c does
    try:
        if program.code is not None:
            try:
                exec(program.code, main.__dict__)
            finally:
                _flush()
        else:
            run_module(program.module, program.module != "__main__")
    except SystemExit:
        raise
    except BaseException as error:
        _show_without_us(error, frames=1)
        raise


def _flush() -> None:
    """What CPython does when a script (but not a module) has run, before exit handlers and before it shows an error."""
    for stream in (getattr(sys, "stderr", None), getattr(sys, "stdout", None)):
        with contextlib.suppress(Exception):
            stream.flush()  # type: ignore[union-attr]


def _absolute(path: str) -> str:
    """As CPython makes the name of a script absolute on POSIX: nothing in it is normalised."""
    if path == "." and sys.version_info >= (3, 11):
        return os.getcwd()
    return path if os.path.isabs(path) else os.getcwd() + os.sep + path


def _compile(data: bytes, filename: str) -> types.CodeType:
    """The code of a script, which may be a .pyc file whatever its name is."""
    if data[: len(importlib.util.MAGIC_NUMBER)] == importlib.util.MAGIC_NUMBER:
        code: types.CodeType = marshal.loads(data[_PYC_HEADER_BYTES:])
        return code
    try:
        code = compile(data, filename, "exec", dont_inherit=True)
    except Exception as error:
        if isinstance(error, SyntaxError) and not _is_text(data):
            _leave_to_python(filename)
        _show_without_us(error, frames=None)
        raise
    return code


def _is_text(data: bytes) -> bool:
    import tokenize

    try:
        data.decode(tokenize.detect_encoding(io.BytesIO(data).readline)[0])
    except (SyntaxError, ValueError, LookupError):
        return False
    return b"\0" not in data


def _leave_to_python(filename: str) -> None:
    """Become the python that says why it cannot read this script: it words that otherwise than compile().

    Returns where that is not possible.
    """
    import subprocess

    if sys.executable and os.path.isfile(filename):
        options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            os.execv(sys.executable, [sys.executable, *options, filename])


def _set_path0(program: Program) -> None:
    """Put ``sys.path[0]`` right: what is there now is where our own command lies (or the working directory)."""
    if sys.version_info >= (3, 11):
        added = not sys.flags.safe_path
    else:
        added = not sys.flags.isolated
    if added:
        sys.path[0] = program.path0
    elif not program.safe:
        sys.path.insert(0, program.path0)


def _show_without_us(error: BaseException, frames: int | None) -> None:
    """Have the interpreter show this exception without so many outermost frames of its traceback (None: without any).

    The exception is then left to end the process: so its status, ``sys.last_value``, an excepthook of the program and
    the end by SIGINT after a KeyboardInterrupt are all python's own doing.
    """
    traceback = error.__traceback__ if frames is not None else None
    for _ in range(frames or 0):
        traceback = traceback.tb_next if traceback is not None else None
    hook = sys.excepthook

    def once(kind: type[BaseException], value: BaseException, shown: types.TracebackType | None) -> None:
        sys.excepthook = hook
        if value is error:
            value.__traceback__ = sys.last_traceback = shown = traceback
        hook(kind, value, shown)

    sys.excepthook = once
