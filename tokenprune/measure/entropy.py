"""Measuring the entropy curves of a model on calibration inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor, nn

from tokenprune.errors import ConfigError
from tokenprune.ops.entropy import state_entropy
from tokenprune.selectors.entropy_profile import EntropyProfile


def measure_entropy(
    model: nn.Module, calibration: Sequence[Mapping[str, Any]], cache: bool | Path = True
) -> EntropyProfile:
    """Run calibration inputs through the unpruned model and record its entropy curves.

    Args:
        model: A supported transformers model.
        calibration: Inputs as for ``model(**inputs)``; every sample of every batch gives one curve.
        cache: Keep the result in the user's cache folder (or the given one), keyed by configuration, weights and
            inputs, and read it from there next time.
    """
    from tokenprune.adapters import adapter_for
    from tokenprune.engine import observe

    adapter = adapter_for(model)
    folder = cache if isinstance(cache, Path) else user_cache_path("tokenprune") / "entropy"
    path = folder / f"{fingerprint(model, calibration)}.json"
    if cache and path.is_file():
        try:
            return EntropyProfile.load(path)
        except ConfigError:
            path.unlink()  # an old or broken entry is measured again
    curves: list[tuple[float, ...]] = []
    for inputs in calibration:
        columns: dict[int, Tensor] = {}

        def record(layer: int, hidden: Tensor, mask: Tensor, into: dict[int, Tensor] = columns) -> None:
            into[layer] = state_entropy(hidden, mask).cpu()

        observe(model, inputs, record)
        stacked = torch.stack([columns[layer] for layer in range(adapter.num_layers)], dim=1)
        curves += [tuple(row) for row in stacked.tolist()]
    profile = EntropyProfile(family=adapter.name, num_layers=adapter.num_layers, curves=tuple(curves))
    if cache:
        profile.save(path)
    return profile


def fingerprint(model: nn.Module, calibration: Sequence[Mapping[str, Any]]) -> str:
    """A key of a model and its calibration inputs: configuration, a sample of every weight, all inputs."""
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    digest.update(json.dumps(config.to_dict() if config is not None else {}, sort_keys=True, default=str).encode())
    for name, weight in model.state_dict().items():
        digest.update(name.encode())
        if weight.numel() and weight.device.type != "meta":
            digest.update(weight.flatten()[:: max(1, weight.numel() // 64)].float().cpu().numpy().tobytes())
    for inputs in calibration:
        for name in sorted(inputs):
            value = inputs[name]
            digest.update(name.encode())
            if isinstance(value, Tensor):
                digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:24]
