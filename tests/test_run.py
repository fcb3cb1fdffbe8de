"""``pooltrace run`` against plain python: the same output, error output and exit status, program by program."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pooltrace
from pooltrace.cli.__main__ import main
from pooltrace.cli.summary import size
from pooltrace.format import order, raw

PROGRAMS = Path(__file__).parent / "programs"
ENDS: dict[str, Any] = runpy.run_path(str(PROGRAMS / "ends.py"))["ENDS"]
OURS = re.compile(r"\n?^pooltrace: .*", re.MULTILINE | re.DOTALL)
TIMEOUT = 120


class Ended(NamedTuple):
    """How a program ended, with its two outputs; addresses of objects made alike."""

    status: int
    out: str
    err: str


def python(
    *words: str | Path, cwd: Path = PROGRAMS, stdin: str = "", options: Sequence[str] = (), env: Any = None
) -> Ended:
    """Run python in ``cwd``. Its outputs are files: workers that outlive it cannot hold this up."""
    here = {"PYTHONPATH": str(Path(pooltrace.__file__).parent.parent), "PYTHONHASHSEED": "0"}
    with open(os.memfd_create("out"), "w+") as out, open(os.memfd_create("err"), "w+") as err:
        process = subprocess.run(
            [sys.executable, *options, *map(str, words)],
            cwd=cwd,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | here | (env or {}),
            input=stdin,
            text=True,
            stdout=out,
            stderr=err,
            timeout=TIMEOUT,
        )
        out.seek(0)
        err.seek(0)
        return Ended(process.returncode, *(re.sub(r"0x[0-9a-f]+", "0x", file.read()) for file in (out, err)))


def traced(trace: Path, *words: str | Path, **how: Any) -> Ended:
    """The same under ``pooltrace run``."""
    return python("-m", "pooltrace", "run", "-o", trace, *words, **how)


def without_summary(ended: Ended) -> Ended:
    """What is left without what we say at the end."""
    return ended._replace(err=OURS.sub("", ended.err))


@pytest.fixture(autouse=True)
def arenas(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where arenas lie in this test: those that a killed program leaves go away with it."""
    directory = tmp_path_factory.mktemp("arenas")
    monkeypatch.setenv("POOLTRACE_DIR", str(directory))
    return directory


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "a.trace"


def same(trace: Path, *words: str | Path, **how: Any) -> Ended:
    """Asserts that there is no difference between plain python and us; returns how it ended under us."""
    expected = python(*words, **how)
    ended = traced(trace, *words, **how)
    assert without_summary(ended) == expected
    return ended


# How it begins


def test_script_sees_what_it_would_see(trace: Path) -> None:
    assert same(trace, "where.py", "-o", "x", "--", "--header", stdin="text\n").status == 0


@pytest.mark.parametrize("options", [["-O"], ["-B", "-Wdefault"], ["-X", "utf8"], ["-I"]])
def test_options_of_python(trace: Path, options: list[str], tmp_path: Path) -> None:
    if options == ["-I"] and python("-c", "import pooltrace", options=options, cwd=tmp_path).status:
        pytest.skip("an isolated python finds pooltrace only where it is installed")
    same(trace, "where.py", options=options)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="-P is new in Python 3.11")
def test_safe_path(trace: Path) -> None:
    same(trace, "where.py", options=["-P"])


def test_script_by_other_paths(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to(PROGRAMS / "where.py")
    for script in (
        "./where.py",
        ".//../programs/./where.py",
        PROGRAMS / "where.py",
        tmp_path / "link.py",
        f"../{PROGRAMS.name}/where.py",
    ):
        same(trace, script, "a")


def test_module_package_directory_and_zip(trace: Path, tmp_path: Path) -> None:
    packed = tmp_path / "app.pyz"
    with zipfile.ZipFile(packed, "w") as file:
        for name in ("__main__.py", "helper.py"):
            file.write(PROGRAMS / "app" / name, name)
    for words in (
        ["-m", "where", "x", "-m"],
        ["-m", "app", "3"],
        ["-m", "app.__main__", "0"],
        ["-mapp", "-m", "-mx", "-o", "1"],
        ["app", "4"],
        [packed, "5"],
    ):
        same(trace, *words)
    assert same(trace, "-m", "app", "6").status == 6


def test_module_that_is_not_there_in_a_package(trace: Path) -> None:
    ended = same(trace, "-m", "app.nowhere")
    assert ended.status == 1
    assert "No module named app.nowhere" in ended.err


def test_compiled_script(trace: Path, tmp_path: Path) -> None:
    compiled = tmp_path / "where.pyc"
    assert python("-c", f"import py_compile; py_compile.compile('where.py', {str(compiled)!r})").status == 0
    same(trace, compiled, "a")


def test_syntax_error_is_shown_as_python_shows_it(trace: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    for text in ("x = (\n", "def f(:\n    pass\n", "class A:\nx = 1\n", "return\n"):
        broken.write_text(text)
        assert same(trace, broken).status == 1
        assert not trace.exists()


NO_TEXTS = [
    b"# coding: nonsense\n",
    b"# coding: utf-16\nx = 1\n",
    b"# coding: ascii\nx = '\xc3\xa9'\n",
    b"\xef\xbb\xbf# coding: latin-1\n",
    b"x = 1\ny = '\xe9'\n",
    b"x = (\n\xff",
    *([b"x = 1\nif x:\n\0\n"] if sys.version_info >= (3, 11, 4) else []),  # before, it ended the script
]


@pytest.mark.parametrize("text", NO_TEXTS)
def test_what_is_no_text_is_said_as_python_says_it(trace: Path, tmp_path: Path, text: bytes) -> None:
    broken = tmp_path / "broken.py"
    broken.write_bytes(text)
    assert same(trace, broken, options=["-X", "utf8", "-B"]).status == 1
    assert not trace.exists()


def test_a_script_from_a_pipe_that_is_no_text(trace: Path) -> None:
    command = "printf '# coding: nonsense\\n' | exec \"$0\" -m pooltrace run -o /dev/null /dev/stdin"
    env = {**os.environ, "PYTHONPATH": str(Path(pooltrace.__file__).parent.parent)}
    ended = subprocess.run(["sh", "-c", command, sys.executable], env=env, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "SyntaxError: unknown encoding: nonsense" in ended.stderr


# How it ends


@pytest.mark.parametrize("end", ENDS)
def test_end(trace: Path, end: str, arenas: Path, judge: Callable[[Path], object]) -> None:
    ended = same(trace, "ends.py", end)
    cut_off = end in ("kill", "os-exit", "atexit-exits")
    silent = cut_off or end.startswith("closed")
    assert ("pooltrace: wrote " in ended.err) == (not silent)
    assert ("pooltrace: no multiprocessing.Pool was traced" in ended.err) == (not silent)
    if cut_off:
        with pytest.raises(raw.CutTraceError, match="cut off"):
            order.check(trace)
    else:
        judge(trace)
        assert not list(arenas.iterdir())


@pytest.mark.parametrize("end", ["return", "error", "interrupt", "exit-text", "exit-3", "hook"])
def test_end_of_a_module(trace: Path, end: str) -> None:
    same(trace, "-m", "ends", end)


def test_the_command_is_the_same_as_the_module(trace: Path) -> None:
    command = "import sys; from pooltrace.cli.__main__ import main; sys.exit(main())"
    for end in ("exit-3", "error", "interrupt"):
        ended = python("-c", command, "run", "-o", trace, "ends.py", end)
        assert without_summary(ended) == python("ends.py", end)


def test_statuses_are_those_of_python() -> None:
    statuses = {end: python("ends.py", end).status for end in ("exit-text", "exit-3", "interrupt", "terminate")}
    assert statuses == {"exit-text": 1, "exit-3": 3, "interrupt": -signal.SIGINT, "terminate": -signal.SIGTERM}


# Pools

METHODS = ["fork", "spawn", "forkserver"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["map", "who", "exit"])
def test_pool(trace: Path, method: str, what: str, judge: Callable[[Path], object]) -> None:
    ended = same(trace, "pools.py", method, what)
    assert "2 slots busy" in ended.err
    judge(trace)


@pytest.mark.parametrize("method", METHODS)
def test_pool_of_a_program_that_is_terminated(
    trace: Path, method: str, arenas: Path, judge: Callable[[Path], object]
) -> None:
    plain, ended = python("pools.py", method, "sigterm"), traced(trace, "pools.py", method, "sigterm")
    assert (ended.status, ended.out) == (plain.status, plain.out) == (-signal.SIGTERM, "3\n")
    assert "2 slots busy" in ended.err
    assert without_summary(ended).err == ""  # the stock pool may leave semaphores, and multiprocessing says so
    assert not list(arenas.iterdir())
    judge(trace)


@pytest.mark.parametrize("words", [["-m", "pools"], ["./pools.py"]])
def test_pool_of_a_module(trace: Path, words: list[str]) -> None:
    assert "2 slots busy" in same(trace, *words, "spawn", "map").err


def test_pool_that_is_left_open(trace: Path, arenas: Path, judge: Callable[[Path], object]) -> None:
    ended = same(trace, "pools.py", "fork", "exit-order")
    assert "thread [1, 2]" in ended.out
    assert "2 slots busy" in ended.err
    assert not list(arenas.iterdir())
    judge(trace)


def test_warnings_as_errors(trace: Path) -> None:
    assert "2 slots busy" in same(trace, "pools.py", "fork", "map", options=["-W", "error"]).err


def test_exception_of_a_worker(trace: Path) -> None:
    plain, ended = python("pools.py", "fork", "fail"), traced(trace, "pools.py", "fork", "fail")
    assert (ended.status, ended.out) == (plain.status, plain.out)
    shown = without_summary(ended).err.splitlines()
    assert shown[-1] == plain.err.splitlines()[-1] == "LookupError: no 7"
    assert not [line for line in shown if "pooltrace/cli" in line]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_a_signal_ends_a_trace_with_units_that_run(
    trace: Path, signum: signal.Signals, arenas: Path, judge: Callable[[Path], object]
) -> None:
    ended = traced(trace, "busy.py", str(int(signum)))
    assert ended.status == -signum
    assert "2 slots busy" in ended.err
    assert "1 job, 2 units, 2 items" in ended.err  # and they are no overhead
    assert re.search(r"\n  __main__.wait_for_ever +2 ", ended.err)
    assert not list(arenas.iterdir())
    judge(trace)


@pytest.mark.parametrize("name", ["a.trace", "a.trace.lz4"])
def test_what_a_kill_leaves(tmp_path: Path, name: str, arenas: Path) -> None:
    """All but the last part, and the arena, from which that can be read."""
    trace = tmp_path / name
    ended = traced(trace, "traces.py", "kill", tmp_path / "own.trace")
    assert (ended.status, ended.out) == (-signal.SIGKILL, "[1, 2]\n")
    assert len(list(arenas.iterdir())) == 1
    items = 0
    with contextlib.suppress(raw.CutTraceError):  # not if it was killed between two parts
        for event in order.read_events(trace):
            items += event.name == "UserRegionEnd" and event.string("name") == "builtins.abs"
    assert items == 2


# Programs that trace themselves


@pytest.mark.parametrize("what", ["with", "start", "open"])
def test_a_program_that_traces_itself_runs_unchanged(
    trace: Path, tmp_path: Path, what: str, judge: Callable[[Path], object]
) -> None:
    own = tmp_path / "own.trace"
    expected = python("traces.py", what, own)
    assert expected.status == 0
    own.unlink()
    ended = traced(trace, "traces.py", what, own)
    assert without_summary(ended) == expected
    assert ended.err.count(f"what the program itself traces goes into {trace}\n") == 1
    assert "slots busy" in ended.err
    assert not own.exists()
    judge(trace)


def test_misuse_by_a_program_that_traces_itself_is_as_without_us(trace: Path, tmp_path: Path) -> None:
    ended = traced(trace, "traces.py", "misuse", tmp_path / "own.trace")
    assert ended.out == python("traces.py", "misuse", tmp_path / "own.trace").out
    assert ended.out.splitlines() == [
        "no trace is on",
        "done None",
        "a trace is on already: stop it first",
        "done None",
    ]


# Our own options and mistakes


@pytest.mark.parametrize("header", ["1.22", "1.23", "1.25", "1.26"])
def test_header_period_and_compression(tmp_path: Path, header: str, judge: Callable[[Path], object]) -> None:
    packed = tmp_path / "a.trace.lz4"
    ended = traced(packed, "--header", header, "--period", "0.01", "pools.py", "fork", "map")
    assert ended.status == 0
    assert "lz4 -d " in ended.err
    assert packed.read_bytes()[:4] == b"\x04\x22\x4d\x18"
    assert f" {packed} ({size(packed.stat().st_size)}); " in ended.err
    judge(packed)


def test_default_name(tmp_path: Path) -> None:
    ended = python("-m", "pooltrace", "run", PROGRAMS / "where.py", cwd=tmp_path)
    (file,) = tmp_path.iterdir()
    assert re.fullmatch(r"pooltrace-where-\d+\.trace", file.name)
    assert f"pooltrace: wrote {file.name} " in ended.err


def test_name_is_whole_once_the_program_is_elsewhere(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    ended = python("-m", "pooltrace", "run", "-o", "a.trace", PROGRAMS / "ends.py", "chdir", cwd=work)
    assert f"pooltrace: wrote {work / 'a.trace'} " in ended.err
    assert (work / "a.trace").exists()


MISUSES = [
    ([], "no program: name a script"),
    (["-m"], "no program: name a script"),
    (["nowhere.py"], "can't open file 'nowhere.py': No such file or directory"),
    (["golden"], "can't find a __main__ module in 'golden'"),
    (["-"], "put it into a file"),
    (["-m", "nowhere_at_all"], "no module named 'nowhere_at_all'"),
    (["--header", "1.9", "where.py"], "invalid choice: '1.9'"),
    (["--period", "-1", "where.py"], "'-1' is not a number of seconds"),
    (["--period", "nan", "where.py"], "'nan' is not a number of seconds"),
    (["--nonsense", "where.py"], "--nonsense"),
    (["-o", "/dev/null/x", "where.py"], "cannot write the trace to '/dev/null/x': Not a directory"),
    (["-o", ".", "where.py"], "'.' is a directory; name a file in it after -o"),
    (["-o", "new/", "where.py"], "'new/' is a directory; name a file in it after -o"),
    (["-o", "none/a", "where.py"], "cannot write the trace to 'none/a': No such file or directory; choose another"),
    (["-o", "/dev/full", "where.py"], "cannot write the trace to '/dev/full': No space left on device; choose another"),
    (["-o", "/dev/stdout", "where.py"], "'/dev/stdout' is the program's standard output; name another file after -o"),
    (["-o", "/dev/fd/2", "where.py"], "'/dev/fd/2' is the program's standard error; name another file after -o"),
    (["-o", "where.py", "where.py"], "'where.py' is the program; name another file after -o"),
    (["-mnowhere_at_all", "where.py"], "no module named 'nowhere_at_all'"),
    (["-o", "x", "--period=1", "-mnowhere_at_all"], "no module named 'nowhere_at_all'"),
    (["-o", "x", "\x1b[31m.py"], "\\x1b[31m.py"),
]


@pytest.mark.parametrize(("words", "said"), MISUSES)
def test_misuse_is_one_line_and_nothing_runs(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    shutil.copy(PROGRAMS / "where.py", tmp_path)
    before = sorted(tmp_path.iterdir())
    ended = python("-m", "pooltrace", "run", *words, cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert said in ended.err
    assert ended.err.startswith("pooltrace run: ")
    assert ended.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_no_place_that_is_taken(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pooltrace", "run", "-o", "/dev/null", PROGRAMS / "where.py"]
    assert subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path).returncode == 0


def test_failure_to_write_changes_nothing_for_the_job(tmp_path: Path) -> None:
    plain = python("pools.py", "fork", "map")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def read_the_header() -> None:
        with open(pipe, "rb", buffering=0) as file:
            file.read(16)

    reader = threading.Thread(target=read_the_header, daemon=True)
    reader.start()
    ended = traced(pipe, "pools.py", "fork", "map")
    reader.join(TIMEOUT)
    assert without_summary(ended) == plain
    assert f"pooltrace: the trace in {pipe} is not complete: Broken pipe; choose another place with -o\n" in ended.err
    assert "nothing could be recorded after" in ended.err
    assert "wrote" not in ended.err
    assert "Traceback" not in ended.err


def test_a_file_that_is_there_survives_what_never_starts(tmp_path: Path) -> None:
    trace = tmp_path / "a.trace"
    trace.write_text("yesterday's")
    for words, env in ((["nowhere.py"], {}), (["where.py"], {"POOLTRACE_DIR": str(tmp_path / "nowhere")})):
        assert traced(trace, *words, env=env).status == 2
        assert trace.read_text() == "yesterday's"


def test_no_working_directory_is_one_line(tmp_path: Path) -> None:
    command = 'mkdir gone; cd gone; rmdir ../gone; exec "$0" -m pooltrace run where.py'
    env = {**os.environ, "PYTHONPATH": str(Path(pooltrace.__file__).parent.parent)}
    words = ["sh", "-c", command, sys.executable]
    ended = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "the working directory is not there" in ended.stderr


def test_arena_in_a_relative_place(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "arenas").mkdir()
    env = {"POOLTRACE_DIR": os.path.relpath(tmp_path / "arenas", PROGRAMS)}
    ended = traced(trace, "pools.py", "fork", "elsewhere", env=env)
    assert "2 slots busy" in ended.err
    assert "20 items" in ended.err
    assert not list((tmp_path / "arenas").iterdir())


def test_no_place_for_the_arena_is_one_line(trace: Path, tmp_path: Path) -> None:
    ended = traced(trace, "where.py", env={"POOLTRACE_DIR": str(tmp_path / "nowhere")})
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "set POOLTRACE_DIR to a writable directory" in ended.err


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["run", "--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert pooltrace.__version__ in shown if words == ["--version"] else "usage: pooltrace" in shown


@pytest.mark.parametrize("words", [[], ["nonsense"], ["run", "--nonsense"]])
def test_misuse_of_the_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
