"""Weights that accelerate holds: those in memory are read, and those on the disk are unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

from tests.support.tiny import CASES
from tokenprune.engine import measure_entropy
from tokenprune.fingerprint import fingerprint


def scaled(factor: float) -> Any:
    """A tiny LLaVA, one weight of which is scaled."""
    built = CASES["llava"].build()
    built.get_decoder().layers[2].mlp.down_proj.weight.data.mul_(factor)
    return built


@pytest.mark.parametrize("place", ["cpu_offload", "one layer"])
def test_weights_in_memory_are_read(place: str) -> None:
    """Four checkpoints have four fingerprints: those that they have when nothing is offloaded."""
    for factor in (1.0, 2.0, 3.0, 4.0):
        built = scaled(factor)
        expected = fingerprint(built)
        if place == "cpu_offload":
            accelerate.cpu_offload(built, torch.device("cpu"))
        else:
            accelerate.cpu_offload(built.get_decoder().layers[2], torch.device("cpu"))
        assert built.get_decoder().layers[2].mlp.down_proj.weight.is_meta
        assert fingerprint(built) == expected is not None
    assert fingerprint(scaled(1)) != fingerprint(scaled(2))


def test_buffers_in_memory_are_read() -> None:
    built = scaled(1)
    built.get_decoder().norm.register_buffer("mean", torch.ones(3))
    expected = fingerprint(built)
    accelerate.cpu_offload(built, torch.device("cpu"), offload_buffers=True)
    assert built.get_decoder().norm.mean.is_meta
    assert fingerprint(built) == expected is not None


def test_weights_on_the_disk_are_unknown_and_measured_anew(tmp_path: Path) -> None:
    """No cache entry is written, and none of another checkpoint is read."""
    case = CASES["llava"]
    measured = []
    for factor in (1.0, 50.0):
        built = scaled(factor)
        inputs = case.batch(built, 2, "none", seed=1).inputs
        expected = measure_entropy(built, [inputs], cache=False)
        accelerate.disk_offload(built, str(tmp_path / f"disk{factor}"), torch.device("cpu"))
        assert fingerprint(built) is None
        found = measure_entropy(built, [inputs], cache=tmp_path / "cache")
        assert found.model == ""
        assert found.curves == expected.curves
        measured.append(found.curves)
    assert measured[0] != measured[1]
    assert not (tmp_path / "cache").exists()
