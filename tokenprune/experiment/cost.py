"""The cost of one sample's prefill: visual tokens, FLOPs, bytes of the KV cache."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.errors import UnsupportedModelError
from tokenprune.flops.decoder import Shape, cache_bytes_of_shapes, flops_of_shapes, shapes_of
from tokenprune.run import Run

#: The numbers of a sample that are those of its pictures as they are, before pruning and before they are made smaller.
OF_THE_WHOLE = ("visual_before", "flops_unpruned", "kv_bytes_unpruned")


def known_shapes(adapter: Adapter) -> tuple[Shape, ...] | None:
    """The shapes of a model's decoder layers; None for a family without a closed form."""
    try:
        return shapes_of(adapter.text_config, adapter.num_layers)
    except UnsupportedModelError:
        return None


def batch_costs(
    adapter: Adapter,
    shapes: Sequence[Shape] | None,
    itemsize: int,
    inputs: Mapping[str, Tensor],
    run: Run | None,
    whole: Mapping[str, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """What the prefill of each sample of a batch costs; see :func:`sample_cost`.

    Args:
        adapter: The model's adapter.
        shapes: What :func:`known_shapes` says of the model.
        itemsize: Bytes of one number of the cache.
        inputs: The batch as the model was shown it.
        run: The run that pruned the batch; None for the unpruned model.
        whole: The batch with its pictures as they are, where the model was shown smaller ones.
    """
    count = len(inputs["input_ids"])
    padding = (inputs["attention_mask"] == 0).sum(1).tolist() if "attention_mask" in inputs else [0] * count
    costs = [sample_cost(adapter, shapes, itemsize, inputs, run, index, int(padding[index])) for index in range(count)]
    if whole is None:
        return costs
    full = batch_costs(adapter, shapes, itemsize, whole, None)
    return [cost | {name: of[name] for name in OF_THE_WHOLE} for cost, of in zip(costs, full, strict=True)]


def sample_cost(
    adapter: Adapter,
    shapes: Sequence[Shape] | None,
    itemsize: int,
    inputs: Mapping[str, Tensor],
    run: Run | None,
    index: int,
    padding: int,
) -> dict[str, Any]:
    """Tokens, FLOPs and cache bytes of one sample's prefill, without its padding.

    Args:
        adapter: The model's adapter.
        shapes: What :func:`known_shapes` says of the model.
        itemsize: Bytes of one number of the cache.
        inputs: The batch.
        run: The run that pruned the batch; None for the unpruned model.
        index: The sample's place in the batch.
        padding: Padding tokens of the sample.

    Returns:
        The numbers by name. FLOPs and bytes are None for a family without a closed form.
    """
    layers = adapter.num_layers
    length = inputs["input_ids"].shape[1] - padding
    if run is None:
        mask = adapter.visual_mask({"input_ids": inputs["input_ids"][index : index + 1]})
        before = after = int(mask.sum()) if mask is not None else 0
        average = float(before)
        tokens_pruned = cached = [length] * layers
    else:
        report = run.report
        before, after, average = report.before[index], report.after[index], report.layer_average(index)
        tokens_pruned = [tokens - padding for tokens in report.tokens_per_layer(index)]
        cached = [tokens - padding for tokens in report.cached_per_layer(index)]
    tokens_unpruned = [length] * layers
    text = length - before
    cost: dict[str, Any] = {"visual_before": before, "visual_after": after, "layer_average": average}
    if shapes is None:
        return cost | dict.fromkeys(("flops", "flops_unpruned", "kv_bytes", "kv_bytes_unpruned"))
    return cost | {
        "flops": flops_of_shapes(shapes, tokens_pruned, [tokens - text for tokens in tokens_pruned]),
        "flops_unpruned": flops_of_shapes(shapes, tokens_unpruned, [before] * layers),
        "kv_bytes": cache_bytes_of_shapes(shapes, cached, itemsize),
        "kv_bytes_unpruned": cache_bytes_of_shapes(shapes, tokens_unpruned, itemsize),
    }
