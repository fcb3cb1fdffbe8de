"""For test_suites: every process of the suite, spawned ones too, knows what a suite newer than its Python asks for."""

from __future__ import annotations

import test.support

if not hasattr(test.support, "subTests"):
    test.support.subTests = lambda *args, **kwargs: lambda function: function  # type: ignore[attr-defined]
