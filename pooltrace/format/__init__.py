"""The wire format: Go's execution trace, version 2. Imports nothing else of the project but its errors.

``spec`` is the one table of events, headers and limits. ``raw`` cuts bytes into batches and events and puts them
together again, ``text`` writes those as text and back. ``generation`` collects the batches of one generation and checks
its tables, ``cursor`` decodes them one event at a time. ``states``, ``actions`` and ``rules`` say when an event may
happen; ``order`` puts the events of all Ms into one order by that, and is what readers and tests call. ``head`` makes
what a file that begins in the middle has to be told, ``cut`` makes such files.
"""
