"""What other viewers read, made from what ``reader`` gives, never from a trace's bytes.

``pprof`` makes profiles.
"""
