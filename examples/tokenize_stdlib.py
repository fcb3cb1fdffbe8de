"""Tokenises the sources of Python's standard library with an ordinary pool of processes, and counts what is in them.

Knows nothing of pooltrace. Run it plainly, or with ``pooltrace run examples/tokenize_stdlib.py``.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import sysconfig
import tokenize
from pathlib import Path


def count_tokens(path: Path) -> collections.Counter[str]:
    """How often each kind of token is in the file; nothing for a file that is broken on purpose."""
    try:
        with tokenize.open(path) as file:
            return collections.Counter(
                tokenize.tok_name[token.exact_type] for token in tokenize.generate_tokens(file.readline)
            )
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        return collections.Counter()


def main() -> None:
    """Tokenise all sources, or as many as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=None, help="workers (default: one per core)")
    parser.add_argument("--files", type=int, default=None, help="at most so many files (default: all)")
    options = parser.parse_args()
    library = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)[: options.files]
    total: collections.Counter[str] = collections.Counter()
    with multiprocessing.Pool(options.processes) as pool:
        for counts in pool.imap_unordered(count_tokens, paths, chunksize=4):
            total += counts
    print(f"{len(paths):,} files, {sum(total.values()):,} tokens")
    for kind, count in total.most_common(5):
        print(f"{count:>12,}  {kind}")


if __name__ == "__main__":
    main()
