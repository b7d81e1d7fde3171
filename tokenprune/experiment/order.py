"""The order of rows: that of an experiment that one process ran in one go, batch by batch and series by series."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from tokenprune.experiment.results import Results
from tokenprune.output.lines import Row, line, parse


def put_in_order(results: Results, keys: Sequence[str], batch_size: int) -> None:
    """Put the rows of a folder in order, where several workers have written them.

    Rows of other series than the given ones, which earlier runs left, come first. A row takes 24 bytes of memory: its
    place, its offset, its rank.

    Args:
        results: The folder.
        keys: The series, in their order.
        batch_size: Samples of a batch.
    """
    if not results.unordered:
        return
    order = {key: number for number, key in enumerate(keys)}
    places, offsets = array("q"), array("q")
    for offset, row in _located(results):
        number = order.get(row["series"])
        batch, within = divmod(row["position"], batch_size)
        places.append(-1 if number is None else (batch * len(keys) + number) * batch_size + within)
        offsets.append(offset)
    with results.samples.open("rb") as file, results.replacing(results.samples) as out:
        for index in np.argsort(np.frombuffer(places, dtype=np.int64), kind="stable"):
            file.seek(offsets[index])
            out.write(file.readline().decode())
    skipped = sorted(results.skipped_in_file(), key=lambda row: row["position"] // batch_size)
    if skipped:
        results.write(results.skipped.name, "".join(map(line, skipped)))
    results.end_unordered()


def _located(results: Results) -> Iterator[tuple[int, Row]]:
    offset = 0
    with results.samples.open("rb") as file:
        for text in file:
            row = parse(text.decode(errors="replace"), "series", "position")
            if row is not None:
                yield offset, row
            offset += len(text)
