"""Never silently unpruned: what cannot be pruned is refused before anything is served, or as the request's error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoints import IMAGE, QWEN_SHOWN, shown_video
from equality import Prompt, clip, engine, picture, prompts

import tokenprune_vllm
from tokenprune import TokenPruneError, load_method

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
        ({"default": {"method": "unpruned"}, "methods": ["fastv"]}, "method 'fastv' cannot be served"),
        ({"default": {"method": "entropyprune-tower", "ratio": 0.5}}, "reads layer -1 of the vision tower, and vLLM"),
        ({"default": {"method": "evs", "ratio": 0.5}}, f"'evs' compares the frames of a video, and {LLAVA} gets none"),
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


def test_methods_that_compare_frames_get_one_video(checkpoint: Find) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    llm, few = engine(checkpoint("qwen3_vl"), settings={"method": "evs", "ratio": 0.5}), SamplingParams(max_tokens=2)
    shown, video = shown_video("qwen3_vl"), clip(4, 56, 56, 1)
    photo, still = picture(56, 56, 1), clip(2, 56, 56, 2)
    for prompt, message in (
        (Prompt(f"w10 {QWEN_SHOWN}", (photo,)), "compares all frames of a prompt, and the prompt has 1 image;"),
        (Prompt(f"w10 {shown} {shown}", (), (video, video)), "the prompt has 2 videos;"),
        (Prompt(f"w10 {shown} {QWEN_SHOWN}", (photo,), (video,)), "the prompt has 1 image and 1 video;"),
        (Prompt(f"w10 {shown}", (), (still,)), "compares frames, and the video has one for the model;"),
    ):
        one = {"prompt": prompt.text, "multi_modal_data": prompt.data}
        with pytest.raises(VLLMValidationError, match=message):
            llm.generate([one], few, use_tqdm=False)
        asked = {"tokenprune": {"method": "divprune", "ratio": 0.5}}
        assert llm.generate([{**one, "mm_processor_kwargs": asked}], few, use_tqdm=False)[0].outputs[0].token_ids
    assert llm.generate([{"prompt": "w10 w44"}], few, use_tqdm=False)[0].outputs[0].token_ids


def test_frames_that_are_images_keep_a_token_each(checkpoint: Find) -> None:
    from vllm.exceptions import VLLMValidationError

    llm = engine(checkpoint("internvl"), settings={"method": "divprune", "tokens": 5})
    prompt = Prompt(f"w10 {shown_video('internvl')} w44", (), (clip(6, 112, 112, 1),))
    one = {"prompt": prompt.text, "multi_modal_data": prompt.data}
    with pytest.raises(VLLMValidationError, match=r"a budget of 5 visual tokens for 6 images: .*ask for 6"):
        llm.generate([one], use_tqdm=False)
    assert llm.generate([{**one, "mm_processor_kwargs": {"tokenprune": {"tokens": 6}}}], use_tqdm=False)


@pytest.mark.parametrize("method", ["dycoke", "evs"])
def test_counts_that_only_the_tower_decides_are_refused(method: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(load_method(method).to_yaml(), encoding="utf-8")  # the published budget
    with pytest.raises(TokenPruneError, match="decides by itself how many tokens survive"):
        tokenprune_vllm.overrides("Qwen3VLForConditionalGeneration", method=file)
    assert tokenprune_vllm.overrides("Qwen3VLForConditionalGeneration", method=file, ratio=0.25)


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
