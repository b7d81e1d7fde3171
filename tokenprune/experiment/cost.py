"""The cost of one sample's prefill: visual tokens, FLOPs, bytes of the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.errors import UnsupportedModelError
from tokenprune.flops.decoder import kv_cache_bytes, prefill_flops
from tokenprune.run import Run

#: The numbers of a sample that are those of its pictures as they are, before pruning and before they are made smaller.
OF_THE_WHOLE = ("visual_before", "flops_unpruned", "kv_bytes_unpruned")


def sample_cost(
    adapter: Adapter, itemsize: int, inputs: Mapping[str, Tensor], run: Run | None, index: int, padding: int
) -> dict[str, Any]:
    """Tokens, FLOPs and cache bytes of one sample's prefill, without its padding.

    Args:
        adapter: The model's adapter.
        itemsize: Bytes of one number of the cache.
        inputs: The batch.
        run: The run that pruned the batch; None for the unpruned model.
        index: The sample's place in the batch.
        padding: Padding tokens of the sample.

    Returns:
        The numbers by name. FLOPs and bytes are None for a family without a closed form.
    """
    config = adapter.text_config
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
    return {
        "visual_before": before,
        "visual_after": after,
        "layer_average": average,
        "flops": _known(lambda: prefill_flops(config, tokens_pruned, [n - text for n in tokens_pruned])),
        "flops_unpruned": _known(lambda: prefill_flops(config, tokens_unpruned, [before] * layers)),
        "kv_bytes": _known(lambda: kv_cache_bytes(config, cached, itemsize)),
        "kv_bytes_unpruned": _known(lambda: kv_cache_bytes(config, tokens_unpruned, itemsize)),
    }


def _known(closed_form: Callable[[], int]) -> int | None:
    """The value of a closed form; None for a family without one."""
    try:
        return closed_form()
    except UnsupportedModelError:
        return None
