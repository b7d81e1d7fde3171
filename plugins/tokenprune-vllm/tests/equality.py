"""The same prompts through `tokenprune.apply` on transformers, and through vLLM: ids and log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from checkpoints import PLAIN, VIDEO_FAMILIES, WINDOW, WORDS
from PIL import Image

import tokenprune as tp

ANSWER = 8
#: Of log-probabilities. Another order of sums; the largest difference that was seen is 4e-6.
TOLERANCE = 1e-5
Request = Mapping[str, Any]


@dataclass(frozen=True)
class Clip:
    """The frames of a video, uint8 ``[frames, height, width, 3]``, and how many of them are a second."""

    frames: np.ndarray[Any, Any]
    fps: float = 2.0

    @property
    def about(self) -> dict[str, Any]:
        """What both libraries are told of the video: all frames were taken."""
        count = len(self.frames)
        return {
            "fps": self.fps,
            "frames_indices": list(range(count)),
            "total_num_frames": count,
            "duration": count / self.fps,
            "video_backend": "opencv",
        }


@dataclass(frozen=True)
class Prompt:
    """A text with placeholders, its pictures, and its videos."""

    text: str
    images: tuple[Image.Image, ...] = ()
    videos: tuple[Clip, ...] = ()

    @property
    def data(self) -> dict[str, Any]:
        """The pictures and videos, as vLLM takes them."""
        clips = [(clip.frames, {**clip.about, "do_sample_frames": False}) for clip in self.videos]
        both = {"image": list(self.images), "video": clips}
        return {kind: items for kind, items in both.items() if items}


@dataclass(frozen=True)
class Answer:
    """The ids of an answer, and the log-probability of each."""

    ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]


def close(one: Answer, other: Answer) -> bool:
    """Whether two answers are the same tokens with the same log-probabilities."""
    pairs = zip(one.log_probabilities, other.log_probabilities, strict=True)
    return one.ids == other.ids and all(math.isclose(x, y, rel_tol=0, abs_tol=TOLERANCE) for x, y in pairs)


def picture(width: int, height: int, seed: int) -> Image.Image:
    """A picture of coloured squares."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (max(height // 8, 1), max(width // 8, 1), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height))


def clip(frames: int, width: int, height: int, seed: int, fps: float = 2.0) -> Clip:
    """A video in which about half of the squares change from frame to frame."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (frames, height // 14, width // 14, 3), dtype=np.uint8)
    for frame in range(1, frames):
        still = rng.random(small.shape[1:3]) < 0.5
        small[frame][still] = small[frame - 1][still]
    return Clip(small.repeat(14, axis=1).repeat(14, axis=2), fps)


def prompts(shown: str) -> list[Prompt]:
    """One picture, text only, text between two pictures, a tall one, a wide one, three pictures."""
    a, b, c, d = picture(224, 224, 1), picture(112, 224, 2), picture(280, 112, 3), picture(112, 336, 4)
    return [
        Prompt(f"w10 w20 {shown} w30 w31 w32", (a,)),
        Prompt("w10 w40 w41 w42 w43"),
        Prompt(f"w10 {shown} w50 w51 {shown} w52 w53", (a, b)),
        Prompt(f"w11 w12 w13 {shown} w60 w61", (d,)),
        Prompt(f"w10 w14 {shown} w70", (c,)),
        Prompt(f"w10 {shown} w71 {shown} w72 {shown} w73", (d, c, b)),
    ]


def videos(shown: str, shown_image: str, size: tuple[int, int] = (56, 112)) -> list[Prompt]:
    """One video, text only, others of other sizes and speeds, two of one length, a picture and a video, three items.

    Args:
        shown: What stands for a video.
        shown_image: What stands for a picture.
        size: Width and height of some videos; those of one prompt are equally large, as some processors want.
    """
    a, b, c = clip(6, 112, 112, 1), clip(4, *size, 2, fps=1.0), clip(4, *size, 3, fps=3.0)
    d, e = picture(112, 224, 2), picture(112, 112, 5)
    return [
        Prompt(f"w10 w20 {shown} w41 w42 w43", (), (a,)),
        Prompt("w10 w40 w41 w42 w43"),
        Prompt(f"w10 {shown} w50", (), (c,)),
        Prompt(f"w10 {shown} w46 w47", (), (clip(12, 56, 56, 4),)),  # more frames than rows
        Prompt(f"w11 w12 w13 {shown} w60 w61", (), (b,)),
        Prompt(f"w10 {shown} w51 {shown} w52 w53", (), (b, c)),
        Prompt(f"w10 {shown_image} w71 {shown} w72", (d,), (a,)),
        Prompt(f"w10 {shown} w73 w74 {shown_image} w75 {shown} w76", (e,), (c, b)),
    ]


def method_of(request: Request) -> tp.Method:
    """The method that a request asks for."""
    names = {"ratio": "keep_ratio", "tokens": "keep_tokens"}
    budget = {names[name]: request[name] for name in names if name in request}
    asked = request["method"]
    method = tp.load_method(asked, **budget) if isinstance(asked, str) else tp.Method.from_dict(asked)
    positions = request.get("positions", method.positions)
    return method.model_copy(update={"positions": positions})


class Reference:
    """Answers of transformers, with `tokenprune.apply`.

    Args:
        folder: The checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.processor = tf.AutoProcessor.from_pretrained(folder)
        self.model = tf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    def inputs(self, prompt: Prompt, **options: Any) -> Any:
        """What the processor makes of a prompt."""
        given: dict[str, Any] = {"images": list(prompt.images)} if prompt.images else {}
        if prompt.videos:
            given["videos"] = [clip.frames for clip in prompt.videos]
            given["video_metadata"] = [clip.about for clip in prompt.videos]
            given["do_sample_frames"] = False
        return self.processor(text=prompt.text, **given, **options, return_tensors="pt")

    def answer(self, prompt: Prompt, request: Request, seeds: Sequence[int] | None = None) -> Answer:
        """The answer to one prompt, with a request's method."""
        inputs = self.inputs(prompt)
        # Gemma 3 then attends to pictures as to text: vLLM does so on CPUs, where it has no other attention
        inputs.pop("token_type_ids", None)
        if request["method"] == "unpruned" or not prompt.data:
            return self._answer(inputs)
        with tp.apply(self.model, method_of(request)) as run:
            if seeds is not None:
                run.annotate(sample_ids=seeds)
            return self._answer(inputs)

    @torch.no_grad()
    def _answer(self, inputs: Mapping[str, Any]) -> Answer:
        out = self.model.generate(
            **inputs,
            max_new_tokens=ANSWER,
            min_new_tokens=ANSWER,
            do_sample=False,
            eos_token_id=None,
            suppress_tokens=[token for token in range(WORDS) if token not in PLAIN],
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        steps = [float(step[0].log_softmax(-1)[token]) for step, token in zip(out.logits, ids, strict=True)]
        return Answer(tuple(ids), tuple(steps))


def seed_of_prompt(reference: Reference, prompt: Prompt) -> int:
    """The seed that the plugin makes of the only picture or video of a prompt."""
    from tokenprune_vllm.processor import seed_of

    as_vllm = {}
    if "Qwen" in type(reference.model).__name__:  # vLLM rescales their pixels on the device
        as_vllm = {"do_rescale": False, "do_normalize": False}
    found = reference.inputs(prompt, **as_vllm)
    pixels = found.get("pixel_values_videos", found.get("pixel_values"))
    if as_vllm:
        return seed_of(pixels.to(torch.uint8))
    return seed_of(pixels[0] if pixels.dim() == 5 or len(pixels) == 1 else pixels)


def engine(folder: Path, **changes: Any) -> Any:
    """A vLLM engine with pruning."""
    from vllm import LLM

    import tokenprune_vllm

    settings = changes.pop("settings", {"method": "divprune", "ratio": 0.25})
    options: dict[str, Any] = {
        "model": str(folder),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": WINDOW if folder.name == "gemma3" else 2048,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 2048,
        "block_size": 32,
        "limit_mm_per_prompt": {"image": 3, "video": 2} if folder.name in VIDEO_FAMILIES else {"image": 3},
        "hf_overrides": tokenprune_vllm.overrides(folder, **settings),
    }
    return LLM(**{**options, **changes})


def answers(llm: Any, asked: Sequence[tuple[Prompt, Request | None]], uuid: str | None = None) -> list[Answer]:
    """The engine's answers to prompts, each with the method of a request, or that of the engine.

    Args:
        llm: The engine.
        asked: The prompts and requests.
        uuid: The user's name for every picture, if it has one.
    """
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True, logprobs=1, allowed_token_ids=PLAIN)
    requests = []
    for prompt, request in asked:
        one: dict[str, Any] = {"prompt": prompt.text}
        if prompt.data:
            one["multi_modal_data"] = prompt.data
            if uuid is not None:
                one["multi_modal_uuids"] = {kind: [uuid] * len(items) for kind, items in prompt.data.items()}
            if request is not None:
                one["mm_processor_kwargs"] = {"tokenprune": dict(request)}
        requests.append(one)
    return [
        Answer(
            tuple(out.outputs[0].token_ids),
            tuple(
                step[token].logprob
                for step, token in zip(out.outputs[0].logprobs, out.outputs[0].token_ids, strict=True)
            ),
        )
        for out in llm.generate(requests, sampling, use_tqdm=False)
    ]
