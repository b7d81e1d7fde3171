"""Never silently unpruned: what cannot be pruned is refused before anything is served, or as the request's error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import IMAGE
from equality import engine, prompts

import tokenprune_vllm
from tokenprune import TokenPruneError

Find = Callable[[str], Path]
LLAVA = "LlavaForConditionalGeneration"

START = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from equality import engine
if __name__ == "__main__":
    engine(Path({folder!r}), hf_overrides={overrides!r})
    print("SERVED")
"""


def start(folder: Path, overrides: dict[str, Any], **environment: str) -> subprocess.CompletedProcess[str]:
    """Start an engine in a process of its own."""
    code = START.format(tests=str(Path(__file__).parent), folder=str(folder), overrides=overrides)
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("plugins", ["", "other"])
def test_without_the_plugin_vllm_refuses_the_model(plugins: str, checkpoint: Find) -> None:
    folder = checkpoint("llava")
    found = start(folder, tokenprune_vllm.overrides(folder, method="divprune", ratio=0.25), VLLM_PLUGINS=plugins)
    assert found.returncode != 0
    assert "SERVED" not in found.stdout
    assert f"TokenPrune{LLAVA}" in found.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "the model's config has no 'tokenprune'"),
        (
            {"default": {"method": "fastv", "ratio": 0.5}},
            "method 'fastv' cannot be served: it prunes inside",
        ),
        ({"default": {"method": "nosuch", "ratio": 0.5}}, "unknown method 'nosuch'"),
        ({"default": {"method": "entropyprune-tower", "ratio": 0.5}}, "reads layer -1 of the vision tower, and vLLM"),
        ({"default": {"method": "hiprune", "ratio": 0.5}}, "layer 8 of a vision tower of 3 layers"),
    ],
)
def test_a_wrong_method_stops_the_engine(settings: Any, message: str, checkpoint: Find) -> None:
    folder = checkpoint("llava")
    overrides = {"architectures": [f"TokenPrune{LLAVA}"]} | ({} if settings is None else {"tokenprune": settings})
    with pytest.raises(Exception, match=message):
        engine(folder, hf_overrides=overrides)


def test_windows_count_kept_tokens_in_vllm(checkpoint: Find) -> None:
    folder, settings = checkpoint("gemma3"), {"method": "divprune", "ratio": 0.5}
    with pytest.raises(Exception, match=r"a window of 512 tokens, in which vLLM counts kept tokens.*renumbered"):
        engine(folder, settings=settings, max_model_len=513)
    assert engine(folder, settings={**settings, "positions": "renumbered"}, max_model_len=513)


def test_a_tower_that_is_divided_between_devices_is_not_read(checkpoint: Find) -> None:
    from vllm.exceptions import VLLMValidationError

    from tokenprune_vllm.registration import refuse

    llm, prompt = engine(checkpoint("llava")), prompts("<image>")[0]
    config = llm.llm_engine.vllm_config
    divided = SimpleNamespace(
        model_config=config.model_config,
        parallel_config=SimpleNamespace(tensor_parallel_size=2),
        compilation_config=config.compilation_config,
    )
    refuse(divided)  # divprune reads the features only
    one = {"prompt": prompt.text, "multi_modal_data": {"image": list(prompt.images)}}
    asked = {"tokenprune": {"method": "visionzip", "ratio": 0.5}}
    with pytest.raises(VLLMValidationError, match="the vision tower is divided between devices"):
        llm.generate([{**one, "mm_processor_kwargs": asked}], use_tqdm=False)
    config.model_config.hf_config.tokenprune = {"default": {"method": "visionzip", "ratio": 0.5}}
    with pytest.raises(TokenPruneError, match="the vision tower is divided between devices"):
        refuse(divided)


def test_a_server_that_prunes_all_requests_alike(checkpoint: Find) -> None:
    from vllm.exceptions import VLLMValidationError

    settings = {"method": "divprune", "ratio": 0.25, "requests": "nothing"}
    llm, prompt = engine(checkpoint("llava"), settings=settings), prompts("<image>")[0]
    one = {"prompt": prompt.text, "multi_modal_data": {"image": list(prompt.images)}}
    (out,) = llm.generate([one], use_tqdm=False)
    assert out.prompt_token_ids.count(IMAGE) == 16
    with pytest.raises(VLLMValidationError, match="this server prunes all requests alike"):
        llm.generate([{**one, "mm_processor_kwargs": {"tokenprune": {"method": "unpruned"}}}], use_tqdm=False)


def test_videos_are_refused(checkpoint: Find) -> None:
    from vllm.exceptions import VLLMValidationError

    folder = checkpoint("qwen2_5_vl")
    with pytest.raises(Exception, match="take 2 videos per prompt, and only pictures are pruned"):
        engine(folder, limit_mm_per_prompt={"image": 3, "video": 2})
    about = {"fps": 1.0, "frames_indices": [0, 1, 2, 3], "total_num_frames": 4, "duration": 4.0}
    clip = (np.zeros((4, 56, 56, 3), dtype=np.uint8), {**about, "video_backend": "opencv", "do_sample_frames": False})
    prompt = {"prompt": "w10 <|vision_start|> <|video_pad|> <|vision_end|>", "multi_modal_data": {"video": clip}}
    with pytest.raises(VLLMValidationError, match="At most 0 video"):
        engine(folder).generate([prompt], use_tqdm=False)


def test_vllms_own_pruning_beside_ours_is_refused(checkpoint: Find) -> None:
    with pytest.raises(Exception, match="vLLM's own pruning of videos is on"):
        engine(checkpoint("qwen2_5_vl"), video_pruning_rate=0.5)


def test_the_error_of_a_request_leaves_the_engine_alive(checkpoint: Find) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    llm, prompt = engine(checkpoint("llava")), prompts("<image>")[0]
    few = SamplingParams(max_tokens=2)
    for asked, message in (
        ({"method": "fastv", "ratio": 0.5}, "cannot be served"),
        ({"method": "nosuch", "ratio": 0.5}, "unknown method"),
        ({"ratio": 2.0}, "less than or equal to 1"),
        ({"method": "hiprune", "ratio": 0.5}, "layer 8 of a vision tower"),
        ("divprune", "give an object"),
    ):
        one = {"prompt": prompt.text, "multi_modal_data": {"image": list(prompt.images)}}
        with pytest.raises(VLLMValidationError, match=message):
            llm.generate([{**one, "mm_processor_kwargs": {"tokenprune": asked}}], few, use_tqdm=False)
    misspelt = {"tokenprun": {"method": "visionzip", "tokens": 9}}
    with pytest.raises(VLLMValidationError, match="mm_processor_kwargs has 'tokenprun'; did you mean 'tokenprune'"):
        llm.generate([{**one, "mm_processor_kwargs": misspelt}], few, use_tqdm=False)
    assert llm.generate([one], few, use_tqdm=False)[0].outputs[0].token_ids
