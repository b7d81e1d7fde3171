"""The model inside a wrapper: what will really run."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tokenprune.errors import UnsupportedFeatureError

#: Names under which wrappers hold the model: ``torch.compile``, ``DistributedDataParallel``.
_INNER_NAMES = ("_orig_mod", "module")

#: Wrappers that run copies or shards of the model instead of the model itself: why, and what to do.
_REFUSED = {
    "DataParallel": (
        "it runs copies of the model, one per device",
        "apply it to the model itself, in a process per device",
    ),
    "FullyShardedDataParallel": (
        "it gathers the parameters of one wrapped module at a time",
        "apply it to the model itself; fully_shard (FSDP2) shards a model without wrapping its layers",
    ),
}


def unwrap(model: Any) -> Any:
    """The transformers model inside PEFT models, compiled modules and ``DistributedDataParallel``.

    Raises:
        UnsupportedFeatureError: The wrapper does not run the model itself, or changes its prompts.
    """
    while not isinstance(model, PreTrainedModel) and (inner := _inner(model)) is not None:
        model = inner
    return model


def _inner(model: Any) -> nn.Module | None:
    name = type(model).__name__
    if name in _REFUSED:
        why, fix = _REFUSED[name]
        raise UnsupportedFeatureError(f"a method cannot be applied to {name}: {why}", fix)
    if callable(getattr(type(model), "get_base_model", None)):  # PEFT
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise UnsupportedFeatureError(
                f"{name} puts learned tokens before the prompt, so positions of visual tokens are unknown",
                "use an adapter that changes weights (LoRA), or merge it",
            )
        base: nn.Module = model.get_base_model()
        return base
    children = getattr(model, "_modules", {})
    return next((children[inner] for inner in _INNER_NAMES if children.get(inner) is not None), None)
