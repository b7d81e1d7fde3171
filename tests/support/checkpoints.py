"""Tiny checkpoints with real processors, in folders, as ``save_pretrained`` writes them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.support.tiny import CASES
from tests.support.tiny.core import END, IMAGE, START, TRANSFORMERS, VIDEO, VOCAB
from tests.support.tiny.llava import PINPOINTS
from tokenprune.tasks.base import Video

WORDS = (
    "<pad>",
    "<s>",
    "</s>",
    "w3",
    "USER",
    "SYSTEM",
    "what",
    "is",
    "this",
    "brief",
    "Answer",
    "with",
    "one",
    "word.",
    "<0.1",
    "<0.6",
    "<1.1",
    "seconds>",
)
SIDE = {"height": 32, "width": 32}
PATCHES: dict[str, Any] = {
    "patch_size": 8,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
"""Of processors whose tower has a class token and patches of 8 x 8 pixels."""

MakeProcessor = Callable[[Any, str], Any]
"""(tokenizer, chat template) -> the processor."""


@dataclass(frozen=True)
class Family:
    """A family's processor for its tiny model.

    Args:
        case: Name of the tiny model.
        make: Makes the processor.
        tokens: The special tokens with the ids that the model's config names.
        image: What stands for an image in a chat.
        video: What stands for a video; empty where the family takes none.
        roles: Whether the chat names the roles. PaliGemma's does not: an image comes first.
        extra: Attributes of the tokenizer that name special tokens.
        torchvision: Whether the processor needs torchvision.
        counts: Visual tokens of each of the pictures of :func:`pictures`.
        together: Visual tokens of both in one sample; None is the sum.
        clip: Visual tokens of :func:`clip`; 0 where the family takes no videos.
    """

    case: str
    make: MakeProcessor
    tokens: Mapping[str, int]
    image: str
    counts: tuple[int, int]
    video: str = ""
    roles: bool = True
    extra: Mapping[str, str] = field(default_factory=dict)
    torchvision: bool = False
    together: int | None = None
    clip: int = 0

    @property
    def pair(self) -> int:
        """Visual tokens of a sample with both pictures."""
        return sum(self.counts) if self.together is None else self.together

    @property
    def template(self) -> str:
        """The chat template."""
        role = "{{ turn.role.upper() }} " if self.roles else ""
        return (
            "{% for turn in messages %}" + role + "{% for part in turn.content %}"
            "{% if part.type == 'image' %}" + self.image + " "
            "{% elif part.type == 'video' %}" + self.video + " "
            "{% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
        )

    def tokenizer(self) -> Any:
        """A tokenizer of single words; id ``n`` without a word of its own is ``wn``."""
        vocabulary = {word: index for index, word in enumerate(WORDS)} | {"<unk>": VOCAB - 1} | dict(self.tokens)
        taken = set(vocabulary.values())
        vocabulary |= {f"w{index}": index for index in range(VOCAB) if index not in taken}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        fast = tf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            extra_special_tokens=dict(self.extra),
        )
        fast.add_special_tokens({"additional_special_tokens": [t for t in self.tokens if t not in self.extra.values()]})
        return fast

    def processor(self, template: bool = True) -> Any:
        """The processor."""
        return self.make(self.tokenizer(), self.template if template else None)

    def save(self, folder: Path, template: bool = True, processor: bool = True) -> Path:
        """Write model and processor.

        Args:
            folder: Where to.
            template: Whether the processor has a chat template.
            processor: Whether to write the processor.

        Returns:
            The folder.
        """
        CASES[self.case].build().save_pretrained(folder)
        if processor:
            self.processor(template).save_pretrained(folder)
        return folder


def pictures() -> tuple[Image.Image, Image.Image]:
    """A square picture and a wide one, of random pixels."""
    noise = torch.Generator().manual_seed(3)
    sizes = ((64, 64), (32, 64))  # height, width
    red, blue = (torch.randint(0, 256, (*size, 3), generator=noise, dtype=torch.uint8).numpy() for size in sizes)
    return Image.fromarray(red), Image.fromarray(blue)


def clip() -> Video:
    """Six frames of random pixels, four a second."""
    noise = torch.Generator().manual_seed(4)
    return Video.at_rate(torch.randint(0, 256, (6, 32, 32, 3), generator=noise, dtype=torch.uint8).numpy(), 4.0)


def _llava(tokenizer: Any, template: str) -> Any:
    return tf.LlavaProcessor(
        tf.CLIPImageProcessor(size=SIDE, do_center_crop=False),
        tokenizer,
        chat_template=template,
        **PATCHES,
        image_token="<image>",
    )


def _llava_next(tokenizer: Any, template: str) -> Any:
    return tf.LlavaNextProcessor(
        tf.LlavaNextImageProcessor(size={"shortest_edge": 32}, crop_size=SIDE, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        chat_template=template,
        **PATCHES,
    )


def _llava_onevision(tokenizer: Any, template: str) -> Any:
    return tf.LlavaOnevisionProcessor(
        tf.LlavaOnevisionImageProcessor(size=SIDE, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        tf.LlavaOnevisionVideoProcessor(size=SIDE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template,
    )


def _llava_next_video(tokenizer: Any, template: str) -> Any:
    return tf.LlavaNextVideoProcessor(
        tf.LlavaNextVideoVideoProcessor(size=SIDE, crop_size=SIDE),
        tf.LlavaNextImageProcessor(size={"shortest_edge": 32}, crop_size=SIDE, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        chat_template=template,
        **PATCHES,
    )


def _video_llava(tokenizer: Any, template: str) -> Any:
    return tf.VideoLlavaProcessor(
        tf.VideoLlavaImageProcessor(size={"shortest_edge": 32}, crop_size=SIDE),
        tf.VideoLlavaVideoProcessor(size={"shortest_edge": 32}, crop_size=SIDE),
        tokenizer,
        chat_template=template,
        **PATCHES,
    )


def _internvl(tokenizer: Any, template: str) -> Any:
    pixels = tf.GotOcr2ImageProcessor(size=SIDE, crop_to_patches=True, max_patches=3)
    video = tf.InternVLVideoProcessor(size=SIDE)
    return tf.InternVLProcessor(pixels, tokenizer, video, image_seq_length=16, chat_template=template)


def _gemma3(tokenizer: Any, template: str) -> Any:
    return tf.Gemma3Processor(
        tf.Gemma3ImageProcessor(size=SIDE), tokenizer, chat_template=template, image_seq_length=16
    )


def _idefics3(tokenizer: Any, template: str) -> Any:
    pixels = tf.Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return tf.Idefics3Processor(pixels, tokenizer, image_seq_len=16, chat_template=template)


def _smolvlm(tokenizer: Any, template: str) -> Any:
    pixels = tf.SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    video = tf.SmolVLMVideoProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return tf.SmolVLMProcessor(pixels, tokenizer, video, image_seq_len=16, chat_template=template)


def _mistral3(tokenizer: Any, template: str) -> Any:
    pixels = tf.PixtralImageProcessor(size={"longest_edge": 32}, patch_size={"height": 4, "width": 4})
    return tf.PixtralProcessor(pixels, tokenizer, patch_size=4, spatial_merge_size=2, chat_template=template)


def _paligemma(tokenizer: Any, template: str) -> Any:
    pixels = tf.SiglipImageProcessor(size=SIDE)
    pixels.image_seq_length = 16
    return tf.PaliGemmaProcessor(pixels, tokenizer, chat_template=template)


def _qwen(name: str) -> MakeProcessor:
    def make(tokenizer: Any, template: str) -> Any:
        patches = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
        size = {"shortest_edge": 8 * 8, "longest_edge": 32 * 32}
        video = tf.Qwen3VLVideoProcessor if name == "Qwen3VL" else tf.Qwen2VLVideoProcessor
        return getattr(tf, f"{name}Processor")(
            tf.Qwen2VLImageProcessor(size=size, **patches),
            tokenizer,
            video(size={**size, "longest_edge": 16 * 32 * 32}, **patches),
            chat_template=template,
        )

    return make


QWEN_TOKENS = {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO, "<|vision_start|>": START, "<|vision_end|>": END}
QWEN_EXTRA = {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
TILED = {"<image>": IMAGE, "<fake_token_around_image>": 154, "<end_of_utterance>": 155, "<global-img>": 156} | {
    f"<row_{row}_col_{column}>": 158 + 2 * row + column for row in (1, 2) for column in (1, 2)
}

FAMILIES: dict[str, Family] = {
    "llava": Family("llava", _llava, {"<image>": IMAGE}, "<image>", (16, 16)),
    "llava-next": Family("llava_next", _llava_next, {"<image>": IMAGE}, "<image>", (88, 52)),
    "gemma3": Family(
        "gemma3",
        _gemma3,
        {"<img>": IMAGE, "<boi>": START, "<eoi>": END},
        "<boi>",
        (16, 16),
        extra={"image_token": "<img>", "boi_token": "<boi>", "eoi_token": "<eoi>"},
    ),
    # before 5.19 its image processor needed torchvision, too
    "idefics3": Family("idefics3", _idefics3, TILED, "<image>", (80, 48), torchvision=TRANSFORMERS < (5, 19)),
    "mistral3": Family(
        "mistral3",
        _mistral3,
        {"[IMG]": IMAGE, "[IMG_BREAK]": START, "[IMG_END]": END},
        "[IMG]",
        (16, 8),
        torchvision=True,
    ),
    "paligemma": Family("paligemma", _paligemma, {"<image>": IMAGE}, "<image>", (16, 16), roles=False),
    "internvl": Family(
        "internvl",
        _internvl,
        {"<IMG_CONTEXT>": IMAGE, "<img>": START, "</img>": END, "<video>": 154},
        "<IMG_CONTEXT>",
        (16, 48),
        video="<video>",
        extra={
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<video>",
        },
        torchvision=True,
        clip=6 * 16,
    ),
    "llava-onevision": Family(
        "llava_onevision",
        _llava_onevision,
        {"<image>": IMAGE, "<video>": VIDEO},
        "<image>",
        (88, 52),
        video="<video>",
        torchvision=True,
        clip=6 * 4 + 1,
        together=34,  # several pictures are not cut into patches
    ),
    "llava-next-video": Family(
        "llava_next_video",
        _llava_next_video,
        {"<image>": IMAGE, "<video>": VIDEO},
        "<image>",
        (88, 52),
        video="<video>",
        torchvision=True,
        clip=6 * 4,
    ),
    "video-llava": Family(
        "video_llava",
        _video_llava,
        {"<image>": IMAGE, "<video>": VIDEO},
        "<image>",
        (16, 16),
        video="<video>",
        torchvision=True,
        clip=6 * 17,
    ),
    "smolvlm": Family(
        "smolvlm",
        _smolvlm,
        TILED | {"<video>": 157},
        "<image>",
        (80, 48),
        video="<video>",
        torchvision=True,
        clip=6 * 16,
    ),
    "qwen2-vl": Family(
        "qwen2_vl", _qwen("Qwen2VL"), QWEN_TOKENS, QWEN_IMAGE, (16, 10), QWEN_VIDEO, torchvision=True, clip=48
    ),
    "qwen2.5-vl": Family(
        "qwen2_5_vl", _qwen("Qwen2_5_VL"), QWEN_TOKENS, QWEN_IMAGE, (16, 10), QWEN_VIDEO, torchvision=True, clip=48
    ),
    "qwen3-vl": Family(
        "qwen3_vl",
        _qwen("Qwen3VL"),
        QWEN_TOKENS,
        QWEN_IMAGE,
        (16, 10),
        QWEN_VIDEO,
        extra=QWEN_EXTRA,
        torchvision=True,
        clip=48,
    ),
}
"""By the name that its example has in ``examples/models``."""


def usable() -> list[str]:
    """The families for this process: those whose processors need torchvision where it was imported, else the others."""
    with_torchvision = "tests.support.torchvision_stub" in sys.modules
    return [name for name, family in FAMILIES.items() if family.torchvision == with_torchvision]
