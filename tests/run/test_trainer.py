"""Fine-tuning with pruned images, with PEFT in the Trainer of transformers: it learns, and what it wrote is exact."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel, Trainer, TrainingArguments

import tokenprune as tp
from tests.support import matrix
from tests.support.oracle import oracle_logits, tolerance
from tests.support.tiny import CASES
from tests.support.tiny.core import TRANSFORMERS
from tokenprune.engine.loss import IGNORED

CASE = CASES["llava"]
METHOD = matrix.method([1, 2], {"name": "keep_ratio", "ratio": 0.33})
ANSWER = 4
NO_PREDICTIONS = ["image_outputs", "image_hidden_states", "cache", "past_key_values"]
"""Outputs that Trainer.predict cannot gather, without pruning either."""
Sample = dict[str, Tensor]


def samples() -> list[Sample]:
    """Six samples of one or two images; the last tokens of each are its answer."""
    images = [[("image", 0)]] * 4 + [[("image", 0), ("image", 0)]] * 2
    _, alone = CASE.mixed(CASE.build(), images, "right", seed=5)
    out = []
    for one in alone:
        labels = one.inputs["input_ids"].clone()
        labels[:, :-ANSWER] = IGNORED
        words = {name: one.inputs[name][0] for name in ("input_ids", "attention_mask")}
        out.append({**words, "labels": labels[0], "pixel_values": one.inputs["pixel_values"]})
    return out


def collate(batch: list[Sample]) -> Sample:
    longest = max(len(sample["input_ids"]) for sample in batch)
    out = {"pixel_values": torch.cat([sample["pixel_values"] for sample in batch])}
    for name, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", IGNORED)):
        rows = [nn.functional.pad(s[name], (0, longest - len(s[name])), value=fill) for s in batch]
        out[name] = torch.stack(rows)
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as ``save_pretrained`` writes it."""
    folder = tmp_path_factory.mktemp("base")
    CASE.build().save_pretrained(folder)
    return folder


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def trainer_of(model: nn.Module, folder: Path, **more: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        num_train_epochs=4,
        per_device_train_batch_size=3,
        per_device_eval_batch_size=6,
        learning_rate=3e-2,
        save_strategy="epoch",
        eval_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        **more,
    )
    rows = samples()
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate)


def adapted(base: Path) -> Any:
    torch.manual_seed(0)
    return peft.get_peft_model(load(base), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


@torch.no_grad()
def judged(model: PreTrainedModel, called: nn.Module, inputs: Sample) -> Tensor:
    """The loss of a pruned forward, after a comparison of its logits and its loss with the oracle."""
    with tp.apply(called, METHOD) as run:
        run.annotate(sample_ids=range(len(inputs["input_ids"])))
        output = called(**inputs)
    stages = matrix.stages_of(run)
    prompt = {name: value for name, value in inputs.items() if name != "labels"}
    full = oracle_logits(model, prompt, stages, CASE.visual_ids)
    rows = run.stages[-1].rows
    real = (rows >= 0) & inputs["attention_mask"].bool().gather(1, rows.clamp(min=0))
    expected = full.gather(1, rows.clamp(min=0)[:, :, None].expand(-1, -1, full.shape[-1]))
    assert matrix.difference(output.logits[real], expected[real]) <= tolerance(full)
    assert run.report.lost_targets == [0] * len(rows)  # an answer is predicted by text
    loss = nn.functional.cross_entropy(full[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    torch.testing.assert_close(output.loss, loss, rtol=1e-5, atol=1e-5)
    return output.loss


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, list[float], Path]:
    """The trainer when its block has ended, the pruned losses before, while and after it learned, and its folder."""
    folder = tmp_path_factory.mktemp("lora")
    trainer = trainer_of(adapted(base), folder, gradient_accumulation_steps=2)
    with tp.apply(trainer.model, METHOD) as run:
        losses = [trainer.evaluate()["eval_loss"]]
        trainer.train()
        losses += [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        found = trainer.predict(samples(), ignore_keys=NO_PREDICTIONS)
        losses.append(found.metrics["test_loss"])
        assert found.predictions.shape[:2] == run.stages[-1].rows.shape
    return trainer, losses, folder


def test_the_loss_falls(trained: tuple[Trainer, list[float], Path]) -> None:
    _, losses, _ = trained
    assert len(losses) == 6
    assert losses[-1] < 0.8 * losses[0]


def test_what_was_trained_is_exact_pruned_and_unpruned(trained: tuple[Trainer, list[float], Path]) -> None:
    """With the adapter beside the weights and merged into them."""
    trainer, losses, folder = trained
    model, inputs = trainer.model, collate(samples())
    pruned = judged(model.get_base_model(), model, inputs)
    torch.testing.assert_close(pruned, torch.tensor(losses[-1]), rtol=0.2, atol=0)  # other random tokens
    with torch.no_grad():
        unpruned = model(**inputs)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(unpruned.loss), rel=1e-5)
    assert unpruned.logits.shape[1] == inputs["input_ids"].shape[1]

    (last,) = folder.glob("checkpoint-4")
    merged: Any = peft.PeftModel.from_pretrained(load(Path(model.peft_config["default"].base_model_name_or_path)), last)
    merged = merged.merge_and_unload()
    torch.testing.assert_close(judged(merged, merged, inputs), pruned, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).loss, unpruned.loss, rtol=1e-4, atol=1e-5)


def test_a_model_saved_inside_the_block_is_an_ordinary_one(base: Path, tmp_path: Path) -> None:
    """All weights are trained, in bfloat16: accelerate wraps the model's forward while it is pruned."""
    trainer = trainer_of(load(base), tmp_path, bf16=True, max_steps=2)
    with tp.apply(trainer.model, METHOD):
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
    inputs = collate(samples())
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs)
        for folder in (tmp_path / "saved", tmp_path / "checkpoint-2"):
            found = load(folder)
            assert found.state_dict().keys() == load(base).state_dict().keys()
            with torch.autocast("cpu", torch.bfloat16):
                torch.testing.assert_close(found(**inputs).loss, expected.loss, rtol=1e-3, atol=0)
    again = load(tmp_path / "saved")
    assert judged(again, again, inputs) > 0


def test_checkpointing_in_the_trainer_changes_no_loss(base: Path, tmp_path: Path) -> None:
    losses = []
    for checkpointed in (False, True):
        trainer = trainer_of(adapted(base), tmp_path, gradient_checkpointing=checkpointed, max_steps=3)
        refused: Any = nullcontext()
        if checkpointed and TRANSFORMERS < (5, 20):
            refused = pytest.raises(tp.TokenPruneError, match="gradient checkpointing")
        with tp.apply(trainer.model, METHOD), refused:
            losses.append(trainer.train().training_loss)
    assert len(set(losses)) == 1
