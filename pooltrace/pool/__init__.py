"""The pool: an engine with one channel per worker, and its faces over the two families' Pool classes."""
