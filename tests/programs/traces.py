"""Traces itself, as its arguments say: with, start (and stop), open (no stop), kill (after an advance), misuse."""

import os
import signal
import sys

import pooltrace
from pooltrace.tracer import session

if __name__ == "__main__":
    what, path = sys.argv[1:]
    if what == "with":
        for _ in range(2):
            with pooltrace.trace(path, period=0.5), pooltrace.StdPool(2) as pool:
                print(pool.map(abs, [-1, -2]))
    elif what == "misuse":
        for call in (pooltrace.stop, lambda: pooltrace.start(path), lambda: pooltrace.start(path), pooltrace.stop):
            try:
                print("done", call())
            except pooltrace.MisuseError as error:
                print(error)
    else:
        pooltrace.start(path)
        with pooltrace.StdPool(2) as pool:
            print(pool.map(abs, [-1, -2]), flush=True)
            if what == "kill":
                for _ in range(3):  # none begins before the last but one was written
                    session.advance()
                os.kill(os.getpid(), signal.SIGKILL)
        if what == "start":
            pooltrace.stop()
