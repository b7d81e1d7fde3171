"""What an engine does with prompts: steps smaller than a picture, caches, settings side by side, preemption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import shown, shown_video
from equality import Prompt, Reference, answers, close, engine, picture, prompts, videos

Find = Callable[[str], Path]
QUARTER = {"method": "divprune", "ratio": 0.25}
FAMILIES = ["llava", "qwen2_5_vl", "qwen3_vl"]


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_steps_smaller_than_a_picture(family: str, checkpoint: Find) -> None:
    folder = checkpoint(family)
    asked = [(prompt, QUARTER) for prompt in prompts(shown(family))]
    reference = Reference(folder)
    llm = engine(folder, max_num_batched_tokens=32, max_num_seqs=4, disable_chunked_mm_input=False)
    for (prompt, request), found in zip(asked, answers(llm, asked), strict=True):
        assert close(reference.answer(prompt, request), found), prompt.text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_pass_hits_the_prefix_cache(family: str, checkpoint: Find) -> None:
    folder = checkpoint(family)
    wide = Prompt(f"w10 {shown(family)} " + " ".join(f"w{20 + n}" for n in range(40)), (picture(224, 224, 1),))
    llm = engine(folder, enable_prefix_caching=True)
    first = answers(llm, [(wide, QUARTER)] * 1)
    out = llm.generate(
        [
            {
                "prompt": wide.text,
                "multi_modal_data": {"image": list(wide.images)},
                "mm_processor_kwargs": {"tokenprune": QUARTER},
            }
        ],
        use_tqdm=False,
    )
    assert out[0].num_cached_tokens > 0
    second = answers(llm, [(wide, QUARTER)])
    assert close(first[0], second[0])
    assert close(Reference(folder).answer(wide, QUARTER), second[0])


def test_two_settings_of_one_picture_share_nothing(checkpoint: Find) -> None:
    folder = checkpoint("llava")
    reference, prompt = Reference(folder), prompts("<image>")[0]
    requests = [QUARTER, {"method": "visionzip", "ratio": 0.25}, {**QUARTER, "positions": "renumbered"}]
    requests += [{"method": "unpruned"}, {"method": "divprune", "tokens": 8}, QUARTER]
    found = answers(engine(folder), [(prompt, request) for request in requests])
    for request, answer in zip(requests, found, strict=True):
        assert close(reference.answer(prompt, request), answer), request
    assert len({answer.log_probabilities for answer in found[:5]}) == 5


@pytest.mark.parametrize(("family", "method"), [("llava", "visionzip"), ("qwen3_vl", "vidcom2")])
def test_the_settings_of_the_engine_and_of_a_request(family: str, method: str, checkpoint: Find) -> None:
    """Of a picture, and of a video."""
    folder = checkpoint(family)
    prompt = prompts("<image>")[0] if family == "llava" else videos(shown_video(family), "")[0]
    llm, reference = engine(folder, settings={"method": method, "tokens": 16}), Reference(folder)
    none, changed = answers(llm, [(prompt, None), (prompt, {"ratio": 0.5})])
    assert close(reference.answer(prompt, {"method": method, "tokens": 16}), none)
    assert close(reference.answer(prompt, {"method": method, "ratio": 0.5}), changed)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_preempted_requests_are_computed_again(family: str, checkpoint: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers outgrow the cache of keys and values: the engine drops some requests, and computes them again.

    They show a picture, or a video whose placeholders stand for text, too.
    """
    from vllm import SamplingParams
    from vllm.v1.core.sched.scheduler import Scheduler

    dropped, preempt = [], Scheduler._preempt_request

    def watched(scheduler: Any, request: Any, *arguments: Any, **keywords: Any) -> None:
        dropped.append(request.request_id)
        preempt(scheduler, request, *arguments, **keywords)

    monkeypatch.setattr(Scheduler, "_preempt_request", watched)
    asked = prompts(shown(family)) if family == "qwen2_5_vl" else videos(shown_video(family), "")
    long = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    one = {"prompt": asked[0].text, "multi_modal_data": asked[0].data}
    folder = checkpoint(family)
    alone = engine(folder).generate([one], long, use_tqdm=False)[0].outputs[0].token_ids
    llm = engine(folder, num_gpu_blocks_override=8, max_model_len=128, enable_prefix_caching=False)
    found = [out.outputs[0].token_ids for out in llm.generate([one] * 6, long, use_tqdm=False)]
    assert dropped
    assert found == [alone] * 6


def test_a_users_name_of_a_picture_does_not_hide_the_settings(checkpoint: Find) -> None:
    """A uuid takes the place of the hash of the pixels, and not of the settings."""
    folder = checkpoint("llava")
    reference, prompt = Reference(folder), prompts("<image>")[0]
    requests: list[dict[str, Any]] = [QUARTER, {"method": "divprune", "tokens": 8}, {"method": "unpruned"}]
    found = answers(engine(folder), [(prompt, request) for request in requests], uuid="mine")
    for request, answer in zip(requests, found, strict=True):
        assert close(reference.answer(prompt, request), answer), request


def test_a_request_that_keeps_more_than_the_engine_does(checkpoint: Find) -> None:
    """Room for features is made for an unpruned picture: 64 tokens, where the engine keeps 6 and a step has 32."""
    folder = checkpoint("llava")
    few = {"max_num_batched_tokens": 32, "max_num_seqs": 4}
    llm = engine(folder, settings={"method": "divprune", "ratio": 0.1}, **few)
    prompt = prompts("<image>")[0]
    (found,) = answers(llm, [(prompt, {"method": "unpruned"})])
    assert close(Reference(folder).answer(prompt, {"method": "unpruned"}), found)
