"""PyramidDrop: three stages, each against the full eager attention map of a model in which the dropped are masked.

As in the published code, tokens are ranked by layer K's own attention on what enters it: the map of layer K where only
the tokens of earlier stages are masked. Not like it, on purpose: that gives the kept tokens new positions 0, 1, 2 ...,
here they keep their own unless the method is renumbered.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.scorers.test_scorers import best
from tests.support.tiny import CASES
from tokenprune.budgets.base import Schedule
from tokenprune.errors import BudgetError, LayerError
from tokenprune.ops.topk import apportion
from tokenprune.selectors.base import SelectorContext


def masked_attention(model: Any, inputs: dict[str, Tensor], dropped: dict[int, list[list[int]]]) -> Any:
    """Attention maps of an eager model whose layers from K on cannot see the tokens dropped at K."""

    def hide(gone: list[list[int]]) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            mask = kwargs["attention_mask"].clone()
            if mask.shape[0] != len(gone):
                mask = mask.expand(len(gone), -1, -1, -1).clone()
            for sample, columns in enumerate(gone):
                mask[sample, :, :, columns] = torch.finfo(mask.dtype).min
            return args, {**kwargs, "attention_mask": mask}

        return hook

    handles = [
        layer.register_forward_pre_hook(hide(gone), with_kwargs=True)
        for start, gone in dropped.items()
        for layer in model.get_decoder().layers[start:]
    ]
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    for handle in handles:
        handle.remove()
    return maps


@pytest.mark.parametrize("variant", ["image", "multi", "ragged"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_every_stage_keeps_what_the_last_token_attends_to(name: str, variant: Any) -> None:
    case = CASES[name]
    if variant not in case.variants:
        pytest.skip(f"{name} has no {variant} prompts")
    model = case.build("eager")
    batch = case.batch(model, 2, "left", seed=2, variant=variant)
    depth = len(model.get_decoder().layers)
    visual = torch.isin(batch.inputs["input_ids"], torch.tensor(case.visual_ids))
    images = [
        [part.tolist() for part in row.nonzero()[:, 0].split(sizes)]
        for row, sizes in zip(visual, batch.groups, strict=True)
    ]
    before = [sum(sizes) for sizes in batch.groups]
    dropped: dict[int, list[list[int]]] = {}
    expected: list[list[list[int]]] = []
    for depth_share, share in ((0.25, 0.5), (0.5, 0.25), (0.75, 0.125)):
        layer = int(depth_share * depth)
        maps = masked_attention(model, batch.inputs, dropped)[layer]
        gone: list[list[int]] = []
        for sample in range(2):
            row = maps[sample, :, -1].double().mean(0)
            quotas = apportion(int(before[sample] * share), [len(image) for image in images[sample]])
            kept = [
                best({p: float(row[p]) for p in image}, quota)
                for image, quota in zip(images[sample], quotas, strict=True)
            ]
            gone.append([p for image, left in zip(images[sample], kept, strict=True) for p in image if p not in left])
            images[sample] = kept
        dropped[layer] = gone
        expected.append([[p for image in sample for p in image] for sample in images])
    method = tp.load_method("pyramiddrop")
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        with torch.no_grad(), tp.apply(model, method) as run:
            model(**batch.inputs)
        assert [stage.layer for stage in run.stages] == list(dropped)
        for stage, wanted in zip(run.stages, expected, strict=True):
            assert [[int(p) for p in row if p >= 0] for row in stage.kept] == wanted


def test_published_defaults() -> None:
    """LLaVA-1.5-7B: layers 8, 16 and 24 of 32 leave 288, 144 and 72 of 576 tokens."""
    method = tp.load_method("pyramiddrop")
    assert method.layers.select(SelectorContext("llava", 32)).layers == (8, 16, 24)
    assert method.budget.keep(576, Schedule((8, 16, 24), 32)) == (288, 144, 72)


def test_a_model_with_too_few_layers_is_refused_before_any_forward() -> None:
    with pytest.raises(LayerError, match="are layers"):
        tp.load_method("pyramiddrop").layers.select(SelectorContext("llava", 2))


def test_a_schedule_of_other_length_is_refused_before_any_forward() -> None:
    method = tp.Method.from_dict(
        {
            "layers": {"name": "fixed", "layers": [1, 2]},
            "pruner": {"name": "topk", "scorer": {"name": "fastv"}},
            "budget": {"name": "keep_schedule", "ratios": [0.5, 0.25, 0.125]},
        }
    )
    with (
        pytest.raises(BudgetError, match="3 stages for pruning before 2 layers"),
        tp.apply(CASES["llava"].build(), method),
    ):
        pytest.fail("the block was entered")
