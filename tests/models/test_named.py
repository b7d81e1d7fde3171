"""One way to name a model, for every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from tests.experiment.test_cli import call
from tests.support.toy_distribution import toy_installed
from tokenprune.errors import ConfigError
from tokenprune.models.base import LoadedModel, ModelSpec
from tokenprune.models.hf import HuggingFace
from tokenprune.models.named import find_model, find_preset, is_known, model_entry
from tokenprune.models.presets import PRESETS

__all__ = ["toy_installed"]

pytestmark = pytest.mark.usefixtures("toy_installed")


def test_what_a_name_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_entry("toy", instruction="") == {"name": "toy"}
    assert model_entry("a/b", {"dtype": "bf16", "device": None}, instruction="") == {
        "name": "hf",
        "checkpoint": "a/b",
        "instruction": "",
        "dtype": "bf16",
    }
    assert find_preset("llava-0.5b") is PRESETS["llava-0.5b"]
    assert find_preset("toy") is None
    with pytest.raises(ConfigError, match=r"'llava-0.5b' is an architecture without weights"):
        model_entry("llava-0.5b")
    (tmp_path / "llava-0.5b").mkdir()  # what is on the disk comes first
    assert find_preset("llava-0.5b") is None
    assert model_entry("llava-0.5b") == {"name": "hf", "checkpoint": "llava-0.5b"}
    assert [name for name in ("", "nope", "a/b", "toy", "qwen2.5-vl-7b") if is_known(name)] == [
        "a/b",
        "toy",
        "qwen2.5-vl-7b",
    ]


def test_a_setting_that_the_model_lacks() -> None:
    with pytest.raises(ConfigError, match=r"^bench: model.dtype: unknown key"):
        find_model("toy", "bench", {"dtype": "float32"})


@pytest.mark.parametrize("command", ["bench", "flops", "look", "tune", "show"])
def test_the_help_of_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, command, "--help") == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "A checkpoint's folder or hub name, or the name of a model that a plugin brings" in words
    assert ("qwen2.5-vl-7b" in words) == (command in ("bench", "flops", "show"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "unknown model ''; installed: "),
        ("llava-7b", "unknown model 'llava-7b'; did you mean 'llava-1.5-7b'"),
        ("./nope", "checkpoint './nope' cannot be loaded: there is no such folder; check the path"),
        ("owner/nope", "checkpoint 'owner/nope' cannot be loaded: there is no such folder, the hub's cache does not"),
    ],
)
@pytest.mark.parametrize("command", ["bench", "flops", "look", "tune"])
def test_a_mistyped_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    more = {
        "look": ["x.png", "--question", "x?", "--method", "fastv"],
        "tune": ["--data", "toy", "--average-ratio", "0.5"],
    }
    if command == "look":
        monkeypatch.setattr("tokenprune.cli.looking.read_sample", lambda *_: None)
    assert call(monkeypatch, command, "--model", name, *more.get(command, [])) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_flops_of_a_checkpoint(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(HuggingFace, "load", lambda self: pytest.fail("the weights were read"))
    arguments = ["flops", "--model", str(folders["llava"]), "--keep-tokens", "4", "--json"]
    assert call(monkeypatch, *arguments) == 2
    assert "give --visual-tokens" in capsys.readouterr().err
    assert call(monkeypatch, *arguments, "--visual-tokens", "16") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == [4]


def test_bench_of_a_plugins_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "--model", "toy", "--rounds", "1", "--warmup", "0", "--decode", "1", "--average-ratio", "0.5"]
    assert call(monkeypatch, *arguments, "--image-size", "32", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["model"]["name"] == "toy"
    assert [row["name"] for row in data["batches"][0]["rows"]] == ["unpruned", "keep-all", "entropyprune"]
    assert call(monkeypatch, *arguments, "--dtype", "bf16") == 2
    assert "bench: model.dtype: unknown key" in capsys.readouterr().err


def test_a_precision_of_a_plugins_model_has_one_name() -> None:
    class Own(ModelSpec):
        dtype: Literal["float32", "bfloat16"] = "float32"

        def load(self) -> LoadedModel:
            raise NotImplementedError

    assert [Own(dtype=name).dtype for name in ("bf16", "torch.float32")] == ["bfloat16", "float32"]
