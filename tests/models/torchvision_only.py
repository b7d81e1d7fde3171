"""What only families do whose processors need torchvision; `test_torchvision.py` runs this in a process of its own."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as tf

import tokenprune as tp
from tests.models.test_checkpoints import NAMES, REFUSED, entry, generate, load, sample
from tests.support.checkpoints import FAMILIES, clip, pictures
from tests.support.tiny.core import IMAGE, VIDEO
from tests.support.toy import ToyTask, config
from tokenprune.budgets.keep import KeepRatio
from tokenprune.core.component import FromRegistry
from tokenprune.errors import SampleError, UnsupportedModelError
from tokenprune.experiment import run_experiment
from tokenprune.experiment.config import MethodEntry
from tokenprune.tasks.base import Sample, Video

VIDEO_FAMILIES = [name for name in NAMES if FAMILIES[name].clip]


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
def test_a_video(name: str, folders: dict[str, Path]) -> None:
    """All of its frames are used, and methods for frames keep half of it."""
    loaded = load(folders[name])
    batch = loaded.encode([Sample("clip", (), "what is this", "", "", "", videos=(clip(),))])
    assert int(((batch["input_ids"] == IMAGE) | (batch["input_ids"] == VIDEO)).sum()) == FAMILIES[name].clip
    served = []
    for method in sorted(REFUSED):
        with tp.apply(loaded.model, MethodEntry.model_validate(entry(method)).method(KeepRatio(ratio=0.5))) as run:
            assert generate(loaded, batch).shape == (1, 3)
        assert run.stages[-1].after == [FAMILIES[name].clip // 2]
        served.append(method)
    assert served == ["dycoke", "evs", "framefusion"]


def test_the_speed_of_a_video_reaches_the_processor(folders: dict[str, Path]) -> None:
    """Four frames a second: two frames are half a second."""
    question = Sample("clip", (), "what is this", "", "", "", videos=(clip(),))
    assert load(folders["qwen2.5-vl"]).encode([question])["second_per_grid_ts"].tolist() == [0.5]
    loaded = load(folders["qwen3-vl"])
    prompt = loaded.processor.tokenizer.decode(loaded.encode([question])["input_ids"][0])
    assert [word for word in prompt.split() if word.startswith("<") and "." in word] == ["<0.1", "<0.6", "<1.1"]


def seconds(frames: int, count: int = 900, rate: int = 30) -> Video:
    """Frames at even distances over a video of 30 seconds, with its first and its last one."""
    places = [round(place * (count - 1) / max(1, frames - 1)) for place in range(frames)]
    pixels = np.zeros((frames, 32, 32, 3), dtype=np.uint8)
    return Video(pixels, tuple(place / rate for place in places), count / rate)


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of all prompts that are cut into tokens."""
    seen: list[str] = []
    original = tf.PreTrainedTokenizerFast.__call__

    def watched(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend([text] if isinstance(text, str) else text)
        return original(self, text, *args, **kwargs)

    monkeypatch.setattr(tf.PreTrainedTokenizerFast, "__call__", watched)
    return seen


def questions(*videos: Video) -> list[Sample]:
    return [Sample(str(at), (), "what is this", "", "", "", videos=(video,)) for at, video in enumerate(videos)]


def test_qwen2_5_vl_is_told_the_distance_of_the_frames(folders: dict[str, Path]) -> None:
    """Seven distances lie between eight frames: frames / duration would be 7.5 seconds for each pair."""
    batch = load(folders["qwen2.5-vl"]).encode(questions(seconds(8), seconds(3), seconds(2)))
    last = 899 / 30
    assert batch["second_per_grid_ts"].tolist() == pytest.approx([2 * last / 7, 2 * last / 2, 2 * last])


def test_qwen3_vl_is_told_the_middle_of_every_pair_of_frames(folders: dict[str, Path], prompts: list[str]) -> None:
    load(folders["qwen3-vl"]).encode(questions(seconds(8), seconds(2), seconds(3), seconds(1)))
    told = [re.findall(r"<([\d.]+) seconds>", prompt) for prompt in prompts]
    assert told == [["2.1", "10.7", "19.3", "27.8"], ["15.0"], ["7.5", "30.0"], ["0.0"]]


def test_smolvlm_is_told_the_time_of_every_frame(folders: dict[str, Path], prompts: list[str]) -> None:
    load(folders["smolvlm"]).encode(questions(seconds(8)))
    assert re.findall(r"Frame from ([\d:]+):<", prompts[-1]) == [
        *("00:00", "00:04", "00:08", "00:12", "00:17", "00:21", "00:25", "00:29")
    ]
    assert "eight frames from a 0:00:30 [H:MM:SS] video" in prompts[-1]


def test_smolvlm_gets_no_videos_of_different_lengths_together(folders: dict[str, Path], prompts: list[str]) -> None:
    """Its processor would write "eight frames" before four: the prompt of a sample would depend on its batch."""
    loaded = load(folders["smolvlm"])
    long, short = questions(seconds(8), seconds(4))
    with pytest.raises(SampleError, match="the videos of sample '0' and its batch have 4 and 8 frames; smolvlm is"):
        loaded.encode([long, short])
    loaded.encode([short])
    assert "four frames" in prompts[-1]


def test_frames_that_are_not_equally_long(folders: dict[str, Path], prompts: list[str]) -> None:
    """Words tell every time; the distance of Qwen2.5-VL is the mean one."""
    video = Video(np.zeros((4, 32, 32, 3), dtype=np.uint8), (0.0, 1.0, 9.0, 12.0), 13.0)
    load(folders["qwen3-vl"]).encode(questions(video))
    assert re.findall(r"<([\d.]+) seconds>", prompts[-1]) == ["0.5", "10.5"]
    assert load(folders["qwen2.5-vl"]).encode(questions(video))["second_per_grid_ts"].tolist() == [8]


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
def test_a_video_of_one_frame(name: str, folders: dict[str, Path]) -> None:
    """Models that join frames in pairs see it twice."""
    loaded = load(folders[name])
    assert generate(loaded, loaded.encode(questions(seconds(1)))).shape == (1, 3)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("qwen")])
def test_numbers_of_pixels(name: str, folders: dict[str, Path]) -> None:
    """A token of these tiny models is 8 x 8 pixels; a picture has 64 x 64."""
    question = [sample("one", pictures()[0])]
    for options, tokens in [({"max_pixels": 16 * 16}, 4), ({"min_pixels": 48 * 48, "max_pixels": 48 * 48}, 36)]:
        loaded = load(folders[name], **options)
        batch = loaded.encode(question)
        assert int((batch["input_ids"] == IMAGE).sum()) == tokens
        assert generate(loaded, batch).shape == (1, 3)
    with pytest.raises(UnsupportedModelError, match="at least 2304 and at most 1024 pixels; give both"):
        load(folders[name], min_pixels=48 * 48)


@pytest.mark.parametrize("name", ["smolvlm", "llava-onevision", "internvl", "llava-next-video", "video-llava"])
@pytest.mark.parametrize("pictures_too", [False, True])
def test_clips_of_different_lengths_and_pictures_in_one_batch(
    tmp_path: Path, name: str, pictures_too: bool, folders: dict[str, Path]
) -> None:
    """Some processors and models cannot put them together: they are answered one by one, and none is lost."""
    made = []
    for number in range(6):
        frames = clip().frames[: (2, 4, 6)[number % 3]]
        clips = () if pictures_too and number % 2 else (Video.at_rate(frames, 4.0),)
        shown = () if clips else (pictures()[0],)
        made.append(Sample(f"s{number}", shown, "what is this", "w", "t", f"g{number}", videos=clips))

    class Mixed(ToyTask):
        def samples(self) -> list[Sample]:
            return made

        def score(self, sample: Sample, text: str) -> float:
            return 1.0

    model = FromRegistry("models").build({"name": "hf", "checkpoint": str(folders[name]), "device": "cpu"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tp.errors.TokenPruneWarning)
        result = run_experiment(
            config(
                str(tmp_path),
                model=model,
                task=Mixed(),
                methods=["random"],
                oracle=False,
                batch_size=4,
                budgets=[{"name": "keep_ratio", "ratio": 0.5}],
            )
        )
    assert not result.skipped
    assert len(result.rows) == 6 * 2
