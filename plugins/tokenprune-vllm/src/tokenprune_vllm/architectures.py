"""The families that can be served: the architecture of a checkpoint, and our class for it."""

from __future__ import annotations

from tokenprune import Method
from tokenprune.authoring import ConfigError

#: In front of the name of an architecture. Only this plugin registers such names: without it vLLM refuses to start.
PREFIX = "TokenPrune"

#: Architecture -> the class that serves it, as ``module:class``; a string, so that nothing of vLLM is imported.
CLASSES = {
    "LlavaForConditionalGeneration": "tokenprune_vllm.families.llava:Llava",
    "LlavaNextForConditionalGeneration": "tokenprune_vllm.families.llava:LlavaNext",
    "LlavaOnevisionForConditionalGeneration": "tokenprune_vllm.families.llava:LlavaOnevision",
    "Gemma3ForConditionalGeneration": "tokenprune_vllm.families.tiled:Gemma3",
    "InternVLForConditionalGeneration": "tokenprune_vllm.families.tiled:InternVL",
    "Qwen2VLForConditionalGeneration": "tokenprune_vllm.families.qwen_vl:Qwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "tokenprune_vllm.families.qwen_vl:Qwen25VL",
    "Qwen3VLForConditionalGeneration": "tokenprune_vllm.families.qwen_vl:Qwen3VL",
}

#: Those whose language model has one position per token. They are carried as three, of which one is used.
ONE_POSITION = frozenset(name for name in CLASSES if not name.startswith("Qwen"))

#: Those that get videos in vLLM.
VIDEOS = frozenset(name for name in CLASSES if name.startswith(("Qwen", "LlavaOnevisionFor", "InternVLFor")))


def check_videos(architecture: str, method: Method) -> None:
    """Refuse a method that compares the frames of a video where a model gets none.

    Args:
        architecture: Our name for it, or that of the checkpoint.
        method: The method.

    Raises:
        ConfigError: It gets none.
    """
    name = architecture.removeprefix(PREFIX)
    if method.pruner.across_images and name not in VIDEOS:
        label = method.label or type(method.pruner).__name__
        raise ConfigError(
            f"method {label!r} compares the frames of a video, and {name} gets none in vLLM",
            "use a method for pictures",
        )


def own_name(architecture: str) -> str:
    """The name under which this plugin registers an architecture.

    Raises:
        ConfigError: There is no class for it.
    """
    if architecture not in CLASSES:
        raise ConfigError(
            f"architecture {architecture!r} cannot be pruned in vLLM", f"use one of {', '.join(sorted(CLASSES))}"
        )
    return PREFIX + architecture
