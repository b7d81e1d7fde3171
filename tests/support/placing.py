"""Checks where visual tokens are said to lie, by numbered patches.

A spot of a picture is painted where a token is said to lie. The processor and the vision tower run on it, and the token
has to be the one that changes most. Nothing here asks the adapter which token that should be. The tower's layers return
their input, so that no patch sees another.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import pre_tokenizers

from tests.support.checkpoints import FAMILIES
from tests.support.painted import Picture, Spot, make_local, painted, visual_states
from tests.support.tiny import CASES
from tokenprune.adapters import adapter_for
from tokenprune.adapters.views import PlacedItem, View
from tokenprune.models.chat import ChatEncoder
from tokenprune.pictures.place import views_of
from tokenprune.tasks.base import Sample, Video

Place = tuple[float, float, float]
MIDDLE: Place = (0.5, 0.5, 0.3)
PLACES: tuple[Place, ...] = (MIDDLE, (0.25, 0.25, 0.15), (0.75, 0.25, 0.15), (0.75, 0.75, 0.15), (0.25, 0.75, 0.15))
"""Where in its cell a token is looked for, in turn: middle from the left and the top, half of the side."""

SPOTS = 24
"""So many tokens are tried, spread over all of a sample."""


@dataclass(frozen=True)
class Setting:
    """A family's model and processor."""

    name: str
    model: Any
    processor: Any
    visual_ids: tuple[int, ...]

    def encode(self, samples: Sequence[Sequence[Picture]], frames: int) -> dict[str, Any]:
        """A batch of prompts; of so many frames each is a video, with 0 frames the pictures are images."""
        encoder = ChatEncoder(self.processor, self.model, self.name)
        made_samples = []
        for number, pictures in enumerate(samples):
            starts = range(0, len(pictures), frames) if frames else ()
            videos = tuple(Video.at_rate(np.stack(pictures[start : start + frames]), 4.0) for start in starts)
            images = () if frames else tuple(map(Image.fromarray, pictures))
            made_samples.append(Sample(str(number), images, "what is this", "", "", "", videos=videos))
        return encoder(made_samples)


def made(name: str, processor: Any = None, model: Any = None) -> Setting:
    """A family's local model, and its processor.

    Args:
        name: Name of the family.
        processor: Replaces its processor.
        model: Replaces its tiny model.
    """
    family = FAMILIES[name]
    model = CASES[family.case].build() if model is None else model
    processor = family.processor() if processor is None else processor
    processor.tokenizer.padding_side = "left"
    # real tokenizers have tokens for line breaks, which end the rows of Idefics 3's tiles
    breaks, spaces = (pre_tokenizers.Split(what, how) for what, how in (("\n", "isolated"), (" ", "removed")))
    processor.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([breaks, spaces])
    make_local(model)
    return Setting(name, model, processor, CASES[family.case].visual_ids)


def place(subject: Setting, pictures: Sequence[Picture], frames: int = 0) -> tuple[tuple[View, ...], NDArray[np.int64]]:
    """Where the tokens of one sample are said to lie."""
    items = items_of(subject, subject.encode([pictures], frames))[0]
    return views_of(items, [(picture.shape[1], picture.shape[0]) for picture in pictures], subject.processor)


def items_of(subject: Setting, call: dict[str, Any]) -> list[list[PlacedItem]]:
    adapter = adapter_for(subject.model)
    layout = adapter.locate(call)
    assert layout is not None
    placed = adapter.placed(call, layout)
    assert placed is not None
    return placed


def spot_of(view: View, row: int, column: int, place: Place) -> Spot | None:
    """A spot in a cell, as far as the cell is on the picture; None where less than a third of it is.

    Args:
        view: The grid.
        row: The cell's row.
        column: The cell's column.
        place: Middle of the spot from the left and from the top, and half of its side, as shares of the cell.
    """
    left, top, right, bottom = view.box
    along = []
    for start, end, number, count, middle in (
        (left, right, column, view.columns, place[0]),
        (top, bottom, row, view.rows, place[1]),
    ):
        cell = (end - start) / count
        low, high = max(start + number * cell, 0.0), min(start + (number + 1) * cell, 1.0)
        if high - low < cell / 3:
            return None
        along.append((low + (middle - place[2]) * (high - low), low + (middle + place[2]) * (high - low)))
    (x, y) = along
    return view.picture, (x[0], y[0], x[1], y[1])


def check(
    subject: Setting,
    pictures: Sequence[Picture],
    frames: int = 0,
    spots: int = SPOTS,
    blurred: bool = False,
    fewest: float = 0.5,
) -> tuple[View, ...]:
    """Paint the places of tokens, and find the tokens that change most.

    Args:
        subject: The model and its processor.
        pictures: The pictures of one sample.
        frames: Frames of each video; 0 for images.
        spots: Tokens that are tried.
        blurred: Whether the model scales patches, so that neighbours change, too.
        fewest: The share of tokens that lie on a picture at least; others see padding.

    Returns:
        The views.
    """
    views, cells = place(subject, pictures, frames)
    step = max(1, len(cells) // spots)
    tokens = [token for token in range(0, len(cells), step) if cells[token, 0] >= 0]
    places = dict(zip(tokens, itertools.cycle((MIDDLE,) if blurred else PLACES)))
    found = {
        token: spot_of(views[cells[token, 0]], cells[token, 1], cells[token, 2], places[token]) for token in tokens
    }
    tried = {token: spot for token, spot in found.items() if spot is not None}
    assert len(tried) > len(found) * fewest
    copies = [painted(pictures, spot) for spot in tried.values()]
    changes = visual_states(subject.model, subject.encode([pictures, *copies], frames), subject.visual_ids).changes()
    assert changes.shape[1] == len(cells)
    picture_of = torch.tensor([views[view].picture if view >= 0 else -1 for view in cells[:, 0]])
    view_of, titles = torch.as_tensor(cells[:, 0]), [view.title for view in views]
    for change, (token, (number, _)) in zip(changes, tried.items(), strict=True):
        title = titles[cells[token, 0]]
        layer = [view for view, other in enumerate(views) if other.picture == number and titles[view] == title]
        here = torch.isin(view_of, torch.tensor(layer))
        strongest = int(change.masked_fill(~here, -1.0).argmax())
        where = (token, views[cells[token, 0]], cells[token].tolist(), cells[strongest].tolist())
        assert strongest == token, where
        assert blurred or change[token] > 1.5 * change[here & (torch.arange(len(cells)) != token)].max(), where
        assert change[token] > 1e-2, where
        elsewhere = change[picture_of != number]
        assert not len(elsewhere) or float(elsewhere.max()) == 0.0, where
    return views
