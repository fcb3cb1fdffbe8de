"""pooltrace-batch: one trace a run, the newest kept; the job is as it would be without us."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_run import PROGRAMS, python, without_summary

import pooltrace
from pooltrace.cli import batch

SCRIPT = Path(__file__).parent.parent / "scripts" / "pooltrace-batch"
CALL = "import sys; from pooltrace.cli.batch import main; sys.exit(main())"  # what the script does
Capture = pytest.CaptureFixture[str]
WAITS = """
import sys, multiprocessing
def work(x):
    return x
def wait(paths):
    with open(paths[0], "wb") as ready:
        ready.write(b"1")
    open(paths[1], "rb")
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool:
        pool.map(work, range(10))
        pool.map(wait, [sys.argv[1:]])
"""


def test_the_script_calls_what_is_tested_here() -> None:
    assert "from pooltrace.cli.batch import main" in SCRIPT.read_text()
    assert "sys.exit(main())" in SCRIPT.read_text()
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.parametrize(
    "words", [["ends.py", "exit-3"], ["ends.py", "error"], ["-m", "app", "x", "--keep", "1"], ["-mapp", "x"]]
)
def test_the_job_is_as_without_us(words: list[str], tmp_path: Path, judge: Callable[[Path], object]) -> None:
    ended = python("-c", CALL, "--dir", tmp_path / "new", "--", *words)
    assert without_summary(ended) == python(*words)
    (trace,) = (tmp_path / "new").iterdir()
    job = "app" if words[0].startswith("-m") else "ends"
    assert re.fullmatch(job + r"-\d{8}T\d{6}Z-\d+\.trace\.lz4", trace.name)
    judge(trace)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    now = int(time.time())
    gone = subprocess.Popen(["true"])
    gone.wait()
    old = [batch.trace_name("ends", now - 100 + i, gone.pid) for i in range(5)]
    running = batch.trace_name("ends", now - 1000, os.getpid())
    others = [batch.trace_name("ends-2", now - 2000, gone.pid), "ends-notes.txt", "ends-1.trace.lz4"]
    for name in [*old, *others, running]:
        (tmp_path / name).touch()
    assert python("-c", CALL, "--dir", tmp_path, "--keep", 3, "--", "ends.py", "return").status == 0
    names = {path.name for path in tmp_path.iterdir()}
    new = names - {*old, *others, running}
    assert len(new) == 1
    assert names == {*new, *old[3:], *others, running}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGINT])
def test_a_job_that_is_stopped_leaves_a_whole_trace(
    signum: signal.Signals, tmp_path: Path, judge: Callable[[Path], object]
) -> None:
    program, ready, never = tmp_path / "job.py", tmp_path / "ready", tmp_path / "never"
    program.write_text(WAITS)
    os.mkfifo(ready)
    os.mkfifo(never)
    words = [sys.executable, "-c", CALL, "--dir", str(tmp_path / "traces"), "--", str(program), str(ready), str(never)]
    env = {**os.environ, "PYTHONPATH": str(Path(pooltrace.__file__).parent.parent)}
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) as job:
        assert ready.read_bytes() == b"1"
        job.send_signal(signum)
        _, err = job.communicate()
    assert job.returncode == -signum
    assert "2 jobs" in err
    (trace,) = (tmp_path / "traces").iterdir()
    judge(trace)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--", "x.py"], "--dir"),
        (["--dir", "{tmp}"], "no job: name a script"),
        (["--dir", "{tmp}", "--", "-m"], "no job: name a script"),
        (["--dir", "{tmp}", "--", "-c", "pass"], "no job but an option, '-c'"),
        (["--dir", "{tmp}", "--", "python3", "x.py"], "without 'python3'"),
        (["--dir", "{tmp}", "--keep", "0", "--", "x.py"], "write 1 or more"),
        (["--dir", "{tmp}/file/x", "--", "x.py"], "Not a directory; name another directory"),
        (["--dir", "{tmp}", "--", "none.py"], "can't open file 'none.py'"),
    ],
)
def test_misuse_is_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = python("-c", CALL, *(word.format(tmp=tmp_path) for word in words), cwd=PROGRAMS)
    assert (ended.status, ended.out) == (2, "")
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert os.listdir(tmp_path) == ["file"]
