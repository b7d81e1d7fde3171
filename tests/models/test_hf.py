"""Checkpoints that transformers' auto classes load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import tokenprune as tp
from tests.support.checkpoints import FAMILIES
from tokenprune.errors import MissingDataError, TokenPruneError, UnsupportedModelError
from tokenprune.experiment import markdown
from tokenprune.models.hf import HuggingFace
from tokenprune.tasks.base import Sample


def test_a_missing_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="cannot be loaded"):
        HuggingFace(checkpoint=str(tmp_path / "nothing")).load()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny LLaVA with its real processor, as ``save_pretrained`` writes them."""
    return FAMILIES["llava"].save(tmp_path / "llava")


def test_a_checkpoint_answers(checkpoint: Path) -> None:
    loaded = HuggingFace(checkpoint=str(checkpoint), system="brief", dtype="float32", device="cpu").load()
    pictures = [Image.new("RGB", size, "red") for size in ((40, 30), (64, 64))]
    samples = [Sample(f"s{i}", (picture,), "what is this", "", "", "") for i, picture in enumerate(pictures)]
    batch = loaded.encode(samples)
    assert (batch["input_ids"] == 150).sum(1).tolist() == [16, 16]
    assert batch["input_ids"][0, :3].tolist() == [5, 9, 4]  # SYSTEM brief USER
    with torch.no_grad():
        ids = loaded.model.generate(**batch, max_new_tokens=2, do_sample=False)
    assert len(loaded.decode(ids[:, -2:])) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"{}"),
        ("model.safetensors", b"\x00" * 20),
        ("model.safetensors", None),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", None),
    ],
)
def test_a_damaged_checkpoint_is_one_line(checkpoint: Path, name: str, content: bytes | None) -> None:
    path = checkpoint / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises((MissingDataError, UnsupportedModelError), match="llava' ") as caught:
        HuggingFace(checkpoint=str(checkpoint)).load()
    assert isinstance(caught.value, TokenPruneError)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_from_a_checkpoint_and_ten_questions_to_a_table(checkpoint: Path, tmp_path: Path) -> None:
    """Own pictures, own questions, a checkpoint from a folder; one line is bad."""
    for number in range(5):
        Image.new("RGB", (30 + number, 40), (40 * number, 90, 200)).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{number // 2}.png", "question": "what is this", "answer": "Answer"} for number in range(10)]
    rows[3]["image"] = "missing.png"
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    experiment = tp.ExperimentConfig.from_dict(
        {
            "model": {"name": "hf", "checkpoint": str(checkpoint), "device": "cpu", "dtype": "float32"},
            "task": {"name": "vqa", "data": str(tmp_path / "q.jsonl")},
            "methods": ["fastv", "random", "divprune"],
            "budgets": [{"name": "keep_ratio", "ratio": 0.25}],
            "output": str(tmp_path / "out"),
            "timing": 0,
        }
    )
    result = tp.run_experiment(experiment)
    text = markdown(result)
    assert "9 questions on 5 pictures" in text
    assert "**1 sample could not be used;" in text
    assert "q.jsonl, line 4" in text
    assert "missing.png" in text
    assert {row["visual_after"] for row in result.rows if row["method"] != "unpruned"} == {4}
    assert len(result.rows) == 4 * 9
