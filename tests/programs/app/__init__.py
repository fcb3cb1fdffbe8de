"""A package that can be run."""

import sys

print("package", __name__, sys.argv[0] == "-m")
