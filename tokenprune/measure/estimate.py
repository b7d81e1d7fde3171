"""What a method would save on a model, from the config alone: nothing is run, no weights are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenprune.budgets.base import Schedule
from tokenprune.config import Method
from tokenprune.errors import ConfigError, LayerError, MissingDataError
from tokenprune.flops import Parts, Shape, kv_cache_bytes, model_flops, prefill_cost, step_flops
from tokenprune.models.presets import PRESETS, Request
from tokenprune.registry import suggest
from tokenprune.selectors.base import ModelProfile

Row = dict[str, float]


def estimate(
    model: str, method: Method, text_tokens: int, visual_tokens: int | None = None, counted: bool = False
) -> dict[str, Any]:
    """FLOPs and cache bytes of one prompt, unpruned and pruned.

    Args:
        model: A preset, or a folder with a ``config.json``.
        method: The method; its layer selector gets no calibration samples.
        text_tokens: Text tokens of the prompt.
        visual_tokens: Visual tokens of the prompt; by default those of the preset's picture.
        counted: Also count the decoder by torch's counter and by fvcore, and a preset's tower by torch's.

    Returns:
        JSON-ready. Every row holds ``flops_unpruned``, ``flops_pruned`` and ``reduction_percent``; the keys stand at
        the top for the total (tower, projector, decoder, selection; without the output head), under ``parts`` for
        each part, and under ``decode_step`` for the first generated token. ``kv_cache_bytes`` is in bfloat16.

    Raises:
        ConfigError: Unknown preset, impossible token counts.
        BudgetError: The budget cannot be met.
        LayerError: The method's layers do not exist in the model.
        UnsupportedModelError: No closed form for the family's vision tower.
    """
    config = _config(model)
    if visual_tokens is None:
        if model not in PRESETS:
            raise ConfigError("how many visual tokens?", "give --visual-tokens; only presets have a default")
        visual_tokens = PRESETS[model].visual_tokens
    if visual_tokens < 1:
        raise ConfigError(f"{visual_tokens} visual tokens", "give at least 1")
    if text_tokens < 0:
        raise ConfigError(f"{text_tokens} text tokens", "give 0 or more")
    asked = getattr(method.budget, "tokens", None)
    if isinstance(asked, int) and asked > visual_tokens:
        raise ConfigError(
            f"a budget of {asked} tokens for {visual_tokens} visual tokens", f"ask for 1 to {visual_tokens}"
        )
    text = config.get_text_config(decoder=True)
    layers = int(text.num_hidden_layers)
    choice = method.layers.select(ModelProfile(config.model_type, layers))
    if choice.layers[-1] >= layers:
        raise LayerError(
            f"layer {choice.layers[-1]} is out of range: the model has {layers} layers", f"use 0 to {layers - 1}"
        )
    method.pruner.check(choice.layers)
    schedule = Schedule(choice.layers, layers, prefill_cost(config, text_tokens))
    kept = method.budget.keep(visual_tokens, schedule)
    whole = [visual_tokens + text_tokens] * layers
    cut = [count + text_tokens for count in schedule.per_layer(visual_tokens, kept)]
    shape = Shape.of(text)
    before = (visual_tokens, *kept[:-1])
    selection = sum(
        method.pruner.at(stage).flops(shape, visual, visual + text_tokens) for stage, visual in enumerate(before)
    )
    unpruned = model_flops(config, visual_tokens, whole)
    pruned = model_flops(config, visual_tokens, cut, selection if kept[-1] < visual_tokens else 0)
    found: dict[str, Any] = {
        "model": model,
        "method": method.label or "",
        "layers": list(choice.layers),
        "layers_reason": choice.reason,
        "visual_tokens": visual_tokens,
        "text_tokens": text_tokens,
        "kept": list(kept),
        **_row(unpruned.total, pruned.total),
        "parts": _parts(unpruned, pruned),
        "total": _row(unpruned.total, pruned.total),
        "decode_step": _row(step_flops(text, whole), step_flops(text, cut)),
        "kv_cache_bytes": {"unpruned": kv_cache_bytes(text, whole, 2), "pruned": kv_cache_bytes(text, cut, 2)},
    }
    if counted:
        found["counted"] = _counted(model, config, visual_tokens, whole, cut)
    return found


def _config(model: str) -> Any:
    if model in PRESETS:
        return PRESETS[model].config()
    if not Path(model).exists():
        raise ConfigError(
            f"unknown preset {model!r}", f"{suggest(model, PRESETS)}; or give a folder with a config.json"
        )
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise MissingDataError(
            f"no usable config.json in {model} ({str(error).splitlines()[0]})", "give a checkpoint's folder"
        ) from None


def _row(unpruned: int, pruned: int) -> Row:
    saved = 100 * (1 - pruned / unpruned) if unpruned else 0.0
    return {"flops_unpruned": unpruned, "flops_pruned": pruned, "reduction_percent": saved}


def _parts(unpruned: Parts, pruned: Parts) -> dict[str, Row]:
    whole, cut = unpruned.to_dict(), pruned.to_dict()
    return {name: _row(whole[name], cut[name]) for name in whole}


def _counted(model: str, config: Any, visual: int, whole: list[int], cut: list[int]) -> dict[str, Any]:
    """The same by counting on the device ``meta``: decoder by both counters, a preset's picture by torch's."""
    import torch
    from transformers import AutoModelForImageTextToText

    from tokenprune.measure.counted import decoder_counted, decoder_traced, pruned_decoder_counted, vision_counted

    with torch.device("meta"):
        built = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    found: dict[str, Any] = {
        "decoder": _row(decoder_counted(built, whole[0]), pruned_decoder_counted(built, cut)),
        "decoder_fvcore": {"flops_unpruned": decoder_traced(built, whole[0])},
    }
    if model in PRESETS and visual == PRESETS[model].visual_tokens:
        found["vision_and_projector"] = {"flops_unpruned": vision_counted(built, PRESETS[model].inputs([Request(1)]))}
    return found
