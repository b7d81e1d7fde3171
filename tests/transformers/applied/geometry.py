"""Prompts of the tests with enough visual tokens to drop half of them, and text behind the last."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch

PATCHES = 8
"""Visual tokens of a Qwen image: one grid of 2 x 4 patches, no merging."""

OWN_PROMPTS = ("test_mismatching_num_image_tokens", "test_vision_position_ids")
"""Tests that make prompts of their own out of the narrow ones."""


def widen(modules: Iterable[ModuleType]) -> None:
    """Change the testers of these modules of tests."""
    for module in modules:
        for name, cls in list(vars(module).items()):
            if inspect.isclass(cls) and cls.__module__ == module.__name__:
                for change in (change for end, change in CHANGES.items() if name.endswith(end)):
                    change(cls)


def _qwen(tester: Any) -> None:
    """Eight visual tokens per image instead of one."""
    own = tester.prepare_config_and_inputs_for_common

    def prepare(self: Any) -> Any:
        config, inputs = own(self)
        if getattr(self.parent, "_testMethodName", "") in OWN_PROMPTS:
            return config, inputs
        ids = inputs["input_ids"]
        ids[ids == self.image_token_id] = self.pad_token_id
        ids[ids == self.vision_start_token_id] = self.pad_token_id
        ids[:, 9], ids[:, 10 : 10 + PATCHES] = self.vision_start_token_id, self.image_token_id
        inputs["pixel_values"] = torch.rand(len(ids) * PATCHES, inputs["pixel_values"].shape[1])
        inputs["image_grid_thw"] = torch.tensor([[1, 2, PATCHES // 2]] * len(ids))
        inputs["mm_token_type_ids"] = (ids == self.image_token_id).to(ids.dtype)
        return config, inputs

    tester.prepare_config_and_inputs_for_common = prepare


def _qwen_test(case: Any) -> None:
    """As many rows of pixels as the samples that ``generate`` gets: the common code cuts pixels to a row per sample."""
    own = case.prepare_config_and_inputs_for_generate

    def prepare(self: Any, batch_size: int = 2) -> Any:
        config, inputs = own(self, batch_size)
        inputs["pixel_values"] = torch.rand(batch_size * PATCHES, inputs["pixel_values"].shape[1])
        return config, inputs

    case.prepare_config_and_inputs_for_generate = prepare


def _text_behind(tester: Any) -> None:
    """Five text tokens behind the last image: the logits of a visual token that was dropped are refused."""
    own = tester.prepare_config_and_inputs_for_common

    def prepare(self: Any) -> Any:
        self.seq_length = vars(self).setdefault("length_without_text", self.seq_length)
        config, inputs = own(self)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        text = torch.randint(5, 60, (len(ids), 5))
        text[text == self.image_token_id] = 5
        inputs["input_ids"] = torch.cat([ids, text], 1)
        inputs["attention_mask"] = torch.cat([mask, torch.ones_like(text, dtype=mask.dtype)], 1)
        self.seq_length += 5
        return config, inputs

    tester.prepare_config_and_inputs_for_common = prepare


def _gemma3(tester: Any) -> None:
    """Four visual tokens per image instead of one."""
    own = tester.__init__

    def init(self: Any, parent: Any, **options: Any) -> None:
        own(self, parent, **{"mm_tokens_per_image": 4, **options})

    tester.__init__ = init


def _sdpa(case: Any) -> None:
    """The comparison of sdpa and eager attention: a batch of as many samples as it takes, and their images.

    It cuts or fills every input to seven rows. Qwen's pixels have a row per patch, so they stay out: the placeholders
    keep their own embeddings.
    """
    own = case.setUp

    def set_up(self: Any) -> None:
        own(self)
        if "eager_matches_sdpa_inference" in self._testMethodName and hasattr(self, "model_tester"):
            self.model_tester.batch_size = 7
            if not case.__name__.startswith("Qwen"):
                self.additional_model_inputs = ["pixel_values", "image_sizes", "token_type_ids", "pixel_values_videos"]

    case.setUp = set_up


_QWEN = ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL")

#: How names of classes end, and what is changed in those.
CHANGES: dict[str, Callable[[Any], None]] = {
    **{f"{family}VisionText2TextModelTester": _qwen for family in _QWEN},
    **{f"{family}ModelTest": _qwen_test for family in _QWEN},
    **{f"{family}VisionText2TextModelTester": _text_behind for family in ("Idefics3", "SmolVLM")},
    "Gemma3Vision2TextModelTester": _gemma3,
    "ModelTest": _sdpa,
}
