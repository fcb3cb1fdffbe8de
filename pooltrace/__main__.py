"""Lets ``python -m pooltrace`` do what the ``pooltrace`` command does."""

from __future__ import annotations

import sys

from pooltrace.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
