"""The version, in a module that needs nothing built."""

__version__ = "0.1.0"
