"""The fingerprint of a processor: what inputs depend on, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from tokenprune.models.processor import processor_fingerprint


def of(folder: Path) -> str | None:
    return processor_fingerprint(AutoProcessor.from_pretrained(folder))


def template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text("w3 " + path.read_text())


def mean(folder: Path) -> None:
    path = folder / "processor_config.json"
    kept = json.loads(path.read_text())
    kept["image_processor"]["image_mean"] = [0.9, 0.9, 0.9]
    path.write_text(json.dumps(kept))


def vocabulary(folder: Path) -> None:
    path = folder / "tokenizer.json"
    kept = json.loads(path.read_text())
    kept["model"]["vocab"]["another"] = len(kept["model"]["vocab"]) + 50
    path.write_text(json.dumps(kept))


@pytest.mark.parametrize("change", [template, mean, vocabulary])
def test_what_changes_inputs_changes_it(
    folders: dict[str, Path], tmp_path: Path, change: Callable[[Path], None]
) -> None:
    here = tmp_path / "checkpoint"
    shutil.copytree(folders["llava"], here)
    assert of(here) == of(folders["llava"]) is not None  # wherever it lies
    change(here)
    assert of(here) != of(folders["llava"])


def test_using_it_changes_nothing(folders: dict[str, Path]) -> None:
    """A call sets padding and truncation of the tokenizer."""
    processor: Any = AutoProcessor.from_pretrained(folders["llava"])
    before = processor_fingerprint(processor)
    processor.tokenizer(["a", "a a"], padding=True, truncation=True, max_length=3)
    assert processor_fingerprint(processor) == before


def test_an_object_of_ones_own_is_known_by_its_class() -> None:
    class Own:
        pass

    assert processor_fingerprint(Own()) == processor_fingerprint(Own()) is not None
