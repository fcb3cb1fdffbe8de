"""Ends in the way that its first argument names, with an exit handler and something in each buffer."""

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import threading


def hook(kind, value, traceback):
    print("own hook:", kind.__name__, value, traceback.tb_frame.f_code.co_name, file=sys.stderr)


def deep(depth):
    if depth:
        return deep(depth - 1)
    try:
        return 1 // 0
    except ZeroDivisionError as error:
        raise ValueError("while dividing") from error


def own_handler(signum, frame):
    print("own handler")
    sys.exit(5)


def forked(signum):
    """A child of a plain fork: ends by an exception, or by a signal that it gets while it holds the GIL in C."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        if not signum:
            raise RuntimeError("in the child")
        os.write(told, b"1")
        ctypes.PyDLL(None).pause()
    if signum:
        os.read(ready, 1)
        os.kill(pid, signum)
    print("child:", os.waitpid(pid, 0)[1])


def in_a_thread():
    threading.main_thread().join()
    print("the thread ends")


class Odd(Exception):
    def __str__(self):
        raise TypeError("no text")


ENDS = {
    "return": lambda: None,
    "exit-none": lambda: sys.exit(),
    "exit-3": lambda: sys.exit(3),
    "exit-text": lambda: sys.exit("a text\nof two lines"),
    "exit-object": lambda: sys.exit([1, 2]),
    "raise-systemexit": lambda: (_ for _ in ()).throw(SystemExit(4)),
    "error": lambda: deep(3),
    "odd-error": lambda: (_ for _ in ()).throw(Odd()),
    "hook": lambda: (setattr(sys, "excepthook", hook), deep(1)),
    "bad-hook": lambda: (setattr(sys, "excepthook", lambda *_: sys.exit(6)), deep(1)),
    "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "hang-up": lambda: os.kill(os.getpid(), signal.SIGHUP),
    "ignored-hang-up": lambda: (signal.signal(signal.SIGHUP, signal.SIG_IGN), os.kill(os.getpid(), signal.SIGHUP)),
    "out-of-time": lambda: os.kill(os.getpid(), signal.SIGXCPU),
    "fork-hang-up": lambda: forked(signal.SIGHUP),
    "own-sigterm": lambda: (signal.signal(signal.SIGTERM, own_handler), os.kill(os.getpid(), signal.SIGTERM)),
    "ignored-sigterm": lambda: (signal.signal(signal.SIGTERM, signal.SIG_IGN), os.kill(os.getpid(), signal.SIGTERM)),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "os-exit": lambda: os._exit(7),
    "fork": lambda: forked(0),
    "fork-sigterm": lambda: forked(signal.SIGTERM),
    "thread": lambda: threading.Thread(target=in_a_thread).start(),
    "closed-stderr": lambda: (sys.stderr.close(), sys.exit(8)),
    "closed-fd-2": lambda: (os.close(2), sys.exit(9)),
    "no-stderr": lambda: (setattr(sys, "stderr", None), deep(1)),
    "chdir": lambda: os.chdir(".."),
    "subprocess": lambda: subprocess.run([sys.executable, "-c", "print(__name__)"], check=True),
    "atexit-raises": lambda: atexit.register(lambda: 1 // 0),
    "atexit-exits": lambda: atexit.register(lambda: os._exit(10)),
}

if __name__ == "__main__":
    atexit.register(lambda: print("exit handler", __name__))
    print("begin")
    sys.stdout.flush()
    print("in the buffer of standard output")
    ENDS[sys.argv[1]]()
    print("end")
