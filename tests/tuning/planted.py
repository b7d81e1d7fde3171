"""A model in which the best way to prune is known, and a tune of the toy model that a test can kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

import tokenprune as tp
from tests.support.simple import pair
from tests.support.toy import ToyModel, ToyTask
from tokenprune.core.tunable import Tunable
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext
from tokenprune.tuning import TuneConfig, run_tune

#: The visual tokens, of 16, on which the answer depends.
MATTER = (2, 3, 7, 11)
#: The dimension of the states that marks them, and the one that is equal for all tokens.
MARK, EVERY = 0, 1
BUDGET = {"name": "layer_average", "ratio": 0.5}


class Place(Scorer):
    """Scores tokens by their number: it needs nothing of the model, and can keep exactly those that matter.

    Attributes:
        keep: ``matter`` keeps the tokens that matter, ``others`` drops them first.
    """

    keep: Annotated[Literal["matter", "others"], Tunable("matter", "others")] = "others"

    def score(self, ctx: PruneContext) -> Tensor:
        scores = torch.zeros(ctx.visual_mask.shape)
        scores[:, list(MATTER)] = 1.0 if self.keep == "matter" else -1.0
        return scores


class Marked(nn.Module):
    """A projector whose output carries the two marks."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: Tensor) -> Tensor:
        marked: Tensor = self.inner(features).clone()
        marked[..., EVERY] = 4.0
        marked[..., MARK] = 0.0
        if marked.shape[-2] == 16:  # a whole picture, and not the merged tokens of a pruner
            marked[..., list(MATTER), MARK] = 40.0
        return marked


@torch.no_grad()
def planted(samples: int = 16) -> tuple[Any, list[dict[str, Tensor]]]:
    """The tiny LLaVA whose answer depends on some visual tokens only, and batches of two different pictures.

    One dimension of the states marks these tokens, another one is the same for all. Nothing writes to either. All
    queries point one way, along a part that rotary embedding hardly turns, and the keys of marked tokens point there,
    too, so that nearly all attention goes to these.
    """
    model: Any
    model, inputs = pair(batch=2, padding="none")
    model.model.multi_modal_projector = Marked(model.model.multi_modal_projector)
    decoder = model.model.language_model
    decoder.embed_tokens.weight[:, MARK] = 0.0
    decoder.embed_tokens.weight[:, EVERY] = 4.0
    for layer in decoder.layers:
        attention = layer.self_attn
        half = attention.head_dim // 2
        for projection, mark in ((attention.q_proj, EVERY), (attention.k_proj, MARK)):
            rows = range(half - 1, projection.out_features, attention.head_dim)
            projection.weight[list(rows), :] = 0.0
            projection.weight[list(rows), mark] = 10.0
        for written in (attention.o_proj, layer.mlp.down_proj):
            written.weight[[MARK, EVERY]] = 0.0
    noise = torch.Generator().manual_seed(0)
    shape = inputs["pixel_values"].shape
    batches = [{**inputs, "pixel_values": torch.randn(shape, generator=noise)} for _ in range(samples // 2)]
    return model, batches


def method(scorer: Any, label: str, layer: int = 0, **fields: Any) -> tp.Method:
    """Keep the best tokens by a scorer, from one layer on."""
    return tp.Method(
        layers={"name": "fixed", "layers": [layer]},
        pruner=TopK(scorer=scorer),
        budget=BUDGET,
        label=label,
        **fields,
    )


def config(folder: str, **changes: Any) -> TuneConfig:
    """A tune of the toy model."""
    plain: dict[str, Any] = {
        "model": ToyModel(),
        "task": ToyTask(),
        "budget": BUDGET,
        "methods": ["fastv", "entropyprune", "visionzip"],
        "samples": 16,
        "batch_size": 4,
        "output": folder,
    }
    return TuneConfig.from_dict(plain | changes)


def run_slowly(folder: Path, progress: Callable[[str, int, int], None]) -> None:
    """Run the tune, and leave time for a kill after each of its steps."""

    def slowly(*step: Any) -> None:
        progress(*step)
        time.sleep(0.05)

    run_tune(config(str(folder)), slowly)
