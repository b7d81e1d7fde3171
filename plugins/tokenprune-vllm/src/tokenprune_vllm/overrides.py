"""What a user gives to vLLM: the overrides of the model's config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenprune.authoring import ConfigError, MissingDataError
from tokenprune_vllm.architectures import check_videos, own_name
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
        checkpoint: The folder of a checkpoint, or the name of its architecture, which its ``config.json`` states.
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
    settings = EngineSettings(
        default=default,
        requests=requests,
        methods=None if offered is None else tuple(offered),
        definitions={name: data for name, data in (offered or {}).items() if isinstance(data, dict)},
    )
    return {
        "architectures": [own],
        KEY: settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
    }


def architecture_of(checkpoint: str | Path) -> str:
    """The architecture of a checkpoint; a name that is no folder is one itself.

    Raises:
        MissingDataError: The folder has no readable ``config.json``.
        ConfigError: The file names no architecture.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return str(checkpoint)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MissingDataError(
            f"{folder} has no readable config.json ({error})", "give the folder of a checkpoint"
        ) from None
    names = config.get("architectures") or []
    if len(names) != 1:
        raise ConfigError(f"{folder / 'config.json'} names {len(names)} architectures", "it must name one")
    return str(names[0])
