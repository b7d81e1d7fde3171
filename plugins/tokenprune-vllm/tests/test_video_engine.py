"""What an engine does with videos: steps smaller than one, caches, settings side by side, room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import shown, shown_video
from equality import Prompt, Reference, answers, clip, close, engine, videos

Find = Callable[[str], Path]
MOST = {"method": "evs", "ratio": 0.75}
QUARTER = {"method": "divprune", "ratio": 0.25}

#: One run of placeholders, one that stands for text, too, and one position per token with text.
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "internvl"]


def long_prompt(family: str) -> Prompt:
    """A video of 48 tokens or more, and some text."""
    words = " ".join(f"w{40 + number}" for number in range(40))
    return Prompt(f"w10 w12 {shown_video(family)} {words}", (), (clip(6, 112, 112, 1),))


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_steps_smaller_than_a_video(family: str, checkpoint: Find) -> None:
    folder = checkpoint(family)
    found = videos(shown_video(family), shown(family))
    asked = [(prompt, request) for prompt in found for request in (QUARTER, {"method": "unpruned"})]
    asked += [(prompt, MOST) for prompt in found if len(prompt.videos) == 1 and not prompt.images]
    reference = Reference(folder)
    llm = engine(folder, max_num_batched_tokens=16, max_num_seqs=4, disable_chunked_mm_input=False)
    for (prompt, request), answer in zip(asked, answers(llm, asked), strict=True):
        assert close(reference.answer(prompt, request), answer), (prompt.text, request)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_pass_hits_the_prefix_cache(family: str, checkpoint: Find) -> None:
    """The cached part ends within the video, or behind it."""
    folder, prompt = checkpoint(family), long_prompt(family)
    llm = engine(folder, enable_prefix_caching=True)
    wanted = Reference(folder).answer(prompt, MOST)
    first = answers(llm, [(prompt, MOST)])
    request = {"prompt": prompt.text, "multi_modal_data": prompt.data, "mm_processor_kwargs": {"tokenprune": MOST}}
    assert llm.generate([request], use_tqdm=False)[0].num_cached_tokens > 0
    other = Prompt(f"{prompt.text} w90 w91", (), prompt.videos)
    second = answers(llm, [(prompt, MOST), (other, MOST)])
    assert close(wanted, first[0])
    assert close(wanted, second[0])
    assert close(Reference(folder).answer(other, MOST), second[1])


@pytest.mark.parametrize("uuid", [None, "mine"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_settings_of_one_video_share_nothing(family: str, uuid: str | None, checkpoint: Find) -> None:
    folder, prompt = checkpoint(family), long_prompt(family)
    requests: list[dict[str, Any]] = [MOST, QUARTER, {**QUARTER, "positions": "renumbered"}, {"method": "unpruned"}]
    requests += [{"method": "divprune", "tokens": 9}, MOST]
    found = answers(engine(folder), [(prompt, request) for request in requests], uuid=uuid)
    reference = Reference(folder)
    for request, answer in zip(requests, found, strict=True):
        assert close(reference.answer(prompt, request), answer), request
    assert len({answer.log_probabilities for answer in found[:5]}) == 5


def test_there_is_room_for_the_text_of_a_whole_video(checkpoint: Find) -> None:
    """A video has 64 tokens at most, and 8 frames with four tokens of text each; a step has 32."""
    folder = checkpoint("qwen3_vl")
    few = {"max_num_batched_tokens": 32, "max_num_seqs": 4, "limit_mm_per_prompt": {"image": 0, "video": 1}}
    llm = engine(folder, settings={"method": "divprune", "ratio": 0.1}, **few)
    whole = Prompt(f"w10 {shown_video('qwen3_vl')} w44", (), (clip(16, 56, 112, 1),))
    unpruned = {"method": "unpruned"}
    (found,) = answers(llm, [(whole, unpruned)])
    assert close(Reference(folder).answer(whole, unpruned), found)


def test_times_of_frames_are_not_rounded_in_half_precision(checkpoint: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of Qwen2.5-VL are 3.996 positions apart, of which the whole part counts; 0.999 in bfloat16 is 1."""
    from tokenprune_vllm.model import Served

    found, recompute = [], Served.recompute_mrope_positions

    def watched(*arguments: Any, **keywords: Any) -> Any:
        made = recompute(*arguments, **keywords)
        found.append(made[1])
        return made

    monkeypatch.setattr(Served, "recompute_mrope_positions", watched)
    folder, fast = checkpoint("qwen2_5_vl"), clip(6, 56, 56, 1, fps=2 / 0.999)
    prompt = Prompt(f"w10 {shown_video('qwen2_5_vl')} w44", (), (fast,))
    answers(engine(folder, dtype="bfloat16"), [(prompt, {"method": "unpruned"})])
    reference = Reference(folder)
    inputs = dict(reference.inputs(prompt))
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")
    wanted, _ = reference.model.model.get_rope_index(**{name: inputs[name] for name in names})
    assert wanted[0].unique().tolist() != list(range(int(wanted[0].max()) + 1)), "frames apart"
    assert found[0].tolist() == wanted[:, 0].tolist()
