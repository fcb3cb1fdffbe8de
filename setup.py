"""The C extension alone; everything else about the package is in setup.cfg."""

from __future__ import annotations

import os
from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "pooltrace.tracer._core",
            sources=sorted(glob("pooltrace/tracer/core/*.c")),
            depends=sorted(glob("pooltrace/tracer/core/*.h")),
            define_macros=[("_GNU_SOURCE", "1"), ("PY_SSIZE_T_CLEAN", "1")],
            extra_compile_args=[
                "-std=gnu11",
                "-O2",
                "-pthread",
                "-fvisibility=hidden",
                *os.environ.get("POOLTRACE_CFLAGS", "").split(),
            ],
            extra_link_args=["-pthread", *os.environ.get("POOLTRACE_LDFLAGS", "").split()],
        )
    ]
)
