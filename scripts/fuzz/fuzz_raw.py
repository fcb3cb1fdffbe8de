"""Fuzz target: the format package, reading whatever a file may contain.

    python scripts/fuzz/fuzz_raw.py PATH...                                  runs each input once
    python scripts/fuzz/fuzz_raw.py --seconds S [--seed N] [--keep DIR]      mutates the golden traces
    python scripts/fuzz/fuzz_raw.py --atheris [options of libFuzzer]         the same inputs, chosen by coverage

What must hold: reading raises BadTraceError or nothing; the text form says the same again; in a trace that is in order
it is known who has what; a piece that is cut out of it is in order. Some inputs are small traces by chance
(by_chance.py). Of the others half are made of bytes, half of numbers and events (raw.py takes the file apart and puts
it together again), since few files that are broken at random get past their first batch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import by_chance

from pooltrace.errors import BadTraceError
from pooltrace.format import cut, order, raw, spec, text
from pooltrace.format.raw import Batch, RawEvent
from pooltrace.format.spec import GoStatus, ProcStatus
from pooltrace.format.states import State

GOLDEN: Final = Path(__file__).resolve().parents[2] / "tests" / "golden"
HANG_SECONDS: Final = 30  # of the processor's time: on a busy machine waiting is no hang,
STUCK_SECONDS: Final = 600  # unless it is this long
KNOWN: Final = (
    # Rules for the first generation only, which that of the piece was not in the whole:
    "time axis",
    # No writer does this: a generation that says twice that such a range goes on, or not at all, and a head cannot say
    # it, since once is all that is allowed.
    r"(MarkAssist|Sweep)(Active|End) at \d+ ns: (no )?such (a )?range is under way",
    "STWEnd",  # a range over a border: Go's reader fails there, our tracer never writes one (invariant 4)
)
"""Patterns: why a piece may be out of order though the whole is not."""
_BUSY: Final = {"G": (GoStatus.RUNNING, GoStatus.SYSCALL), "P": (ProcStatus.RUNNING,)}
_VALUES: Final = (*range(6), 127, 128, 1000, 1 << 16, (1 << 31) - 1, 1 << 32, 1 << 53, 1 << 62, 1 << 63, (1 << 64) - 1)


class Wrong(Exception):
    """A rule of ours is broken, though nothing was raised."""


# --- one input ------------------------------------------------------------------------------------


def read_raw(data: bytes) -> None:
    with contextlib.suppress(BadTraceError):
        header, batches = raw.read_batches(io.BytesIO(data))
        for batch in batches:
            for event in raw.read_events(batch, header):
                raw.encode_event(event)


def read_text(data: bytes) -> None:
    try:
        lines = list(text.read_text(io.BytesIO(data)))
    except BadTraceError:
        return
    again = b"".join(text.parse_text(lines))
    if list(text.read_text(io.BytesIO(again))) != lines:
        raise Wrong("the text form does not say the same again")


def who_has_what(state: State) -> None:
    """Of a trace without misreads: each G that runs or is in a syscall is on one M, and each P that runs; both know it.

    That is what a head says of a border.
    """
    resources = {"G": state.gs, "P": state.ps}
    pairs = [(what, number, m) for m in state.ms.values() for what, number in (("G", m.g), ("P", m.p))]
    had = [(what, number) for what, number, _ in pairs if number != spec.NONE]
    if len(had) != len(set(had)):
        raise Wrong(f"one of these is on two Ms: {had}")
    for what, number, m in pairs:
        if number != spec.NONE and (number not in resources[what] or resources[what][number].m != m.id):
            raise Wrong(f"M {m.id} has {what} {number}, which is elsewhere")
        if what == "G" and number != spec.NONE and state.gs[number].status not in _BUSY["G"]:
            raise Wrong(f"M {m.id} has G {number}, which does not run")
    for what, all_of_them in resources.items():
        for number, resource in all_of_them.items():
            if resource.status in _BUSY[what] and (what, number) not in had:
                raise Wrong(f"{what} {number} is busy, on no M")


def in_order(path: str) -> bool:
    try:
        with order.open_trace(path) as file:
            reader = order.TraceReader(file)
            for _, _, events in reader.generations():
                for event in events:
                    event.values()
                    str(event.stack()) if "stack" in event.spec.args else None
                if reader.misreads.first is None:
                    who_has_what(reader.ordering.state)
        order.check(path)
    except order.MisreadError:
        return False
    except BadTraceError:
        return False
    return True


def is_told_twice(path: str, error: str) -> bool:
    """Is it about a G of which one generation tells the status twice?  No writer does that; which of two events at the
    same time comes first depends on all the others in the file then, and a head is more of them."""
    found = re.search(r"generation (\d+), .*GoStatus(?:Stack)? at \d+ ns: G (\d+) is", error)
    if found is None:
        return False
    where = (int(found[1]), int(found[2]))
    told = [(e.gen, e.arg("g")) for e in order.read_events(path) if e.name in ("GoStatus", "GoStatusStack")]
    return told.count(where) > 1


def cut_pieces(path: str, piece_path: str, good: bool) -> None:
    try:
        borders = cut.read_borders(path)
    except BadTraceError:
        if good:
            raise Wrong("in order, but not to be cut") from None
        return
    count = len(borders.generations)
    if not count:
        return
    with contextlib.suppress(cut.NoSuchPieceError):
        cut.choose(borders, borders.end // 3, borders.end // 2)
    for first, last in {(0, count - 1), (count - 1, count - 1), (count // 2, count - 1)}:
        try:
            with open(piece_path, "wb") as file:
                for part in cut.read_piece(path, cut.Piece(borders, first, last)):
                    file.write(part)
        except BadTraceError as error:
            if good:
                raise Wrong(f"in order, but generations {first} to {last} cannot be cut out: {error}") from None
            continue
        if good:
            try:
                order.check(piece_path)
            except BadTraceError as error:
                if any(re.search(known, str(error)) for known in KNOWN) or is_told_twice(path, str(error)):
                    continue
                raise Wrong(f"in order, but generations {first} to {last} alone are not: {error}") from None


def run_one(data: bytes, folder: str) -> None:
    """Runs one input; raises what must not be."""
    path, piece = os.path.join(folder, "input.trace"), os.path.join(folder, "piece.trace")
    with open(path, "wb") as file:
        file.write(data)
    read_raw(data)
    read_text(data)
    cut_pieces(path, piece, in_order(path))


# --- mutation -------------------------------------------------------------------------------------


def golden_seeds() -> list[bytes]:
    files = sorted(GOLDEN.glob("*.txt"))
    seeds = [b"".join(text.parse_text(f.read_text(encoding="ascii").splitlines(), limits=False)) for f in files]
    with contextlib.suppress(ImportError):
        import lz4.frame

        seeds += [lz4.frame.compress(seed) for seed in seeds[::8]]
    return seeds


class Mutator:
    """Makes inputs out of seeds."""

    def __init__(self, seeds: Sequence[bytes], dice: random.Random) -> None:
        self.seeds = seeds
        self.dice = dice
        self.parts = [parts for parts in map(take_apart, seeds) if parts]

    def make(self) -> bytes:
        if self.dice.random() < 0.3:
            return by_chance.make(self.dice)
        return self._of_bytes() if self.dice.random() < 0.4 or not self.parts else self._of_events()

    def _of_bytes(self) -> bytes:
        dice = self.dice
        data = bytearray(dice.choice(self.seeds))
        for _ in range(1 << dice.randrange(4)):
            at = dice.randrange(len(data)) if data else 0
            what = dice.randrange(6)
            if what == 0 and data:
                data[at] ^= 1 << dice.randrange(8)
            elif what == 1 and data:
                data[at] = dice.choice((0, 1, 2, 4, 0x7F, 0x80, 0xFF, dice.randrange(256)))
            elif what == 2:
                del data[at : at + 1 + dice.randrange(64)]
            elif what == 3:
                data[at:at] = data[at : at + 1 + dice.randrange(256)]
            elif what == 4:
                data[at:at] = raw.uvarint(dice.choice(_VALUES))
            else:
                other = dice.choice(self.seeds)
                data[at:at] = other[dice.randrange(len(other) + 1) :][: 1 + dice.randrange(512)]
        return bytes(data)

    def _of_events(self) -> bytes:
        dice = self.dice
        magic, batches = dice.choice(self.parts)
        batches = [(batch, list(events)) for batch, events in batches]
        if dice.random() < 0.1:
            magic = dice.choice(list(spec.HEADERS.values())).magic
        for _ in range(1 << dice.randrange(4)):
            if batches:
                self._change(batches)
        return magic + b"".join(
            raw.encode_batch(batch if batch.end else batch._replace(data=raw.encode_events(events)))
            for batch, events in batches
        )

    def _change(self, batches: list[tuple[Batch, list[RawEvent]]]) -> None:
        dice = self.dice
        at = dice.randrange(len(batches))
        batch, events = batches[at]
        what = dice.randrange(9)
        if what == 0:
            del batches[at]
        elif what == 1:
            batches.insert(dice.randrange(len(batches) + 1), (batch, list(events)))
        elif what == 2:
            other = dice.choice(dice.choice(self.parts)[1] or batches)
            batches.insert(at, (other[0]._replace(gen=batch.gen), list(other[1])))
        elif what == 3:
            field = dice.choice(("gen", "m", "time"))
            batches[at] = (batch._replace(**{field: self._number(getattr(batch, field))}), events)
        elif events:
            self._change_event(batches, events)

    def _change_event(self, batches: list[tuple[Batch, list[RawEvent]]], events: list[RawEvent]) -> None:
        dice = self.dice
        i = dice.randrange(len(events))
        event = events[i]
        what = dice.randrange(5)
        if what == 0:
            del events[i]
        elif what == 1:
            _, others = dice.choice(batches)
            others.insert(dice.randrange(len(others) + 1), event)
        elif what == 2:
            row = dice.choice(spec.EVENTS)
            args = (event.args + tuple(dice.choice(_VALUES) for _ in row.args))[: len(row.args)]
            events[i] = RawEvent(row, args, event.text, event.frames if row.has_frames else ())
        elif event.args:
            k = dice.randrange(len(event.args))
            events[i] = event._replace(args=(*event.args[:k], self._number(event.args[k]), *event.args[k + 1 :]))

    def _number(self, value: int) -> int:
        dice = self.dice
        value = dice.choice(_VALUES) if dice.random() < 0.5 else value + dice.randrange(-3, 4)
        return value % (1 << 64)


def take_apart(data: bytes) -> tuple[bytes, list[tuple[Batch, list[RawEvent]]]] | None:
    """The header's bytes, and the batches with their events; None for what cannot be read."""
    try:
        header, reader = raw.read_batches(io.BytesIO(data))
        return header.magic, [(batch, list(raw.read_events(batch, header))) for batch in reader]
    except BadTraceError:
        return None


# --- running --------------------------------------------------------------------------------------


def _hang(number: int, frame: FrameType | None) -> None:
    raise Wrong(f"no end after {HANG_SECONDS if number == signal.SIGPROF else STUCK_SECONDS} s")


def _watch(seconds: int, stuck: int) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(stuck)


def fuzz(inputs: Iterator[bytes], keep: Path, name: Callable[[int], str], folder: str) -> tuple[int, int]:
    """Runs them all. Returns how many, and how many failed; those are kept."""
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, _hang)
    count = failed = 0
    seen: set[str] = set()
    for data in inputs:
        count += 1
        _watch(HANG_SECONDS, STUCK_SECONDS)
        try:
            run_one(data, folder)
        except Exception as error:
            failed += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = re.sub(r"-?\d+|'.*'", "", f"{type(error).__name__} {where.name} {error}")
            if kind not in seen:
                seen.add(kind)
                path = keep / name(count)
                path.write_bytes(data)
                traceback.print_exc()
                print(f"input kept: {path}", file=sys.stderr)
        finally:
            _watch(0, 0)
    return count, failed


def with_atheris(args: Sequence[str]) -> None:
    """Does not return."""
    import importlib

    import atheris

    for name in [name for name in sys.modules if name.partition(".")[0] == "pooltrace"]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["pooltrace"]):
        target = importlib.import_module("fuzz_raw")  # this file, on top of instrumented modules
    folder = tempfile.mkdtemp(prefix="pooltrace-fuzz-")
    corpus = Path(folder) / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(golden_seeds()):
        (corpus / str(i)).write_bytes(seed)
    atheris.Setup([sys.argv[0], str(corpus), *args], lambda data: target.run_one(data, folder))
    atheris.Fuzz()


def main(argv: Sequence[str]) -> int:
    if argv[:1] == ["--atheris"]:
        with_atheris(argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="inputs to run once")
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 32))
    parser.add_argument("--keep", type=Path, default=Path(), help="where inputs that fail are written (.)")
    args = parser.parse_args(argv)

    def inputs() -> Iterator[bytes]:
        yield from (path.read_bytes() for path in args.paths)
        if args.seconds:
            seeds = golden_seeds()
            yield from seeds
            mutator = Mutator(seeds, random.Random(args.seed))
            end = time.monotonic() + args.seconds
            while time.monotonic() < end:
                yield mutator.make()

    args.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        count, failed = fuzz(inputs(), args.keep, lambda n: f"crash-{args.seed}-{n}.trace", folder)
    what = f"{failed} failed" if failed else "nothing wrong"
    print(f"fuzz_raw: {count} executions, seed {args.seed}: {what}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
