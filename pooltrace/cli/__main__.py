"""The ``pooltrace`` command: finds the subcommand and turns the user's mistakes into one line and exit status 2.

Knows no command's options or work. A command's module is imported only when it is wanted, so that ``pooltrace run``
puts as little as possible into the process of the program that it runs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, cast

from pooltrace.errors import PooltraceError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[Any]

COMMANDS: Final = ("run", "check", "dump", "cut", "export")
MISUSE: Final = 2


class Command(Protocol):
    """What a command's module offers."""

    def add_parser(self, subparsers: Subparsers, /) -> object: ...

    def run(self, args: argparse.Namespace, /) -> int: ...


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line that names the way to the help."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSE, f"{self.prog}: {message} (see '{self.prog} --help')\n")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from pooltrace import __version__

        print("pooltrace", __version__)
        parser.exit()


def _load(name: str) -> Command:
    return cast(Command, importlib.import_module(f"pooltrace.cli.{name}"))


def build_parser(names: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The command line's parser with the commands of these names."""
    parser = OneLineParser(
        prog="pooltrace", description="See what a process pool does, with Go's trace viewer.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in names:
        _load(name).add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command and return its exit status.

    ``run`` lets every exception of the program that it ran pass through, as python's own start-up code would see it.
    """
    argv = sys.argv[1:] if argv is None else argv
    names = argv[:1] if argv and argv[0] in COMMANDS else COMMANDS
    parser = build_parser(names)
    if "run" in argv[:1]:
        from pooltrace.cli.run import part_module

        argv = ["run", *part_module(argv[1:])]
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.prog += f" {args.command}"
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    command = _load(args.command)
    if args.command == "run":
        return command.run(args)
    try:
        return command.run(args)
    except (PooltraceError, OSError) as error:
        print(f"pooltrace {args.command}: {error}", file=sys.stderr)
        return MISUSE


if __name__ == "__main__":
    sys.exit(main())
