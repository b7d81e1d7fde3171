"""The entry point that vLLM calls in every process."""

from __future__ import annotations

from typing import Any

from tokenprune.authoring import ConfigError, UnsupportedFeatureError
from tokenprune_vllm import private
from tokenprune_vllm.architectures import CLASSES, ONE_POSITION, PREFIX, check_videos
from tokenprune_vllm.settings import KEY, engine_settings
from tokenprune_vllm.twin import twin_of


def register() -> None:
    """Tell vLLM about our architectures. Nothing changes for models with other names.

    Raises:
        TokenPruneError: This vLLM is not one that the plugin was tested with.
    """
    private.check()
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    class Update(VerifyAndUpdateConfig):  # type: ignore[misc]
        """Called when the model's config is read, before the engine starts."""

        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            """Check the settings, and let positions follow the features."""
            prepare(model_config)

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            """Refuse what runs the vision tower without our class."""
            refuse(vllm_config)

    for architecture, place in CLASSES.items():
        ModelRegistry.register_model(PREFIX + architecture, place)
        MODELS_CONFIG_MAP[PREFIX + architecture] = Update
    private.mend_cpu_runner()


def prepare(model_config: Any) -> None:
    """Check the settings of an engine, and let positions follow the features.

    Raises:
        TokenPruneError: The settings are wrong, or vLLM's own pruning is on.
    """
    check_default(model_config)
    rate = model_config.multimodal_config.video_pruning_rate
    if rate is not None and rate > 1e-9:
        raise ConfigError(
            f"vLLM's own pruning of videos is on (video_pruning_rate {rate})",
            "leave it out: the method of tokenprune prunes videos, too",
        )
    private.say_that_positions_follow_features(model_config)
    (architecture,) = model_config.hf_config.architectures
    if architecture.removeprefix(PREFIX) in ONE_POSITION:
        # the runner then keeps three positions per token; of the top config only: the language model's RoPE is its own
        model_config.hf_config.mrope_section = [1, 1, 1]


def check_default(model_config: Any) -> None:
    """Check the method of requests that say nothing, and those that a request may name.

    Raises:
        TokenPruneError: It cannot be served.
    """
    settings = engine_settings(getattr(model_config.hf_config, KEY, None))
    settings.check_offered()
    method = settings.default.resolved()
    if method is not None:
        (architecture,) = model_config.hf_config.architectures
        check_videos(architecture, method)
        twin_of(model_config.hf_config).check(method, model_config.max_model_len, settings.tower)


def refuse(vllm_config: Any) -> None:
    """Refuse settings of the engine with which the vision tower runs without our class, or is divided.

    Raises:
        UnsupportedFeatureError: One is on; or the method reads a tower that is divided between devices.
    """
    model_config = vllm_config.model_config
    if vllm_config.parallel_config.tensor_parallel_size > 1:
        config = model_config.hf_config
        setattr(config, KEY, {**getattr(config, KEY), "tower": False})  # for the requests, too
        check_default(model_config)
    compilation = vllm_config.compilation_config
    multimodal = model_config.multimodal_config
    for owner, name in (
        (compilation, "cudagraph_mm_encoder"),
        (compilation, "compile_mm_encoder"),
        (multimodal, "enable_mm_embeds"),
    ):
        if getattr(owner, name, False):
            raise UnsupportedFeatureError(
                f"{name} is on, and the vision tower would run without the pruning", f"leave {name} out"
            )
