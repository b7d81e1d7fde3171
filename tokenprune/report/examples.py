"""Examples as data for the page: pictures once, and for every panel which patches were dropped, as a few bits each."""

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.adapters.views import View
from tokenprune.pictures.describe import where
from tokenprune.pictures.look import Look
from tokenprune.report.page import Example, ExamplePanel


def example_data(examples: Iterable[Example]) -> list[dict[str, Any]]:
    """The examples, JSON-ready.

    An example has ``pictures`` (data URLs), ``layouts`` (the views of one grid) and ``masks``: one number per cell of
    all views in a row, packed, base64. The number is 0 for a patch that stays and for cells without a token; else it
    counts the stages after which the patch was gone. ``panels`` refer to a layout and a mask.
    """
    return [_example(item) for item in examples]


def _example(example: Example) -> dict[str, Any]:
    layouts: dict[tuple[View, ...], int] = {}  # what several panels show stands once, and they refer to its number
    masks: dict[tuple[str, int], int] = {}
    panels = [_panel(panel, layouts, masks) for panel in example.panels]
    return {
        "title": example.title,
        "question": example.question,
        "expected": example.expected,
        "pictures": [
            f"data:{picture.media_type};base64,{b64encode(picture.data).decode()}" for picture in example.pictures
        ],
        "layouts": [[_view(view) for view in views] for views in layouts],
        "masks": [{"bits": bits, "data": text} for text, bits in masks],
        "panels": panels,
    }


def _panel(
    panel: ExamplePanel, layouts: dict[tuple[View, ...], int], masks: dict[tuple[str, int], int]
) -> dict[str, Any]:
    look = panel.look
    return {
        "method": panel.method,
        "budget": panel.budget,
        "answer": panel.answer,
        "right": panel.right,
        "agrees": panel.agrees,
        "layout": layouts.setdefault(look.views, len(layouts)),
        "mask": masks.setdefault(packed(_cells(look)), len(masks)),
        "tokens": look.tokens,
        "where": where(look),
        "kept": [int(stage.kept.sum()) for stage in look.stages],
        "layers": [stage.layer for stage in look.stages],
        "reason": next((stage.reason for stage in look.stages if stage.reason), None),
    }


def _view(view: View) -> dict[str, Any]:
    return {**asdict(view), "box": [round(share, 5) for share in view.box]}


def _cells(look: Look) -> NDArray[np.uint8]:
    """After how many stages the token of each cell was gone, view by view and row by row, uint8 ``[cells]``."""
    gone = np.zeros(look.tokens, dtype=np.uint8)
    for stage in look.stages:
        gone += ~stage.kept
    grids = [look.grid(number, gone, 0).ravel() for number in range(len(look.views))]
    return np.concatenate(grids) if grids else np.zeros(0, dtype=np.uint8)


def packed(values: NDArray[np.uint8]) -> tuple[str, int]:
    """Small numbers in as few bits as they need: 1, 2, 4 or 8; the first number is in the highest bits.

    Args:
        values: uint8 ``[cells]``.

    Returns:
        The bytes in base64, and the bits per number.
    """
    largest = int(values.max(initial=0))
    bits = next(bits for bits in (1, 2, 4, 8) if largest < 1 << bits)
    each = np.unpackbits(values[:, None], axis=1)[:, 8 - bits :]
    return b64encode(np.packbits(each).tobytes()).decode(), bits
