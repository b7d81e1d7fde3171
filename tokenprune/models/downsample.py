"""Down-sampling: the model is shown smaller pictures, and nothing is pruned. A baseline, and no method of the engine.

What pruning has to beat at equal tokens; many questions of benchmarks are answered from a smaller picture just as well
("Are We Using the Right Benchmark: An Evaluation Framework for Visual Token Compression Methods", arXiv 2510.07143).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.layout import VisualLayout
from tokenprune.budgets.base import Budget, Schedule
from tokenprune.engine.hooks import PatchedMethod
from tokenprune.errors import BudgetError, SampleError, UnsupportedModelError
from tokenprune.flops.decoder import prefill_cost
from tokenprune.models.base import LoadedModel
from tokenprune.models.smaller import (
    Grid,
    averaged,
    not_enlarging,
    resized,
    smaller_frame,
    smaller_grids,
    smaller_image,
)
from tokenprune.tasks.base import Sample

Inputs = Mapping[str, Tensor]
#: Frames, rows and columns of the tokens of every picture and video of a sample.
Grids = list[tuple[int, int, int]]


def check_budget(budget: Budget) -> None:
    """Check that a budget states a number of tokens that a smaller picture can have.

    Raises:
        BudgetError: It leaves the number to a pruner, or states several.
    """
    budget.check((0,))
    if budget.open_ended(0, 1):
        raise BudgetError(
            "the budget leaves the number of tokens to the pruner, and a smaller picture has none",
            "use a budget that states one: keep_ratio, keep_count, layer_average or flops_reduction",
        )


@dataclass(frozen=True)
class Smaller:
    """Inputs with smaller pictures.

    Attributes:
        inputs: The inputs.
        averaged: The rows and columns that the features of every picture are averaged to; None where the pictures
            themselves have fewer.
    """

    inputs: Inputs
    averaged: Grid | None = None


class Downsampler:
    """Makes the pictures of samples smaller, so that they become as many visual tokens as a budget allows.

    The tokens are those that the budget keeps where tokens are dropped before the first decoder layer: all layers see
    the smaller picture, so kept tokens and layer average are the same number.

    Args:
        loaded: The model.
        adapter: Its adapter.

    Raises:
        UnsupportedModelError: Nobody has defined what a smaller picture is to this family.
    """

    def __init__(self, loaded: LoadedModel, adapter: Adapter) -> None:
        found = adapter.downsampling()
        if found is None:
            raise UnsupportedModelError(
                f"{loaded.name!r} ({adapter.config.model_type}) cannot be shown smaller pictures: its processor"
                " cuts them into tiles, or nobody has said how their tokens become fewer",
                "remove the method; it runs on LLaVA-1.5, VipLLaVA, Pixtral, Mistral 3, LightOnOCR, Qwen2-VL,"
                " Qwen2.5-VL and Qwen3-VL",
            )
        self.loaded, self.adapter, self.kind = loaded, adapter, found

    @contextmanager
    def running(self, shown: Smaller) -> Iterator[None]:
        """Inside the block the model takes what :meth:`smaller` returned. On exit it is as it was before."""
        if shown.averaged is None:
            yield
            return
        inner: Any = getattr(self.loaded.model, "base_model", self.loaded.model)
        patched = PatchedMethod(inner, "get_image_features", partial(_averaged, shown.averaged))
        try:
            yield
        finally:
            patched.remove()

    def smaller(self, samples: Sequence[Sample], inputs: Inputs, budget: Budget) -> Smaller:
        """The inputs of samples with smaller pictures; the same inputs where the budget keeps all tokens.

        Args:
            samples: The samples.
            inputs: Their inputs with the pictures as they are.
            budget: The budget.

        Raises:
            BudgetError: It cannot be met.
            SampleError: The samples of a batch cannot be made smaller together.
            UnsupportedModelError: The processor made another number of tokens than was asked for.
        """
        layout = self.adapter.locate(inputs)
        if layout is None:
            return Smaller(inputs)
        grids = self._grids(inputs, layout)
        text = self._text_tokens(inputs, layout)
        wanted = [
            smaller_grids(items, self._tokens(budget, items, count)) for items, count in zip(grids, text, strict=True)
        ]
        if all(
            (rows, columns) == smaller
            for items, small in zip(grids, wanted, strict=True)
            for (_, rows, columns), smaller in zip(items, small, strict=True)
        ):
            return Smaller(inputs)
        if self.kind.side is None:
            return self._shrunk(samples, inputs, grids, wanted)
        made = self._encoded(samples, wanted, self.kind.side)
        self._check(made, grids, wanted)
        return Smaller(made)

    def _grids(self, inputs: Inputs, layout: VisualLayout) -> list[Grids]:
        placed = self.adapter.placed(inputs, layout)
        grids: list[Grids] = []
        for items in placed or ():
            grids.append([])
            for item in items:
                cells = item.coordinates
                grid = None if cells is None else tuple((cells.max(0).values + 1).tolist())
                if grid is None or math.prod(grid) != len(item.positions):
                    raise UnsupportedModelError(
                        f"the tokens of a picture of {self.loaded.name!r} are no plain grid",
                        "remove the method: what a smaller picture is to this model is not defined",
                    )
                grids[-1].append(grid)
        return grids

    @staticmethod
    def _text_tokens(inputs: Inputs, layout: VisualLayout) -> list[int]:
        mask = inputs.get("attention_mask")
        width = layout.mask.shape[1]
        lengths = [width] * len(layout.mask) if mask is None else mask.sum(1).tolist()
        return [int(length) - int(count) for length, count in zip(lengths, layout.mask.sum(1).tolist(), strict=True)]

    def _tokens(self, budget: Budget, items: Grids, text: int) -> int:
        """Visual tokens that a budget leaves a sample."""
        before = sum(map(math.prod, items))
        if not before:
            return 0
        layers = self.adapter.num_layers
        (kept,) = budget.keep(before, Schedule((0,), layers, prefill_cost(self.adapter.config, text)))
        if not kept:
            raise BudgetError("the budget keeps no visual token: there is no such picture", "ask for one or more")
        return kept

    # ---- the processor makes all pictures one size -------------------------------------------------------------

    def _shrunk(
        self, samples: Sequence[Sample], inputs: Inputs, grids: Sequence[Grids], wanted: Sequence[Sequence[Grid]]
    ) -> Smaller:
        """Pixels made smaller and enlarged again, and the placeholders that are too many taken out of the prompts."""
        layout = self.adapter.locate(inputs)
        placed = self.adapter.placed(inputs, layout) if layout is not None else None
        assert layout is not None
        assert placed is not None
        sizes = {grid for sample in wanted for grid in sample}
        whole = {grid[1:] for sample in grids for grid in sample}
        if len(sizes) > 1 or len(whole) > 1 or len(set(map(len, grids))) > 1:
            raise SampleError(
                f"sample {samples[0].id!r} and its batch get smaller pictures of different sizes", "set batch_size to 1"
            )
        ((rows, columns),), ((all_rows, all_columns),) = sizes, whole
        keep = ~layout.mask
        for sample, items in enumerate(placed):
            for item in items:
                keep[sample, item.positions[: rows * columns].to(keep.device)] = True
        made = {
            name: value[keep.to(value.device)].reshape(len(value), -1) if value.shape == keep.shape else value
            for name, value in inputs.items()
        }
        pixels = inputs["pixel_values"]
        height, width = pixels.shape[-2:]
        small = resized(pixels, (round(height * rows / all_rows), round(width * columns / all_columns)))
        made["pixel_values"] = resized(small, (height, width))
        return Smaller(made, (rows, columns))

    # ---- the processor takes pictures of any size --------------------------------------------------------------

    def _encoded(self, samples: Sequence[Sample], wanted: Sequence[Sequence[Grid]], side: int) -> Inputs:
        """Smaller pictures through the processor, which is kept from enlarging them."""
        smaller = [_smaller_sample(sample, grids, side) for sample, grids in zip(samples, wanted, strict=True)]
        with not_enlarging(self.loaded.processor):
            return self.loaded.encode(smaller)

    def _check(self, made: Inputs, grids: Sequence[Grids], wanted: Sequence[Sequence[Grid]]) -> None:
        """Check that the smaller pictures are as many tokens as was asked for: nothing enlarged them again."""
        layout = self.adapter.locate(made)
        counts = [0] * len(grids) if layout is None else layout.mask.sum(1).tolist()
        for items, small, count in zip(grids, wanted, counts, strict=True):
            expected = sum(frames * math.prod(grid) for (frames, _, _), grid in zip(items, small, strict=True))
            if count != expected:
                raise UnsupportedModelError(
                    f"the processor of {self.loaded.name!r} made {count} visual tokens of smaller pictures that are"
                    f" {expected}",
                    "remove the method: this processor changes the size of pictures in a way of its own",
                )


def _smaller_sample(sample: Sample, grids: Sequence[Grid], side: int) -> Sample:
    """A sample with smaller pictures, of so many tokens of ``side`` pixels each."""
    sizes = [(rows * side, columns * side) for rows, columns in grids]
    images, videos = sizes[: len(sample.images)], sizes[len(sample.images) :]  # in the order of the prompt
    if len(videos) != len(sample.videos):
        raise SampleError(
            f"sample {sample.id!r} has {len(sample.images) + len(sample.videos)} pictures and videos, and its"
            f" prompt {len(sizes)}",
            "smaller ones cannot be told apart: remove the sample, or the method",
        )
    return replace(
        sample,
        images=tuple(smaller_image(image, size) for image, size in zip(sample.images, images, strict=True)),
        videos=tuple(
            replace(video, frames=np.stack([smaller_frame(frame, size) for frame in video.frames]))
            for video, size in zip(sample.videos, videos, strict=True)
        ),
        foreground=(),
    )


def _averaged(grid: Grid, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The image features of a model, averaged to the grid of a smaller picture."""
    output = original(*args, **kwargs)
    features = [averaged(item, grid) for item in getattr(output, "pooler_output", output)]
    if not hasattr(output, "pooler_output"):
        return features
    output.pooler_output = features
    return output
