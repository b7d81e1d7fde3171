"""The last prefill of a recording, made ready to be drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenprune.budgets.label import budget_label, in_words
from tokenprune.errors import ConfigError, UnsupportedFeatureError, UnsupportedModelError
from tokenprune.pictures.convert import as_pictures
from tokenprune.pictures.html import ShownLook
from tokenprune.pictures.look import Look, StageLook
from tokenprune.pictures.place import grids_of, views_of
from tokenprune.recording import Recording, StageResult


def recorded_look(
    recording: Recording,
    pictures: Sequence[Any],
    processor: Any,
    *,
    sample: int,
    question: str,
    answer: str | None,
    expected: str | None,
) -> Look:
    """Collect what can be drawn of one sample; arguments and errors as for :meth:`tokenprune.Run.look`."""
    stages = recording.prefill.stages
    if not stages or not any(stages[0].before):
        raise UnsupportedFeatureError(
            "there is nothing to draw: no prompt with visual tokens was read, or the last one is still being read",
            "run the model inside the block first",
        )
    if not 0 <= sample < len(stages[0].before):
        raise ConfigError(
            f"there is no sample {sample}: the last batch has {len(stages[0].before)}", "samples count from 0"
        )
    items = recording.prefill.places()
    if items is None:
        raise UnsupportedModelError(
            f"the adapter of {recording.family!r} knows no token grid: it cannot be drawn",
            "write an adapter that overrides grid()",
        )
    shown = as_pictures(pictures)
    sizes = [(picture.shape[1], picture.shape[0]) for picture in shown]
    if processor is None and any(width != height for width, height in sizes):
        raise ConfigError(
            "pictures that are no squares were given without a processor, which may crop them",
            "give the model's processor, too: run.figure(pictures, processor)",
        )
    views, cells = views_of(items[sample], sizes, processor) if shown else grids_of(items[sample])
    places = torch.cat([item.positions for item in items[sample]]).sort().values.numpy()
    return ShownLook(
        method=recording.name,
        views=views,
        cells=cells,
        stages=tuple(_stage_look(stage, sample, places) for stage in stages),
        pictures=tuple(shown),
        budget=in_words(budget_label(recording.method.budget)),
        question=question,
        answer=answer,
        expected=expected,
    )


def _stage_look(stage: StageResult, sample: int, places: NDArray[np.int64]) -> StageLook:
    """Collect what can be drawn of one stage.

    Args:
        stage: The stage.
        sample: Number of the sample.
        places: Positions of all its visual tokens in the unpruned sequence, ascending.
    """
    tokens = stage.tokens
    assert tokens is not None
    real = tokens.real[sample].cpu().numpy()
    at = np.searchsorted(places, tokens.positions[sample].cpu().numpy()[real])  # of the tokens that entered

    def spread(values: NDArray[Any], empty: Any) -> NDArray[Any]:
        out = np.full(len(places), empty, dtype=values.dtype)
        out[at] = values
        return out

    # a budget that drops everything leaves nothing to score
    scores, merged = tokens.scores if stage.after[sample] else None, tokens.merged
    into = None if merged is None else merged[sample].cpu().numpy()
    entry = np.full(len(real), -1)
    entry[real] = at
    return StageLook(
        stage.layer,
        spread(tokens.keep[sample].cpu().numpy()[real], False),
        None if scores is None else spread(scores[sample].float().cpu().numpy()[real], np.nan),
        None if into is None else spread(np.where(into[real] < 0, -1, entry[into[real]]), -1),
        stage.reason,
    )
