"""The examples of a report: the samples on which most methods changed the answer, and which patches each method kept.

They are chosen when all answers are there, and each method then prunes them once more, one sample at a time. The file
``examples.json`` keeps what was kept, so that a report can be made again without the model.
"""

import io
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.adapters.views import View
from tokenprune.core.optional import optional
from tokenprune.core.references import UNPRUNED, is_reference
from tokenprune.errors import TokenPruneError
from tokenprune.experiment.answering import Answering
from tokenprune.experiment.answers import RIGHT, Answers, digest
from tokenprune.experiment.batches import Batch, Batches
from tokenprune.experiment.results import Results
from tokenprune.experiment.series import Series
from tokenprune.output.lines import Row
from tokenprune.pictures.look import Look, StageLook
from tokenprune.report.page import Example, ExamplePanel, Picture
from tokenprune.tasks.base import conversation_text

FILE = "examples.json"
#: Longest side in pixels of a stored picture, for samples of up to so many pictures.
SIDES = ((1, 448), (4, 256), (16, 160), (64, 96))
SMALLEST = 64
QUALITY = 80

#: What reading a damaged file raises.
DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError)

#: Examples as :data:`FILE` has them, by position.
Stored = dict[int, dict[str, Any]]


def most_changed(answers: Answers, count: int) -> list[int]:
    """Positions of the samples whose answers most methods changed, the worst first, each about other pictures.

    Those that the unpruned model answers right come before those that it gets wrong itself, and those that no method
    changed are last. Every method with a budget counts once, with the share of its seeds that did not give the unpruned
    model's answer. Random choices and the upper bound count only where there is no other method. Of equal samples the
    earlier is worse. Without expected answers, the unpruned model's are right.

    Args:
        answers: The answers.
        count: How many samples; fewer are returned if there are not as many pictures.
    """
    pruned = [(method, budget) for method, budget in answers.methods() if method != UNPRUNED]
    judged = [(method, budget) for method, budget in pruned if not is_reference(method)]
    changed: dict[int, list[float]] = defaultdict(list)
    for method, budget in judged or pruned:
        for position, agreement in answers.of(method, budget).agreement_by_question().items():
            changed[position].append(1 - agreement)
    scores = answers.unpruned.by_question()

    def place(position: int) -> tuple[bool, bool, float, int]:
        share = sum(changed[position]) / len(changed[position])
        return share == 0, scores.get(position, 1.0) < RIGHT, -share, position

    order = sorted(changed, key=place)
    groups: dict[str, int] = {}
    for position in order:
        groups.setdefault(answers.questions.groups[position], position)
    return list(groups.values())[:count]


def shown_series(series: Iterable[Series]) -> list[Series]:
    """The series that examples show, those that drop patches: of a method with several seeds the first."""
    first: dict[tuple[str, str | None], Series] = {}
    for item in series:
        if not item.unpruned and item.downsampled is None:
            first.setdefault((item.method_name, item.budget), item)
    return list(first.values())


def stored(results: Results) -> tuple[Stored, str | None]:
    """The examples in a folder, by position, and why there are none. A damaged file counts as none."""
    try:
        return _read(results)
    except DAMAGED:
        return {}, None


def for_report(results: Results) -> tuple[Stored, str | None]:
    """Like :func:`stored`, for a report, which says so where the file is damaged."""
    if not (results.folder / FILE).is_file():
        return {}, None
    try:
        return _read(results)
    except DAMAGED as error:
        what = f"{type(error).__name__}: {error}"
        return {}, f"{FILE} is damaged ({what}); `tokenprune run` makes it again"


def _read(results: Results) -> tuple[Stored, str | None]:
    data = results.read_json(FILE)
    if not isinstance(data, dict):
        raise TypeError("it holds no mapping")
    found = {int(item["position"]): item for item in data["examples"]}
    for item in found.values():
        _check(item)
    return found, data.get("reason")


def _check(item: Mapping[str, Any]) -> None:
    """Raise one of :data:`DAMAGED` where an example cannot be shown, or would be shown wrong."""
    views, cells = _views(item), _cells(item)
    sizes = np.array([(view.rows, view.columns) for view in views] or [(0, 0)])
    placed = cells[cells[:, 0] >= 0]
    if (placed[:, 0] >= len(views)).any() or (placed[:, 1:] < 0).any() or (placed[:, 1:] >= sizes[placed[:, 0]]).any():
        raise ValueError("a token is in no cell")
    for data in item["pictures"]:
        b64decode(data, validate=True)
    for stages in item["series"].values():
        for stage in stages:
            if len(b64decode(stage["kept"], validate=True)) != -(-len(cells) // 8):
                raise ValueError("the number of tokens is wrong")
            _stage(stage, len(cells))
    if not isinstance(item["question"], str):
        raise TypeError("a question is no text")


def complete(found: Stored, positions: Sequence[int], series: Iterable[Series]) -> bool:
    """Whether stored examples hold all of these samples with all of these series."""
    keys = {item.key for item in shown_series(series)}
    return all(position in found and keys <= found[position]["series"].keys() for position in positions)


def write(results: Results, found: Stored, positions: Sequence[int], reason: str | None = None) -> None:
    """Write the examples of some samples, in this order."""
    items = [found[position] for position in positions if position in found]
    results.write_json(FILE, {"examples": items, **({"reason": reason} if reason else {})})


def capture(
    answering: Answering,
    batches: Batches,
    series: Iterable[Series],
    positions: Sequence[int],
    progress: Callable[[int, int], None],
) -> tuple[Stored, str | None]:
    """Let every method prune some samples, one at a time, and keep what it kept.

    Args:
        answering: The model, with the methods' layers chosen.
        batches: The samples.
        series: The series.
        positions: The samples.
        progress: Called with (samples done, samples in total).

    Returns:
        The examples, and why there are none: they are no reason for an experiment to fail.
    """
    shown = shown_series(series)
    found: Stored = {}
    if not shown:
        return {}, "no method of this run drops patches"
    for number, position in enumerate(positions):
        try:
            batch = batches.alone(position, answering.loaded)
            looks = {item.key: answering.look(item, batch) for item in shown}
            found[position] = _stored_example(position, batch, looks)
        except TokenPruneError as error:
            return {}, str(error)
        progress(number + 1, len(positions))
    return found, None


def _stored_example(position: int, batch: Batch, looks: Mapping[str, Look]) -> dict[str, Any]:
    first = next(iter(looks.values()))
    return {
        "position": position,
        "question": conversation_text(batch.samples[0]),
        "pictures": [b64encode(data).decode() for data in encoded(first.pictures)],
        "views": [asdict(view) for view in first.views],
        "cells": first.cells.tolist(),
        "series": {key: [_stored_stage(stage) for stage in look.stages] for key, look in looks.items()},
    }


def _stored_stage(stage: StageLook) -> dict[str, Any]:
    bits = b64encode(np.packbits(stage.kept).tobytes()).decode()
    return {"layer": stage.layer, "kept": bits, "reason": stage.reason}


def encoded(pictures: Sequence[NDArray[np.uint8]]) -> list[bytes]:
    """Pictures as small WebP files.

    Raises:
        MissingDataError: Pillow is not installed.
    """
    image = optional("PIL.Image", "pictures of examples", "report")
    side = next((side for most, side in SIDES if len(pictures) <= most), SMALLEST)
    files = []
    for picture in pictures:
        small = image.fromarray(picture)
        small.thumbnail((side, side))
        file = io.BytesIO()
        small.save(file, "WEBP", quality=QUALITY)
        files.append(file.getvalue())
    return files


def with_answers(found: Stored, rows: Iterable[Row]) -> tuple[Example, ...]:
    """Stored examples with the answers of all methods, in their order.

    Args:
        found: The examples.
        rows: The rows of the experiment, which hold the texts of the answers.
    """
    texts: dict[int, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["position"] in found:
            texts[row["position"]][row["series"]] = row
    return tuple(
        _example(item, texts[position])
        for position, item in found.items()
        if any(row["method"] == UNPRUNED for row in texts[position].values())
    )


def _example(item: Mapping[str, Any], rows: Mapping[str, Row]) -> Example:
    views, cells = _views(item), _cells(item)
    unpruned = next(row for row in rows.values() if row["method"] == UNPRUNED)
    panels = []
    for key, row in rows.items():
        stages = item["series"].get(key)
        if stages is None and row is not unpruned:
            continue
        look = Look(
            row["method"],
            views,
            cells,
            tuple(_stage(stage, len(cells)) for stage in stages or ()),
            budget=row["budget"] or "",
        )
        agrees = None if row is unpruned else digest(row["prediction"]) == digest(unpruned["prediction"])
        right = None if not row["answer"] else row["score"] >= RIGHT
        panels.append(ExamplePanel(row["method"], row["budget"] or "", row["prediction"], right, agrees, look))
    pictures = tuple(Picture(b64decode(data), "image/webp") for data in item["pictures"])
    return Example(unpruned["sample"], item["question"], unpruned["answer"] or None, pictures, tuple(panels))


def _views(item: Mapping[str, Any]) -> tuple[View, ...]:
    return tuple(View(**{**view, "box": tuple(view["box"])}) for view in item["views"])


def _cells(item: Mapping[str, Any]) -> NDArray[np.int64]:
    return np.array(item["cells"], dtype=np.int64).reshape(-1, 3)


def _stage(stage: Mapping[str, Any], tokens: int) -> StageLook:
    bits = np.unpackbits(np.frombuffer(b64decode(stage["kept"]), dtype=np.uint8), count=tokens)
    return StageLook(stage["layer"], bits.astype(bool), reason=stage["reason"])
