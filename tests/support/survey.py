"""Every image-text model type of the installed transformers: built, and shown to its adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, get_args

import torch
import transformers as tf
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

import tokenprune as tp
from tests.support import matrix
from tests.support.tiny import EVERY, UPSTREAM_FAULTS, TinyCase
from tests.support.tiny.core import IMAGE
from tokenprune.adapters import adapter_for
from tokenprune.adapters.base import Adapter

TYPES: dict[str, Any] = dict(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
"""Model type -> name of the model's class."""
EXACT, FORWARD, LAST, REFUSED, ADAPTER, BROKEN, UNTESTED = (
    "exact",
    "exact in `forward`",
    "exact in the last layers",
    "refused",
    "needs an adapter",
    "broken upstream",
    "accepted, not tested",
)
USABLE = (EXACT, FORWARD, LAST)
INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 64}
SETTINGS: dict[str, dict[str, Any]] = {
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
        "vision_config": {"model_type": "gemma4_vision"},
    },
    "nemotron_h_omni": {"image_token_id": IMAGE},
    "qwen4_exp": {"text_config": {"num_hidden_layers": 8, "ple_embed_dim": 64, "indexer_compress_ratio": 4, **INDEXER}},
    "vision-encoder-decoder": {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}},
}
"""What default configs lack: models without it cannot be built, or have no visual tokens."""


@dataclass(frozen=True)
class Finding:
    """What is known of a model type.

    Attributes:
        status: One of the words above.
        cases: Its tiny models in the contract matrix, by name.
        signals: What scorers may read, beside hidden states.
        why: Why it is refused, in the words of the error; or what transformers says.
    """

    status: str
    cases: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    why: str = ""


@lru_cache(maxsize=1)
def cases_by_type() -> dict[str, list[TinyCase]]:
    """The tiny models of each model type that the installed transformers has."""
    found: dict[str, list[TinyCase]] = {}
    for case in EVERY.values():
        found.setdefault(case.create().config.model_type, []).append(case)
    return found


def default_model(model_type: str) -> PreTrainedModel:
    """The model of a type's default config, without weights."""
    name = TYPES[model_type]
    model_class: Any = getattr(tf, name if isinstance(name, str) else name[0])
    config = tf.CONFIG_MAPPING[model_type](**SETTINGS.get(model_type, {}))
    if model_type == "gemma3n":  # its tower is one of timm, which need not be there
        tower = tf.SiglipVisionConfig()
        tower.vocab_offset, tower.vocab_size, tower.rms_norm_eps = 0, 128, 1e-6
        object.__setattr__(config, "vision_config", tower)
    with torch.device("meta"):
        return model_class(config)  # type: ignore[no-any-return]


def structure_of(model_type: str) -> Finding:
    """What the adapter says of a type's model. Nothing runs."""
    cases = cases_by_type().get(model_type, [])
    names = tuple(case.name for case in cases)
    broken = next((UPSTREAM_FAULTS[name] for name in names if name in UPSTREAM_FAULTS), None)
    if broken:
        return Finding(BROKEN, names, why=f"unpruned: {broken}")
    findings = [accepted(case.build(), case) for case in cases] or [accepted(default_model(model_type), None)]
    best = next((f for f in findings if f.status in USABLE), findings[0])
    others = [f"with other settings: {f.why}" for f in findings if f.status not in USABLE and f is not best]
    return Finding(best.status, names, best.signals, best.why or "".join(others[:1]))


def accepted(model: PreTrainedModel, case: TinyCase | None) -> Finding:
    """From which layer on an adapter accepts a model, and the signals that it can read there."""
    try:
        adapter = adapter_for(model)
    except tp.TokenPruneError as error:
        return refusal(error)
    reasons = [reason(partial(adapter.stack.check_exact, layer)) for layer in range(adapter.num_layers)]
    if reasons[-1] is not None:
        return refusal(reasons[-1])
    if case is None:
        return Finding(UNTESTED)
    first = reasons.index(None)
    status = FORWARD if not case.generates else EXACT if first == 0 else LAST
    why = reasons[0].what.partition(": ")[2] if reasons[0] is not None else ""
    return Finding(status, (case.name,), signals(adapter, first), why)


def reason(check: Callable[[], Any]) -> tp.TokenPruneError | None:
    """The error of a check, if it has one."""
    try:
        check()
    except tp.TokenPruneError as error:
        return error
    return None


def refusal(error: tp.TokenPruneError) -> Finding:
    """The finding that an error is."""
    return Finding(ADAPTER if "write an adapter" in error.fix else REFUSED, why=error.what)


def signals(adapter: Adapter, first: int) -> tuple[str, ...]:
    """What scorers may read of all layers from ``first`` on, beside hidden states."""
    layers = range(first, adapter.num_layers)

    def everywhere(check: Callable[[int], Any]) -> bool:
        return all(reason(partial(check, layer)) is None for layer in layers)

    states = everywhere(partial(adapter.stack.projections, names=frozenset({"query", "key", "value"})))
    rows = states and everywhere(adapter.stack.check_attention_rows)
    read = {
        "query, key, value": states,
        "attention": rows,
        "entering": rows and everywhere(adapter.stack.entering_norm),
        "tower": reason(partial(adapter.tower_site, 0)) is None,
    }
    return tuple(name for name, there in read.items() if there)


def judged(model_type: str) -> Finding:
    """The finding, after every cell of the contract matrix has been run for its cases.

    Raises:
        AssertionError: A cell is not what the oracle says, or every cell of a model that is accepted is refused.
    """
    finding = structure_of(model_type)
    if finding.status not in USABLE:
        return finding
    refused = {name: refused_layers(name) for name in finding.cases}
    some = [layers for layers in refused.values() if len(layers) < len(get_args(matrix.Layer))]
    assert some, f"{model_type}: every cell was refused: {refused}"
    if finding.status == EXACT and all(some):  # what a call brings may rule out layers (Granite 4 Vision)
        return replace(finding, status=LAST, why=next(iter(some[0].values())).what)
    return finding


def refused_layers(name: str) -> dict[str, tp.TokenPruneError]:
    """The layers of a case at which every cell is refused, and one of the errors. What runs is judged.

    Raises:
        AssertionError: A cell is not what the oracle says.
    """
    found: dict[str, tp.TokenPruneError] = {}
    exact = set()
    for cell in matrix.cells([name]):
        try:
            result = matrix.run_cell(cell)
        except tp.TokenPruneError as error:
            found[cell.layer] = error
        else:
            assert result.worst <= result.allowed, f"{cell}: {result}"
            exact.add(cell.layer)
    return {layer: error for layer, error in found.items() if layer not in exact}
