"""What is kept of a model's curves and verdicts: for that model and these inputs only, and if the folder allows it."""

from __future__ import annotations

import copy
import errno
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from PIL import Image

import tokenprune as tp
from tests.support.tiny import CASES
from tokenprune.engine.trials import profile_cache
from tokenprune.engine.trials.profile_cache import ProfileCache
from tokenprune.errors import TokenPruneWarning
from tokenprune.run import choose_layers
from tokenprune.selectors.entropy_profile import EntropyProfile

CURVES = EntropyProfile(family="llava", num_layers=2, curves=((2.0, 1.0),), tower=((3.0,),))


def lora() -> Any:
    """A model inside a PEFT model."""
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    return peft.get_peft_model(CASES["llava"].build(), settings).eval().get_base_model()


def inputs() -> dict[str, Any]:
    """Inputs of every kind that a processor may return."""
    return {
        "input_ids": torch.arange(4)[None],
        "images": [Image.new("RGB", (4, 4), "red")],
        "sizes": Image.effect_noise((4, 4), 9).size,
        "array": torch.zeros(3).numpy(),
    }


def in_another_dtype(model: Any, given: Any) -> None:
    given["input_ids"] = given["input_ids"].int()


CHANGES: dict[str, Callable[[Any, Any], object]] = {
    "a column": lambda model, given: model.get_decoder().embed_tokens.weight.data[:, 5].add_(1),
    "dtype of the model": lambda model, given: model.to(torch.bfloat16),
    "LoRA's scaling": lambda model, given: model.get_decoder().layers[0].self_attn.q_proj.scaling.update(default=9.0),
    "a picture": lambda model, given: given.update(images=[Image.new("RGB", (4, 4), "blue")]),
    "an array": lambda model, given: given.update(array=torch.ones(3).numpy()),
    "dtype of an input": in_another_dtype,
    "shape of an input": lambda model, given: given.update(input_ids=given["input_ids"].T),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_model_or_input_finds_nothing(tmp_path: Path, name: str) -> None:
    model, given = lora(), inputs()
    ProfileCache(model, [given], tmp_path).write(CURVES)
    assert ProfileCache(copy.deepcopy(model), [inputs()], tmp_path).read() == CURVES
    CHANGES[name](model, given)
    assert ProfileCache(model, [given], tmp_path).read() is None


def test_inputs_that_cannot_be_read_keep_nothing(tmp_path: Path) -> None:
    kept = ProfileCache(lora(), [inputs() | {"more": object()}], tmp_path)
    kept.write(CURVES)
    assert kept.file is None
    assert kept.read() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["__version__", "transformers"])
def test_another_version_of_the_code_measures_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model = lora()
    ProfileCache(model, [inputs()], tmp_path).write(CURVES)
    place = profile_cache.transformers if name == "transformers" else profile_cache
    monkeypatch.setattr(place, "__version__", "99.0")
    assert ProfileCache(model, [inputs()], tmp_path).read() is None


def test_an_entry_of_the_decoder_alone_is_measured_again(tmp_path: Path) -> None:
    """Earlier code measured no tower; where the tower cannot be read, the entry says so and is kept."""
    kept = ProfileCache(lora(), [inputs()], tmp_path)
    kept.write(CURVES.model_copy(update={"tower": ()}))
    assert kept.file is not None
    assert kept.read() is None
    assert not kept.file.exists()
    refused = CURVES.model_copy(update={"tower": (), "tower_refused": "nobody knows it"})
    kept.write(refused)
    assert kept.read() == refused


# ---- folders that cannot be written ----


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing can be made; for the superuser, who may do everything, it lies below a file."""
    folder = tmp_path / "closed"
    if os.geteuid() == 0:
        folder.write_text("a file")
        yield folder / "cache"
        return
    folder.mkdir()
    folder.chmod(0o500)
    yield folder / "cache"
    folder.chmod(0o700)


def a_file(tmp_path: Path) -> Path:
    """A file where the folder should be."""
    (tmp_path / "file").write_text("a file")
    return tmp_path / "file"


def verified(model: Any, batches: Any) -> Any:
    """A verification: it writes the curves, and then the verdict."""
    layers = {"name": "entropy_collapse", "verify": True, "fields": ["scorer.source"]}
    method = tp.Method.from_dict(
        {
            "layers": layers,
            "pruner": {"name": "topk", "scorer": {"name": "matrix_entropy"}},
            "budget": {"name": "keep_ratio", "ratio": 0.5},
        }
    )
    return choose_layers(model, method, batches)


def tiny() -> tuple[Any, Any]:
    case = CASES["llava"]
    model = case.build()
    return model, [case.batch(model, 4, "none", seed=1).inputs]


def check_one_warning(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is made twice; the first one warns, once, though it has two things to write."""
    model, batches = tiny()
    expected = verified(model, batches)
    monkeypatch.setattr(profile_cache, "user_cache_path", lambda name: place)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert verified(model, batches) == expected
        assert verified(model, batches) == expected
    (warning,) = [item for item in caught if issubclass(item.category, TokenPruneWarning)]
    assert str(warning.message).startswith(f"the cache folder {place / 'entropy'} cannot be used (")
    assert "the next run measures them again; make the folder writable" in str(warning.message)


def test_a_folder_that_cannot_be_written_is_one_warning(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_one_warning(closed, monkeypatch)


def test_a_file_in_its_place_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_one_warning(a_file(tmp_path), monkeypatch)


def test_a_full_disk_is_one_warning_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*names: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tokenprune.selectors.entropy_profile.os.replace", full)
    check_one_warning(tmp_path, monkeypatch)
    assert not list((tmp_path / "entropy").iterdir())


def test_an_entry_that_cannot_be_read_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it cannot be removed."""
    kept = ProfileCache(lora(), [inputs()], tmp_path)
    kept.write(CURVES)
    assert kept.file is not None
    kept.file.write_text("{")

    def refused(*names: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        assert kept.read() is None
    kept.write(CURVES)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refused)
        with pytest.warns(TokenPruneWarning, match=r"cannot be used \(Permission denied\)"):
            assert kept.read() is None
    assert kept.read() == CURVES
