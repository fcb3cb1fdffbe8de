"""Runs as a directory, a zip file and as ``-m app``; its neighbour is found in each way."""

import sys

if __package__:
    from app.helper import greet
else:
    from helper import greet

if __name__ == "__main__":
    print(greet(), __name__, __package__, __spec__.name, sys.argv, sys.path[0])
    sys.exit(int(sys.argv[1]))
