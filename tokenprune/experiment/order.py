"""The order of rows: that of an experiment that one process ran in one go, batch by batch and series by series."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from tokenprune.experiment.results import Results
from tokenprune.output.lines import Row, line, parse


def put_in_order(results: Results, keys: Sequence[str], batch_size: int) -> None:
    """Put the rows of a folder in order, where several workers have written them.

    Rows of other series than the given ones, which earlier runs left, come first.

    Args:
        results: The folder.
        keys: The series, in their order.
        batch_size: Samples of a batch.
    """
    if not results.unordered:
        return
    write_in_order(results, [results], keys, batch_size, others=True)
    skipped = sorted(results.skipped_in_file(), key=lambda row: row["position"] // batch_size)
    if skipped:
        results.write(results.skipped.name, "".join(map(line, skipped)))
    results.end_unordered()


def write_in_order(
    target: Results, sources: Sequence[Results], keys: Sequence[str], batch_size: int, others: bool = False
) -> None:
    """Write the rows of folders in order. A row takes 24 bytes of memory: its place, its file, its offset.

    Args:
        target: Where they are written; it may be one of the sources.
        sources: Where they are read.
        keys: The series, in their order.
        batch_size: Samples of a batch.
        others: Keep the rows of other series, before all others; else they are left out.
    """
    order = {key: number for number, key in enumerate(keys)}
    places, owners, offsets = array("q"), array("q"), array("q")
    for owner, source in enumerate(sources):
        for offset, row in _located(source):
            number = order.get(row["series"])
            if number is not None:
                batch, within = divmod(row["position"], batch_size)
                places.append((batch * len(keys) + number) * batch_size + within)
            elif others:
                places.append(-1)
            else:
                continue
            owners.append(owner)
            offsets.append(offset)
    with ExitStack() as stack:
        files = [stack.enter_context(source.samples.open("rb")) for source in sources]
        out = stack.enter_context(target.replacing(target.samples))
        for index in np.argsort(np.frombuffer(places, dtype=np.int64), kind="stable"):
            file = files[owners[index]]
            file.seek(offsets[index])
            out.write(file.readline().decode())


def _located(source: Results) -> Iterator[tuple[int, Row]]:
    offset = 0
    with source.samples.open("rb") as file:
        for text in file:
            row = parse(text.decode(errors="replace"), "series", "position")
            if row is not None:
                yield offset, row
            offset += len(text)
