"""The read side: what a trace tells of units, items and the time that they took. Imports ``format`` and ``errors``.

``samples`` gives the CPU samples, each with the unit and item that it belongs to.
"""
