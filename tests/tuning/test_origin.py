"""A tune's folder knows the weights, the samples and the code that its rows were measured with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.experiment.test_origin import other_code
from tests.tuning.planted import BUDGET, config, planted
from tokenprune.errors import OutputError, TokenPruneWarning
from tokenprune.tuning import measuring, run_tune

KNOWN = pytest.mark.filterwarnings("error::tokenprune.errors.TokenPruneWarning")


@pytest.mark.slow
@KNOWN
@pytest.mark.parametrize("change", ["dtype of the model", "a number of a sample", "dtype of a sample"])
def test_what_is_known_and_differs_is_refused(tmp_path: Path, change: str) -> None:
    model, samples = planted(8)
    tp.tune(model, samples, BUDGET, ["fastv"], output=tmp_path)
    tp.tune(model, samples, BUDGET, ["fastv"], output=tmp_path)
    match = r"holds a tune on other samples \(batch 4: 2-\w+ there, 2-\w+ now\); choose another output folder"
    if change == "dtype of the model":
        model.to(torch.float64)
        match = "holds results of another model"
    elif change == "dtype of a sample":
        samples[-1] = samples[-1] | {"attention_mask": samples[-1]["attention_mask"].int()}
    else:
        samples[-1] = samples[-1] | {"pixel_values": samples[-1]["pixel_values"] + 1e-6}
    with pytest.raises(OutputError, match=match):
        tp.tune(model, samples, BUDGET, ["fastv"], output=tmp_path)


@KNOWN
def test_other_code_of_the_task_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_tune(config(str(tmp_path), methods=["fastv"]))
    run_tune(config(str(tmp_path), methods=["fastv"]))
    other_code(monkeypatch)
    with pytest.raises(OutputError, match=r"another version of the .*toy:Toy.*: source \w+ there, source \w+ now"):
        run_tune(config(str(tmp_path), methods=["fastv"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scorers.fastv", "pruners.topk", "selectors.fixed"])
def test_other_code_of_a_candidate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Rows of a scorer's earlier version are not raced against those of a later one."""
    model, samples = planted(8)
    tp.tune(model, samples, BUDGET, ["fastv"], output=tmp_path)
    other_code(monkeypatch, f"tokenprune.{name}")
    match = r"holds results of '.*' with another version of the .*: tokenprune-mllm .* there, tokenprune-mllm .* now"
    with pytest.raises(OutputError, match=match):
        tp.tune(model, samples, BUDGET, ["fastv"], output=tmp_path)


@pytest.mark.slow
def test_a_tune_of_an_older_version_is_refused(tmp_path: Path) -> None:
    """Its fingerprints of samples were made in another way: nobody knows what its rows are about."""
    model, samples = planted(8)
    tp.tune(model, samples, BUDGET, ["fastv"], output=tmp_path)
    (tmp_path / "origin.json").unlink()
    (tmp_path / "tune.json").write_text(json.dumps({"model": "0123456789abcdef", "batches": ["0"] * 4}))
    with pytest.raises(OutputError, match=r"of an older version .*, of unknown weights and samples; choose another"):
        tp.tune(model, samples, BUDGET, ["fastv"], output=tmp_path)


@pytest.mark.slow
def test_what_cannot_be_read_is_said_to_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = planted(8)
    read: Any = measuring.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "fingerprint", lambda *values: None)
        with pytest.warns(TokenPruneWarning, match="does not record the weights, which cannot be read") as caught:
            tp.tune(model, samples, BUDGET, ["fastv"], output=tmp_path)
        assert sum(issubclass(item.category, TokenPruneWarning) for item in caught) == 1
    with pytest.warns(TokenPruneWarning, match="of the same weights is unknown: they could not be read") as caught:
        tp.tune(model, samples, BUDGET, ["fastv"], output=tmp_path)
    assert sum(issubclass(item.category, TokenPruneWarning) for item in caught) == 1
    assert read is measuring.fingerprint
    stored = json.loads((tmp_path / "tune.json").read_text())
    stored["batches"][1] = None
    (tmp_path / "tune.json").write_text(json.dumps(stored))
    with pytest.warns(TokenPruneWarning, match="1 of 4 batches cannot be read: whether .* the same samples is unknown"):
        tp.tune(model, samples, BUDGET, ["fastv"], output=tmp_path)
