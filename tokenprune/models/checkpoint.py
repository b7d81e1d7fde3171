"""Where a checkpoint's files are: in a folder, in the cache of the hub, or on the hub."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from tokenprune.core.hub import NotOnHubError, ask_hub, is_hub_name
from tokenprune.errors import MissingDataError

PROCESSOR = ("processor_config.json", "preprocessor_config.json")


def has_config(folder: Path) -> bool:
    """Whether a folder has a model's config."""
    return (folder / "config.json").is_file()


def has_all(folder: Path) -> bool:
    """Whether a folder has all that a model is loaded from: config, processor, and the weights that its index names."""
    return has_config(folder) and _has_processor(folder) and _has_weights(folder)


def _has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in PROCESSOR)


def _has_weights(folder: Path) -> bool:
    indices = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")]
    if not indices:
        return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    try:
        shards = set(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, AttributeError, TypeError):  # it is damaged: whoever loads it says so
        return False
    return all((folder / shard).is_file() for shard in shards)


def checkpoint_source(checkpoint: str, revision: str | None, enough: Callable[[Path], bool]) -> str:
    """Find a checkpoint. The hub is asked only for what is neither a folder nor complete in the hub's cache.

    Args:
        checkpoint: A folder, or a name on the hub.
        revision: Branch, tag or commit on the hub.
        enough: Whether the files of a folder are all that is needed: :func:`has_config` or :func:`has_all`.

    Returns:
        The folder, or the name for transformers to download.

    Raises:
        MissingDataError: There is no such folder and no such name on the hub, or the hub cannot be asked.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_file():
        raise _missing(checkpoint, "it is a file", "give the folder that holds it")
    if not is_hub_name(checkpoint):
        raise _missing(checkpoint, "there is no such folder", "check the path")
    config = try_to_load_from_cache(checkpoint, "config.json", revision=revision)
    cached = Path(config).parent if isinstance(config, str) else None
    if cached is not None and enough(cached):
        return str(cached)  # by its name, transformers would ask the hub for an adapter, whatever it is told
    try:
        silent = ask_hub(checkpoint, "model", revision)
    except NotOnHubError as error:
        fix = "check the name; private ones need `hf auth login`"
        raise _missing(checkpoint, f"there is no such folder, and {error}", fix) from None
    if silent is None:
        return checkpoint
    if cached is not None:  # perhaps it has what this model needs
        return str(cached)
    raise _missing(
        checkpoint,
        f"there is no such folder, the hub's cache does not have it, and {silent}",
        "give a local folder, or download the checkpoint first with `hf download`",
    )


def check_processor(checkpoint: str) -> None:
    """Check that a folder with a model has a processor, too.

    Raises:
        MissingDataError: It has none.
    """
    folder = Path(checkpoint).expanduser()
    if has_config(folder) and not _has_processor(folder):
        raise MissingDataError(
            f"checkpoint {checkpoint!r} cannot be loaded: it has no processor (neither {' nor '.join(PROCESSOR)})",
            "copy it and the tokenizer's files into the folder, or save the processor there",
        )


def _missing(checkpoint: str, why: str, fix: str) -> MissingDataError:
    """The error for a checkpoint that cannot be found; it names folders with similar names."""
    folder = Path(checkpoint).expanduser()
    there = [path.name for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, there, n=1)
    hint = f"; did you mean {str(folder.with_name(near[0]))!r}?" if near else ""
    return MissingDataError(f"checkpoint {checkpoint!r} cannot be loaded: {why}", f"{fix}{hint}")
