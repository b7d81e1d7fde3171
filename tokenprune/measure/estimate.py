"""The savings of a method on a model, computed from the config: no model is run and no weights are needed."""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from tokenprune.budgets.base import Schedule
from tokenprune.budgets.label import budget_label, in_words
from tokenprune.config import Method
from tokenprune.core.architecture import Architecture
from tokenprune.errors import ConfigError, LayerError
from tokenprune.flops.decoder import Shape, kv_cache_bytes, model_flops, prefill_cost, step_flops
from tokenprune.measure.counted import decoder_counted, decoder_traced, pruned_decoder_counted, vision_counted
from tokenprune.models.named import find_model, find_preset
from tokenprune.models.presets import Request
from tokenprune.selectors.base import SelectorContext

Row = dict[str, float]


def estimate(
    model: str, method: Method, text_tokens: int, visual_tokens: int | None = None, counted: bool = False
) -> dict[str, Any]:
    """FLOPs and cache bytes of one prompt, unpruned and pruned.

    Args:
        model: A preset, or a model with weights; see :func:`read_config`.
        method: The method; its layer selector gets no calibration samples.
        text_tokens: Text tokens of the prompt.
        visual_tokens: Visual tokens of the prompt; by default those of the preset's picture.
        counted: Also count the decoder with torch's counter and with fvcore, and a preset's tower with torch's.

    Returns:
        JSON-ready. Every row holds ``flops_unpruned``, ``flops_pruned`` and ``reduction_percent``. These keys are
        at the top level for the total (tower, projector, decoder, selection; without the output head), under
        ``parts`` for each part, and under ``decode_step`` for the first generated token. ``kv_cache_bytes`` is for
        bfloat16.

    Raises:
        ConfigError: Unknown preset, impossible token counts, or the method was tuned for another architecture.
        BudgetError: The budget cannot be met.
        LayerError: The method's layers do not exist in the model.
        UnsupportedModelError: No closed form for the family's vision tower or decoder.
    """
    config = read_config(model)
    method.check_fits(Architecture.of(config))
    if visual_tokens is None:
        preset = find_preset(model)
        if preset is None:
            raise ConfigError(
                "the number of visual tokens is missing", "give --visual-tokens; only presets have a default"
            )
        visual_tokens = preset.visual_tokens
    if visual_tokens < 1:
        raise ConfigError(f"{visual_tokens} visual tokens", "give at least 1")
    if text_tokens < 0:
        raise ConfigError(f"{text_tokens} text tokens", "give 0 or more")
    count = method.budget.largest_count or 0
    if count > visual_tokens:
        raise ConfigError(
            f"a budget of {in_words(budget_label(method.budget))}, for {visual_tokens} visual tokens",
            f"ask for 1 to {visual_tokens}",
        )
    text_config = config.get_text_config(decoder=True)
    num_layers = int(text_config.num_hidden_layers)
    profile = SelectorContext(config.model_type, num_layers, architecture=Architecture.of(config))
    choice = method.layers.select(profile)
    if choice.layers[-1] >= num_layers:
        raise LayerError(
            f"layer {choice.layers[-1]} is out of range: the model has {num_layers} layers",
            f"use 0 to {num_layers - 1}",
        )
    method.pruner.check(choice.layers)
    schedule = Schedule(choice.layers, num_layers, prefill_cost(config, text_tokens))
    kept = method.budget.keep(visual_tokens, schedule)
    selection = sum(
        method.pruner.at(stage).flops(Shape.of_stage(config, layer), visual, visual + text_tokens)
        for stage, (layer, visual) in enumerate(zip(choice.layers, (visual_tokens, *kept[:-1]), strict=True))
    )
    per_layer = {"unpruned": [visual_tokens] * num_layers, "pruned": schedule.per_layer(visual_tokens, kept)}
    tokens = {name: [count + text_tokens for count in visual] for name, visual in per_layer.items()}
    cached = dict(tokens)
    if method.cut_earlier_caches:
        cached["pruned"] = [tokens["pruned"][-1]] * num_layers
    added = {"unpruned": 0, "pruned": selection if kept[-1] < visual_tokens else 0}
    unpruned, pruned = (
        model_flops(config, visual_tokens, tokens[name], added[name], per_layer[name]) for name in tokens
    )
    parts = zip(unpruned.to_dict().items(), pruned.to_dict().values(), strict=True)
    result: dict[str, Any] = {
        "model": model,
        "method": method.label or "",
        "budget": in_words(budget_label(method.budget)),
        "layers": list(choice.layers),
        "layers_reason": choice.reason,
        "visual_tokens": visual_tokens,
        "text_tokens": text_tokens,
        "kept": list(kept),
        **_row(unpruned.total, pruned.total),
        "parts": {part: _row(before, after) for (part, before), after in parts},
        "total": _row(unpruned.total, pruned.total),
        "decode_step": _row(*(step_flops(text_config, lengths) for lengths in cached.values())),
        "kv_cache_bytes": {name: kv_cache_bytes(text_config, lengths, 2) for name, lengths in cached.items()},
    }
    if counted:
        result["counted"] = _counted(model, config, visual_tokens, **tokens)
    return result


def read_config(model: str) -> Any:
    """The config of a model by its name: an architecture without weights, a checkpoint, or a plugin's model.

    Raises:
        ConfigError: The name stands for nothing, or the model does not show its config.
        MissingDataError: The checkpoint has no usable config, or it is not found.
    """
    preset = find_preset(model)
    return find_model(model, "model").read_config() if preset is None else preset.config()


def _row(unpruned: int, pruned: int) -> Row:
    reduction = 100 * (1 - pruned / unpruned) if unpruned else 0.0
    return {"flops_unpruned": unpruned, "flops_pruned": pruned, "reduction_percent": reduction}


def _counted(model: str, config: Any, visual_tokens: int, unpruned: list[int], pruned: list[int]) -> dict[str, Any]:
    """FLOPs counted on the device ``meta``: the decoder by both counters, a preset's picture by torch's.

    Args:
        model: See :func:`estimate`.
        config: Its config.
        visual_tokens: Visual tokens of the prompt.
        unpruned: Tokens that each layer of the unpruned decoder sees.
        pruned: Tokens that each layer of the pruned one sees.
    """
    with torch.device("meta"):
        meta_model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    result: dict[str, Any] = {
        "decoder": _row(decoder_counted(meta_model, unpruned[0]), pruned_decoder_counted(meta_model, pruned)),
        "decoder_fvcore": {"flops_unpruned": decoder_traced(meta_model, unpruned[0])},
    }
    preset = find_preset(model)
    if preset is not None and visual_tokens == preset.visual_tokens:
        inputs = preset.inputs([Request(1)])
        result["vision_and_projector"] = {"flops_unpruned": vision_counted(meta_model, inputs)}
    return result
