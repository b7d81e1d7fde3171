"""A tiny model and task for experiments in tests. The model is random, so its answers are arbitrary but fixed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.support.tiny import CASES
from tokenprune.experiment import ExperimentConfig, ExperimentResult, run_experiment
from tokenprune.models.base import LoadedModel, ModelSpec
from tokenprune.tasks.base import Sample, Task, different_images


class Letters:
    """A minimal tokenizer: every id is a word."""

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool = True) -> list[str]:
        return [" ".join(f"w{i}" for i in row.tolist()) for row in ids]


class ToyModel(ModelSpec):
    """The tiny random LLaVA: 16 visual tokens per picture.

    Attributes:
        delay: Seconds that every batch takes longer.
    """

    delay: float = 0.0

    def load(self) -> LoadedModel:
        model = CASES["llava"].build()

        def encode(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
            time.sleep(self.delay)
            rows = [[1, *[150] * 16, *(3 + ord(letter) % 90 for letter in sample.question)] for sample in samples]
            width = max(map(len, rows))
            ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
            images = [np.asarray(sample.images[0], dtype=np.float32) for sample in samples]
            pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
            return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}

        return LoadedModel(model, Letters(), "toy", encode, 16)


class ToyTask(Task):
    """Noise pictures; an answer counts as right when its first word has an even number."""

    questions: int = 24
    split: str = "test"

    def samples(self) -> Sequence[Sample]:
        made = []
        for number in range(self.questions):
            rng = np.random.default_rng([number // 2, len(self.split)])
            picture = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
            mask = np.zeros((32, 32), dtype=bool)
            mask[:8, :16] = True
            kind = "odd" if number % 2 else "even"
            made.append(
                Sample(f"s{number}", (picture,), "abcdefgh"[: 2 + number % 5], "w", kind, f"g{number // 2}", (mask,))
            )
        return made

    def calibration(self, count: int) -> Sequence[Sample]:
        return different_images(ToyTask(split="train", questions=10 * count).samples(), count)

    def score(self, sample: Sample, text: str) -> float:
        return float(int(text.split()[0][1:]) % 2 == 0)


def config(output: str, delay: float = 0.0, **changes: Any) -> ExperimentConfig:
    """The toy experiment."""
    plain: dict[str, Any] = {
        "model": ToyModel(delay=delay),
        "task": ToyTask(),
        "methods": ["norm-hidden-large", {"name": "random", "seeds": [0, 1]}],
        "budgets": [{"name": "keep_ratio", "ratio": 0.5}, {"name": "keep_count", "tokens": 2}],
        "output": output,
        "batch_size": 5,
        "timing": 0,
        "calibration": 0,
        "examples": 0,
        "max_new_tokens": 2,
    }
    return ExperimentConfig.from_dict(plain | changes)


def completed(output: Path, **changes: Any) -> ExperimentResult:
    """Run the toy experiment, or copy the folder of this process's earlier run with the same changes.

    Not for tests that patch what runs.
    """
    key = config("any", **changes).to_yaml()
    if key not in _COMPLETED:
        _COMPLETED[key] = tempfile.TemporaryDirectory()
        run_experiment(config(_COMPLETED[key].name, **changes))
    shutil.copytree(_COMPLETED[key].name, output, dirs_exist_ok=True)
    (output / "config.yaml").write_text(config(str(output), **changes).to_yaml())
    return run_experiment(config(str(output), **changes))


_COMPLETED: dict[str, tempfile.TemporaryDirectory[str]] = {}


def run_slowly(output: Path, progress: Callable[[str, int, int], None]) -> None:
    """Run the toy experiment so slowly that a test can kill it."""
    run_experiment(config(str(output), delay=0.05), progress)
