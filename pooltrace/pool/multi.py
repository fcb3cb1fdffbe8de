"""Pool: the face over multiprocess.pool.Pool. Apart, so that who does not use multiprocess does not import it."""

from __future__ import annotations

from multiprocess import pool as stock  # not `import multiprocess.pool`: that may be what we run in

from pooltrace.pool import patch
from pooltrace.pool.pool import Face


class Pool(Face, stock.Pool):  # type: ignore[misc]
    """multiprocess.pool.Pool on pooltrace's engine: the same calls, arguments and results."""

    _family = "multiprocess"
    _stock = stock.Pool


patch.face_ready(Pool)
