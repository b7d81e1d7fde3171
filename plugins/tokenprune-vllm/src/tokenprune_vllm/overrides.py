"""What a user gives to vLLM: the overrides of the model's config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from tokenprune.authoring import ConfigError, MissingDataError
from tokenprune_vllm.architectures import CLASSES, check_videos, own_name
from tokenprune_vllm.settings import KEY, EngineSettings, Requests, method_data, parsed


def overrides(
    checkpoint: str | Path,
    *,
    method: str | Path,
    ratio: float | None = None,
    tokens: int | None = None,
    positions: str | None = None,
    requests: Requests = "method",
    methods: Sequence[str | Path] | None = None,
) -> dict[str, Any]:
    """The ``hf_overrides`` with which vLLM prunes the visual tokens of a checkpoint.

    Args:
        checkpoint: The folder of a checkpoint, its name on the hub, or the name of its architecture.
        method: The name of an installed method; the YAML file of one, also the ``tuned.yaml`` of a tune; or
            ``unpruned``, for a server on which only requests prune.
        ratio: Share of the visual tokens of each picture or video that is kept.
        tokens: Visual tokens of each picture or video that are kept.
        positions: ``original`` or ``renumbered``; None for what the method says.
        requests: What a request may change by ``mm_processor_kwargs={"tokenprune": {...}}``: ``nothing``, ``budget``
            or ``method``.
        methods: The methods that a request may name, and YAML files of such, which a request names without folder and
            ending; None for all installed ones that can be served.

    Raises:
        ConfigError: The architecture cannot be pruned, or the settings are wrong.
        MissingDataError: The checkpoint has no readable ``config.json``.
        TokenPruneError: There is no such method, or it cannot be served.
    """
    given = {"ratio": ratio, "tokens": tokens, "positions": positions}
    default = parsed({"method": method_data(method), **{name: x for name, x in given.items() if x is not None}})
    architecture = architecture_of(checkpoint)
    own, resolved = own_name(architecture), default.resolved()
    if resolved is not None:
        check_videos(architecture, resolved)
    offered = None if methods is None else {Path(str(entry)).stem: method_data(entry) for entry in methods}
    if offered is not None and methods is not None and len(offered) < len(methods):
        raise ConfigError("two of the offered methods have one name", "requests tell them apart by the names of files")
    settings = EngineSettings(
        default=default,
        requests=requests,
        methods=None if offered is None else tuple(offered),
        definitions={name: data for name, data in (offered or {}).items() if isinstance(data, dict)},
    )
    settings.check_offered()
    return {
        "architectures": [own],
        KEY: settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
    }


def architecture_of(checkpoint: str | Path) -> str:
    """The architecture of a checkpoint; the name of one that this plugin serves is one itself.

    Args:
        checkpoint: A folder, or a name on the hub, whose ``config.json`` is taken from the cache or loaded.

    Raises:
        MissingDataError: There is no readable ``config.json``.
        ConfigError: The file names no architecture.
    """
    if str(checkpoint) in CLASSES:
        return str(checkpoint)
    try:
        config, _ = PretrainedConfig.get_config_dict(checkpoint)
        why = "" if config else "there is none"
    except (OSError, ValueError) as error:
        why = str(error).partition("\n")[0]
    if why:
        raise MissingDataError(
            f"{checkpoint} has no readable config.json ({why})",
            "give the folder of a checkpoint, or its name on the hub",
        )
    names = config.get("architectures") or []
    if len(names) != 1:
        raise ConfigError(f"the config.json of {checkpoint} names {len(names)} architectures", "it must name one")
    return str(names[0])
