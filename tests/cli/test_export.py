"""`tokenprune export`: a folder with which `generate` prunes, found and run by transformers itself, offline."""

from __future__ import annotations

import builtins
import runpy
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import dynamic_module_utils

import tokenprune as tp
from tests.experiment.test_cli import call
from tests.support.simple import fastv, pair
from tokenprune.core.architecture import Architecture
from tokenprune.engine.reservation import reservation


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; what transformers copies goes below it."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def exported(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    assert call(monkeypatch, "export", *words) == 0


@torch.no_grad()
def answer(model: Any, inputs: dict[str, Tensor], folder: str | None = None, **more: Any) -> Tensor:
    if folder is not None:
        more |= {"custom_generate": folder, "trust_remote_code": True}
    ids: Tensor = model.generate(**inputs, max_new_tokens=6, do_sample=False, **more)
    return ids


def under(model: Any, inputs: dict[str, Tensor], method: tp.Method, **more: Any) -> Tensor:
    with tp.apply(model, method):
        return answer(model, inputs, **more)


def test_named_methods_and_files_run_as_under_apply(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The budget is in the folder. A title may hold anything that a label may."""
    model, inputs = pair()
    exported(monkeypatch, "vision-attention", "named", "--keep-tokens", "3")
    assert capsys.readouterr().out.splitlines() == [
        "written: named/custom_generate/generate.py",
        "written: named/custom_generate/requirements.txt",
        "written: named/README.md",
    ]
    ours = fastv().model_copy(update={"label": 'x """ \\ {y} %s'})
    Path("own.yaml").write_text(ours.to_yaml())
    exported(monkeypatch, "own.yaml", "own")
    plain = answer(model, inputs)
    named = tp.load_method("vision-attention", keep_tokens=3)
    assert not torch.equal(under(model, inputs, named), plain)
    for folder, method in (("named", named), ("own", ours)):
        for more in ({}, {"num_beams": 2}, {"use_cache": False}):
            assert torch.equal(answer(model, inputs, folder, **more), under(model, inputs, method, **more))
    assert torch.equal(answer(model, inputs), plain)
    assert reservation(model.model.language_model) is None
    assert (place / "named" / "custom_generate" / "requirements.txt").read_text().splitlines()[1:] == [
        f"tokenprune-mllm>={tp.__version__}"
    ]


def test_a_tuned_method_runs_on_the_architecture_of_its_tune(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = pair()
    fits = asdict(Architecture.of(model))
    for name, tuned_for in (("tuned", fits), ("other", fits | {"depth": 5})):
        method = fastv().model_dump(mode="json") | {"label": name, "tuned_for": tuned_for}
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"description": "Found by a tune.", "method": method}))
        exported(monkeypatch, f"{name}.yaml", name)
    assert torch.equal(answer(model, inputs, "tuned"), under(model, inputs, fastv()))
    with pytest.raises(tp.TokenPruneError, match="method 'other' was tuned for"):
        answer(model, inputs, "other")
    assert "Found by a tune." in (place / "tuned" / "README.md").read_text()


def test_settings_that_were_published_for_a_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(monkeypatch, "vtw", "vtw", "--model", "llava-1.5-13b")
    text = (place / "vtw" / "custom_generate" / "generate.py").read_text()
    data = runpy.run_path("vtw/custom_generate/generate.py")["METHOD"]
    assert data == tp.load_method("vtw", model="llava-1.5-13b")
    assert "written by `tokenprune export`" in text


def test_a_model_that_carries_the_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`from_pretrained` puts the way to generate in place of the model's own; it prunes, and does not call itself."""
    model, inputs = pair()
    model.save_pretrained("checkpoint")
    exported(monkeypatch, "fastv", "folder", "--keep-tokens", "5")
    shutil.copytree("folder/custom_generate", "checkpoint/custom_generate")
    loaded = type(model).from_pretrained("checkpoint", trust_remote_code=True).eval()
    loaded.generation_config = model.generation_config
    expected = under(model, inputs, tp.load_method("fastv", keep_tokens=5))
    assert not torch.equal(expected, answer(model, inputs))
    assert torch.equal(answer(loaded, inputs), expected)
    other = fastv()  # a method that is named counts, and so does none
    with tp.apply(loaded, other) as run:
        assert torch.equal(answer(loaded, inputs), under(model, inputs, other))
        assert run.report.after == [5, 5]
        with run.using(None) as part:
            assert torch.equal(answer(loaded, inputs), answer(model, inputs))
        assert part.report.after == [16, 16]
    with tp.apply(loaded, None):
        assert torch.equal(answer(loaded, inputs), expected)
    nine = tp.load_method("fastv", keep_tokens=9)
    more = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(tp.generate(loaded, nine, **inputs, **more), under(model, inputs, nine))
    assert torch.equal(answer(loaded, inputs), expected)


@torch.no_grad()
def test_folders_on_several_threads_beside_plain_calls(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call has its own method. Plain calls meanwhile are not pruned.

    The functions are loaded before: transformers parses the file at each call, which Python before 3.11.8 cannot do on
    several threads at once.
    """
    torch.set_num_threads(1)
    model, inputs = pair(batch=1)
    asked = {**inputs, "max_new_tokens": 6, "do_sample": False}
    ways: list[Callable[[], Tensor]] = [partial(model.generate, **asked)]
    expected = [answer(model, inputs)]
    for tokens in (3, 5, 9):
        exported(monkeypatch, "fastv", f"keep-{tokens}", "--keep-tokens", str(tokens))
        function = model.load_custom_generate(f"keep-{tokens}", trust_remote_code=True)
        ways.append(partial(function, model=model, **asked))
        expected.append(under(model, inputs, tp.load_method("fastv", keep_tokens=tokens)))

    def work(number: int) -> bool:
        at = number % len(ways)
        return torch.equal(ways[at](), expected[at])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(32)))
    assert reservation(model.model.language_model) is None


def test_inside_a_run_of_somebody_else(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = pair()
    exported(monkeypatch, "fastv", "folder", "--keep-tokens", "9")
    own = under(model, inputs, fastv())
    expected = under(model, inputs, tp.load_method("fastv", keep_tokens=9))
    with tp.apply(model, fastv()) as run:
        assert torch.equal(answer(model, inputs, "folder"), expected)
        assert torch.equal(answer(model, inputs), own)
        assert not run.closed
        assert torch.equal(tp.generate(model, fastv(), **inputs, max_new_tokens=6, do_sample=False), own)
    with pytest.raises(tp.TokenPruneError, match=r"generate needs a Method, got None; call model\.generate"):
        tp.generate(model, None, **inputs)  # type: ignore[arg-type]
    with pytest.raises(tp.TokenPruneError, match="generate needs a Method, got str"):
        tp.generate(model, "fastv", **inputs)  # type: ignore[arg-type]


def test_a_failed_call_takes_everything_off(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = pair()
    exported(monkeypatch, "fastv", "folder", "--average-tokens", "1")
    with pytest.raises(tp.TokenPruneError, match="layer average"):
        answer(model, inputs, "folder")
    assert reservation(model.model.language_model) is None


def test_without_tokenprune_one_line_says_how_to_install_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers looks at the requirements first; where they are not enforced, the file itself says it."""
    model, inputs = pair()
    exported(monkeypatch, "fastv", "folder")
    version = metadata.version

    def without(name: str) -> str:
        if name == "tokenprune-mllm":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    with monkeypatch.context() as missing:
        missing.setattr(metadata, "version", without)
        with pytest.raises(ImportError, match=r"Missing requirements[^\n]*\ntokenprune-mllm>=[\d.]+ \(installed: None"):
            answer(model, inputs, "folder")
    imported = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "tokenprune":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return imported(name, *args, **kwargs)

    with monkeypatch.context() as missing:
        missing.setattr(builtins, "__import__", fail)
        expected = rf"^this way to generate needs tokenprune: pip install 'tokenprune-mllm>={tp.__version__}'$"
        with pytest.raises(ImportError, match=expected):
            runpy.run_path("folder/custom_generate/generate.py")


@pytest.mark.usefixtures("place")
def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/README.md").write_text("mine")
    for words, message in (
        (["fastv", "mine"], "mine/README.md is there, and `tokenprune export` did not write it; choose another folder"),
        (["fstv", "new"], "unknown method 'fstv'; did you mean 'fastv'?"),
        (["fastv", "new", "--keep-ratio", "0.5", "--keep-tokens", "4"], "several budgets; give one of"),
        (["fastv", "/nope/new/folder"], "there is no folder /nope"),
    ):
        assert call(monkeypatch, "export", *words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert sorted(str(path) for path in Path().rglob("*")) == ["mine", "mine/README.md"]
    exported(monkeypatch, "fastv", "again")
    exported(monkeypatch, "tome", "again")
    assert "tome" in Path("again/README.md").read_text()


def test_a_method_of_a_plugin_names_its_distribution(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(monkeypatch, "centroid", "folder")
    requirements = (place / "folder" / "custom_generate" / "requirements.txt").read_text().splitlines()
    assert requirements[1:] == [f"tokenprune-mllm>={tp.__version__}", "tokenprune-example"]
