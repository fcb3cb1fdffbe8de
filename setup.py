"""The C extensions alone; everything else about the package is in setup.cfg."""

from __future__ import annotations

import os
from glob import glob

from setuptools import Extension, setup


def extension(name: str, directory: str) -> Extension:
    return Extension(
        name,
        sources=sorted(glob(f"{directory}/*.c")),
        depends=sorted(glob(f"{directory}/*.h")),
        define_macros=[("_GNU_SOURCE", "1"), ("PY_SSIZE_T_CLEAN", "1")],
        extra_compile_args=[
            "-std=gnu11",
            "-O2",
            "-pthread",
            "-fvisibility=hidden",
            "-Werror=implicit-function-declaration",  # what one Python declares, another may not
            *os.environ.get("POOLTRACE_CFLAGS", "").split(),
        ],
        extra_link_args=["-pthread", "-lrt", *os.environ.get("POOLTRACE_LDFLAGS", "").split()],
    )


setup(
    ext_modules=[
        extension("pooltrace.tracer._core", "pooltrace/tracer/core"),
        extension("pooltrace.pool._channel", "pooltrace/pool/core"),
    ]
)
