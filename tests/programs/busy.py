"""Gets the signal that its argument names while each of its workers runs a unit that never ends."""

import multiprocessing
import os
import sys
import threading


def wait_for_ever(descriptor):
    os.write(descriptor, b"1")
    threading.Event().wait()


if __name__ == "__main__":
    read, write = os.pipe()
    pool = multiprocessing.get_context("fork").Pool(2)
    pool.map_async(wait_for_ever, [write, write], chunksize=1)
    os.read(read, 1)
    os.read(read, 1)
    os.kill(os.getpid(), int(sys.argv[1]))
