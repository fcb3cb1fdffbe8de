"""Prints what a program can see of how it was started."""

import sys

if __name__ == "__main__":
    main = sys.modules["__main__"]
    print(__name__, __file__, __spec__ and __spec__.name, __package__, type(__loader__).__name__, __builtins__)
    print(sorted(globals()))
    print(main.__dict__ is globals(), main.__doc__)
    print(sys.argv)
    print(sys.path)
    print(sys.flags)
    print(sys.stdin.read(), end="")
