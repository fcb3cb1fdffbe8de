"""A program with pools of its own: start method, then what to do, are its arguments."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.util import Finalize


class Point:
    """Its instances travel: __main__ must be the same place on both sides."""

    def __init__(self, x):
        self.x = x


def double(point):
    return Point(2 * point.x)


def who(_):
    import __main__

    return __main__.__name__, __name__, os.path.basename(sys.argv[0]), os.path.basename(__main__.__file__)


def fail(x):
    raise LookupError(f"no {x}")


def exit_order(context):
    """Who is ended when: threads, then exit handlers from the last to the first, multiprocessing's among them."""
    atexit.register(lambda: print("exit handler from after the pool"))
    pool = context.Pool(2)
    Finalize(None, print, args=("finalizer of multiprocessing",), exitpriority=100)
    thread = threading.Thread(target=lambda: (threading.main_thread().join(), print("thread", pool.map(abs, [-1, -2]))))
    thread.start()
    return "left open"


def main():
    context = multiprocessing.get_context(sys.argv[1])
    what = sys.argv[2]
    if what == "elsewhere":
        os.chdir("/")
    if what == "exit-order":
        print(exit_order(context))
        return
    with context.Pool(2) as pool:
        if what == "elsewhere":
            print(pool.map(abs, range(20)))
        elif what == "map":
            print([point.x for point in pool.map(double, [Point(x) for x in range(20)], chunksize=3)])
            print(sorted({type(point) is Point for point in pool.imap_unordered(double, map(Point, range(5)))}))
        elif what == "who":
            print(set(pool.map(who, range(4))))
        elif what == "fail":
            try:
                pool.map(fail, range(3), chunksize=3)  # the first error that comes is raised: let there be one
            except LookupError as error:
                print("caught", error)
            pool.map(fail, range(7, 8))
        elif what == "exit":
            print(pool.apply(abs, (-3,)))
            sys.exit(3)
        elif what == "sigterm":
            print(pool.apply(abs, (-3,)), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    atexit.register(lambda: print("exit handler from before the pool", os.path.basename(sys.argv[0])))
    main()
