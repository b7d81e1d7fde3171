"""A folder knows the weights and the code that its answers were made with, and refuses others."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

from tests.support.toy import ToyModel, completed, config
from tokenprune.errors import OutputError, TokenPruneWarning
from tokenprune.experiment import run_experiment
from tokenprune.experiment.dry_run import plan_experiment
from tokenprune.experiment.part import Part
from tokenprune.fingerprint import code
from tokenprune.models.base import LoadedModel

Experiment = Callable[..., Any]


def model_is(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], object]) -> None:
    """From now on the same configuration loads another model."""
    load = ToyModel.load

    def changed(self: ToyModel) -> LoadedModel:
        loaded = load(self)
        change(loaded.model)
        return loaded

    monkeypatch.setattr(ToyModel, "load", changed)


@torch.no_grad()
def other_weights(model: Any) -> None:
    """As if it had been trained on."""
    model.get_decoder().layers[0].mlp.down_proj.weight.mul_(1.5)


def on_the_disk(folder: Path) -> Callable[[Any], object]:
    """Its weights cannot be read."""
    return lambda model: accelerate.disk_offload(model, str(folder), torch.device("cpu"))


def other_code(monkeypatch: pytest.MonkeyPatch, name: str = "tests.support.toy") -> None:
    """A module is another version; by default that of the toy task."""
    source = code._source

    def changed(module: Any) -> bytes | None:
        found = source(module)
        return found + b"# changed" if found is not None and module.__name__ == name else found

    monkeypatch.setattr(code, "_source", changed)


def stopped(folder: Path) -> None:
    run_experiment(config(str(folder)), part=Part(limit=10))


def finished(folder: Path) -> None:
    completed(folder, methods=["random"])


def rows(folder: Path) -> str:
    return (folder / "samples.jsonl").read_text()


STARTS = pytest.mark.parametrize("start", [stopped, finished])
OTHERS: dict[str, Callable[[Any], object]] = {
    "weights": other_weights,
    "dtype": lambda model: model.to(torch.bfloat16),
    "the scale of an attention": lambda model: setattr(model.get_decoder().layers[1].self_attn, "scaling", 0.5),
}


@pytest.fixture(autouse=True)
def no_warning() -> Any:
    """Nothing that is known warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", TokenPruneWarning)
        yield


@STARTS
def test_the_same_weights_and_code_go_on(tmp_path: Path, start: Callable[[Path], None]) -> None:
    start(tmp_path)
    before = (tmp_path / "origin.json").read_bytes()
    run_experiment(config(str(tmp_path)))
    assert (tmp_path / "origin.json").read_bytes() == before
    kept = json.loads(before)
    assert kept["model"].startswith("2-")
    assert list(kept["code"]) == ["model 'tests.support.toy:ToyModel'", "task 'tests.support.toy:ToyTask'", "processor"]


@STARTS
@pytest.mark.parametrize("name", OTHERS)
def test_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[[Path], None], name: str
) -> None:
    """A stopped run does not go on, and a method is not added to a finished one. Nothing is written."""
    start(tmp_path)
    before, kept = rows(tmp_path), json.loads((tmp_path / "origin.json").read_text())["model"]
    model_is(monkeypatch, OTHERS[name])
    for run in (run_experiment, plan_experiment):
        with pytest.raises(
            OutputError,
            match=rf"holds results of another model .*: fingerprint {kept}, transformers .* there, fingerprint 2-\w+,"
            " transformers .* now; choose another output folder, or delete that one",
        ):
            run(config(str(tmp_path)))
    assert rows(tmp_path) == before


@STARTS
def test_other_code_of_the_task_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[[Path], None]
) -> None:
    start(tmp_path)
    other_code(monkeypatch)
    match = r"of another version of the .*toy:Toy.*: source \w+ there, source \w+ now; choose another output"
    with pytest.raises(OutputError, match=match):
        plan_experiment(config(str(tmp_path)))
    monkeypatch.setattr(ToyModel, "load", lambda self: pytest.fail("it was loaded"))
    with pytest.raises(OutputError, match=match):
        run_experiment(config(str(tmp_path)))


@pytest.mark.parametrize("name", ["pruners.topk", "scorers.norm", "selectors.fixed", "budgets.keep"])
@STARTS
def test_other_code_of_a_method_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[[Path], None], name: str
) -> None:
    """Rows of a scorer's earlier version are not mixed with those of a later one."""
    start(tmp_path)
    asked = config(str(tmp_path), methods=["norm-hidden-large"])
    run_experiment(asked, part=Part(limit=10))
    other_code(monkeypatch, f"tokenprune.{name}")
    match = r"holds results of '[\w-]+ .*' with another version of the .*: tokenprune-mllm .* there, tokenprune-mllm"
    for run in (run_experiment, plan_experiment):
        with pytest.raises(OutputError, match=match):
            run(asked)


@pytest.mark.slow
def test_a_folder_without_code_of_methods_goes_on(tmp_path: Path) -> None:
    """Folders of older versions do not know it, and do not learn it from later answers."""
    run_experiment(config(str(tmp_path)), part=Part(limit=10))
    path = tmp_path / "series.json"
    older = {key: item and {name: item[name] for name in item if name != "code"} for key, item in read(path).items()}
    path.write_text(json.dumps(older))
    run_experiment(config(str(tmp_path)))
    assert read(path) == older


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_other_code_of_a_metric_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    lines = []
    for number in range(4):
        Image.effect_noise((32, 32), 90).convert("RGB").save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "question": "abc", "answer": "w5"}))
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    asked = config(str(tmp_path / "out"), task={"name": "vqa", "data": str(tmp_path / "q.jsonl")}, methods=["random"])
    run_experiment(asked, part=Part(limit=2))
    source = code._source
    monkeypatch.setattr(
        code,
        "_source",
        lambda module: (source(module) or b"") + b"#" * (module.__name__ == "tokenprune.metrics.normalise"),
    )
    with pytest.raises(OutputError, match=r"another version of the metric 'exact_match': tokenprune-mllm .* there"):
        run_experiment(asked)


@pytest.mark.slow
def test_the_examples_of_a_finished_folder_are_not_drawn_with_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_experiment(config(str(tmp_path), examples=1))
    model_is(monkeypatch, other_weights)
    with pytest.raises(OutputError, match="holds results of another model"):
        run_experiment(config(str(tmp_path), examples=3))


@pytest.mark.slow
def test_weights_that_cannot_be_read_are_said_to_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder is made, and where the run goes on; no later run makes it known."""
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        model_is(patch, on_the_disk(tmp_path / "one"))
        with pytest.warns(TokenPruneWarning, match="does not record the weights, which cannot be read") as caught:
            run_experiment(config(str(folder)), part=Part(limit=5))
        assert sum(issubclass(item.category, TokenPruneWarning) for item in caught) == 1
    with monkeypatch.context() as patch:
        model_is(patch, on_the_disk(tmp_path / "two"))
        with pytest.warns(TokenPruneWarning, match="of the same weights is unknown: they could not be read") as caught:
            run_experiment(config(str(folder)), part=Part(limit=10))
        assert sum(issubclass(item.category, TokenPruneWarning) for item in caught) == 1
    with pytest.warns(TokenPruneWarning, match="of the same weights is unknown"):
        run_experiment(config(str(folder)), part=Part(limit=15))
    assert json.loads((folder / "origin.json").read_text())["model"] is None


@pytest.mark.slow
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")])
def test_an_older_folder_goes_on_with_one_warning(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """And does not claim later that it knew."""
    stopped(tmp_path)
    damage(tmp_path / "origin.json")
    for limit in (15, 20):
        with pytest.warns(TokenPruneWarning, match="of the same weights and code of the model .* an old") as caught:
            run_experiment(config(str(tmp_path)), part=Part(limit=limit))
        assert sum(issubclass(item.category, TokenPruneWarning) for item in caught) == 1
    run_experiment(config(str(tmp_path)), part=Part(limit=20))  # it has finished: nothing is computed
