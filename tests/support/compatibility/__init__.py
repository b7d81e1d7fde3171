"""What works inside an `apply` block, found by doing it: `python -m tests.support.compatibility` writes the page.

Every cell of docs/compatibility.md is a function that uses a tiny model. :mod:`.judging` says what a cell may find,
:mod:`.kinds` lists the KV caches, the other modules hold the rows, and :mod:`.page` writes.
"""
