"""Where checkpoints come from: a folder, the hub's cache, or the hub, which is asked once."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.hub import hub, silent_hub, unreachable_hub
from tokenprune.errors import MissingDataError
from tokenprune.models.hf import HuggingFace, checkpoint_source, has_all, has_config


@pytest.fixture
def cached(folders: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """The name of a checkpoint that the hub's cache has, and its folder there."""
    name = f"owner/tiny-{uuid.uuid4().hex}"
    home = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / "0" / ""
    shutil.copytree(folders["llava"], snapshot)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0")
    yield name, snapshot
    shutil.rmtree(home)


def read_or_load(name: str, whole: bool) -> None:
    spec = HuggingFace(checkpoint=name, device="cpu", dtype="float32")
    _ = spec.load() if whole else spec.read_config()


@pytest.mark.parametrize("whole", [True, False])
def test_a_mistyped_name_is_asked_for_once(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    message = (
        "checkpoint 'owner/lava' cannot be loaded: there is no such folder, and the hub has no model 'owner/lava' that"
        " you can read; check the name; private ones need `hf auth login`"
    )
    with hub(monkeypatch, "owner/llava") as asked, pytest.raises(MissingDataError, match=f"^{re.escape(message)}$"):
        read_or_load("owner/lava", whole)
    assert asked == ["/api/models/owner/lava"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_silent_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    monkeypatch.setattr("tokenprune.core.hub.TIMEOUT", 0.1)
    with (
        silent_hub(monkeypatch) as asked,
        pytest.raises(MissingDataError, match=r"does not have it, and http.*did not"),
    ):
        read_or_load("owner/llava", whole)
    assert asked == ["/api/models/owner/llava"]


@pytest.mark.parametrize("whole", [True, False])
def test_what_the_cache_has_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, cached: tuple[str, Path], whole: bool
) -> None:
    with hub(monkeypatch) as asked:
        read_or_load(cached[0], whole)
    assert asked == []


def test_what_the_cache_has_in_part_is_asked_for(monkeypatch: pytest.MonkeyPatch, cached: tuple[str, Path]) -> None:
    name, snapshot = cached
    (snapshot / "model.safetensors").unlink()
    with hub(monkeypatch, name) as asked:
        assert checkpoint_source(name, None, has_all) == name
        assert checkpoint_source(name, None, has_config) == str(snapshot)
    assert asked == [f"/api/models/{name}"]
    unreachable_hub(monkeypatch)
    with pytest.raises(MissingDataError, match="cannot be loaded"):
        read_or_load(name, whole=True)


def test_whether_a_folder_has_all(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    shutil.copytree(folders["llava"], folder)
    assert has_all(folder)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = folder / "model.safetensors.index.json"
    for text, whole in (
        ('{"weight_map": {"x": "a.safetensors"}}', True),
        ('{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}', False),
        ("{", False),
        ("[]", False),
    ):
        index.write_text(text)
        assert has_all(folder) is whole
    index.unlink()
    (folder / "a.safetensors").unlink()
    assert not has_all(folder)


def test_an_offline_hub_is_named() -> None:
    """The tests run with HF_HUB_OFFLINE."""
    with pytest.raises(MissingDataError, match="the hub's cache does not have it, and HF_HUB_OFFLINE is set"):
        read_or_load("owner/llava", whole=True)


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    monkeypatch.setenv("HOME", str(folders["llava"].parent))
    assert checkpoint_source("~/llava", None, has_all) == str(folders["llava"])
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(MissingDataError, match="cannot be loaded: it is a file; give the folder that holds it"):
        checkpoint_source(str(tmp_path / "model.safetensors"), None, has_all)
    for name in ("./model", "a/b/c", "model/"):
        with pytest.raises(
            MissingDataError, match=f"'{name}' cannot be loaded: there is no such folder; check the path"
        ):
            checkpoint_source(name, None, has_all)
