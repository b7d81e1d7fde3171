"""A precision has one name in files, whatever it was called."""

from __future__ import annotations

import pytest
import torch

from tokenprune.errors import ConfigError
from tokenprune.measure.bench import BenchConfig
from tokenprune.models.hf import HuggingFace


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("bf16", "bfloat16"),
        ("BF16", "bfloat16"),
        ("torch.bfloat16", "bfloat16"),
        (torch.bfloat16, "bfloat16"),
        ("fp16", "float16"),
        ("half", "float16"),
        ("fp32", "float32"),
        ("float", "float32"),
        ("float32", "float32"),
        ("auto", "auto"),
    ],
)
def test_other_names_of_a_precision(given: object, name: str) -> None:
    """The settings are equal, so that results folders and fingerprints are."""
    assert HuggingFace.model_validate({"checkpoint": "x", "dtype": given}).dtype == name
    assert BenchConfig.from_dict({"dtype": given}).model_dump(mode="json")["dtype"] == name


@pytest.mark.parametrize("given", ["float64", "bf8", "", 16, None])
def test_what_is_no_precision(given: object) -> None:
    with pytest.raises(ConfigError, match="dtype: Input should be 'auto', 'float32', 'bfloat16' or 'float16', got"):
        HuggingFace(checkpoint="x", dtype=given)


def test_the_precision_of_quantized_products() -> None:
    settings = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bf16"}
    read = HuggingFace.model_validate({"checkpoint": "x", "quantization": settings}).quantization
    assert read == {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}
