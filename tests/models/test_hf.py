"""Checkpoints that transformers' auto classes load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

import tokenprune as tp
from tests.support.tiny import CASES
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
    words = ["<pad>", "<s>", "</s>", "<unk>", "USER", "SYSTEM", "what", "is", "this", "brief", "Answer"]
    vocabulary = {word: index for index, word in enumerate(words)} | {"<image>": 150}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    template = (
        "{% for turn in messages %}{{ turn.role.upper() }} {% for part in turn.content %}"
        "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    )
    pixels = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    processor = LlavaProcessor(
        pixels, fast, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template, image_token="<image>",
    )  # fmt: skip
    CASES["llava"].build().save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    return tmp_path / "llava"


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
    assert "1 samples could not be used" in text
    assert "q.jsonl, line 4" in text
    assert "missing.png" in text
    assert {row["visual_after"] for row in result.rows if row["method"] != "unpruned"} == {4}
    assert len(result.rows) == 4 * 9
