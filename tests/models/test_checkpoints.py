"""From folders with real processors to reports, for every family: pictures, several pictures, videos, all methods.

The processors of some families need torchvision, which changes those of the others. Their tests run in a process of
their own: `test_torchvision.py` runs this file again in a process with torchvision.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import tokenprune as tp
from tests.support.checkpoints import FAMILIES, clip, pictures, usable
from tests.support.method_table import OTHERWISE
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE, IMAGE, VIDEO
from tokenprune import cli
from tokenprune.adapters import adapter_for
from tokenprune.budgets.keep import KeepRatio
from tokenprune.budgets.label import budget_label
from tokenprune.errors import TokenPruneError, UnsupportedModelError
from tokenprune.experiment.config import MethodEntry
from tokenprune.experiment.part import Part
from tokenprune.experiment.report import markdown
from tokenprune.measure.decoding import step_positions
from tokenprune.models.base import LoadedModel
from tokenprune.models.downsample import Downsampler
from tokenprune.models.hf import HuggingFace
from tokenprune.models.smaller import not_enlarging
from tokenprune.tasks.base import Sample

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "models"
NAMES = usable()
REFUSED = {"dycoke", "evs", "framefusion"}
"""The methods that refuse one picture, for every family: they compare frames. All others serve every family."""


def load(folder: Path, **options: Any) -> LoadedModel:
    return HuggingFace(checkpoint=str(folder), device="cpu", dtype="float32", **options).load()


def sample(name: str, *images: Any) -> Sample:
    return Sample(name, images, "what is this", "", "", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_unequal_pictures(name: str, folders: dict[str, Path]) -> None:
    """A left-padded batch gives each sample the visual tokens, and the answer, that it has alone."""
    loaded = load(folders[name])
    samples = [sample(str(number), picture) for number, picture in enumerate(pictures())]
    batch = loaded.encode(samples)
    assert tuple((batch["input_ids"] == IMAGE).sum(1).tolist()) == FAMILIES[name].counts
    answers = generate(loaded, batch)
    assert answers.shape == (2, 3)
    for index, one in enumerate(samples):
        alone = loaded.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image", "image": one.images[0]}, {"type": "text", "text": TEXT}]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        alone.pop("labels", None)
        with torch.no_grad():
            direct = loaded.model.generate(**alone, max_new_tokens=3, do_sample=False)
        assert answers[index].equal(direct[0, alone["input_ids"].shape[1] :])
        assert loaded.decode(answers[index : index + 1]) == [
            loaded.processor.tokenizer.decode(direct[0, alone["input_ids"].shape[1] :], skip_special_tokens=True)
        ]


TEXT = "what is this Answer with one word."


def generate(loaded: LoadedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        ids: torch.Tensor = loaded.model.generate(**batch, max_new_tokens=3, do_sample=False)
    return ids[:, batch["input_ids"].shape[1] :]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_pictures_in_a_sample(name: str, folders: dict[str, Path]) -> None:
    """Beside a sample with one; half of all visual tokens are kept."""
    loaded = load(folders[name])
    first, second = pictures()
    batch = loaded.encode([sample("two", first, second), sample("one", first)])
    counts = (batch["input_ids"] == IMAGE).sum(1)
    assert counts.tolist() == [FAMILIES[name].pair, FAMILIES[name].counts[0]]
    method = tp.Method.from_dict(
        {
            "layers": {"name": "fixed", "layers": [1]},
            "pruner": {"name": "topk", "scorer": {"name": "fastv"}},
            "budget": {"name": "keep_ratio", "ratio": 0.5},
        }
    )
    with tp.apply(loaded.model, method) as run:
        assert generate(loaded, batch).shape == (2, 3)
    assert run.stages[0].after == (counts // 2).tolist()


GRIDS: dict[str, tuple[tuple[int, int], tuple[int, int], int]] = {
    "llava": ((2, 2), (2, 2), 0),
    "mistral3": ((2, 2), (1, 2), 0),
    "qwen2-vl": ((2, 2), (1, 2), 12),
    "qwen2.5-vl": ((2, 2), (1, 2), 12),
    "qwen3-vl": ((2, 2), (1, 2), 12),
}
"""Of families that can be shown smaller pictures: those of both pictures, and the tokens of a clip, at a quarter."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_smaller_pictures(name: str, folders: dict[str, Path]) -> None:
    """At a quarter of the tokens. The answers are those to pictures which are small in the file, if it can be."""
    loaded = load(folders[name])
    adapter = adapter_for(loaded.model)
    if name not in GRIDS:
        with pytest.raises(UnsupportedModelError, match="cannot be shown smaller pictures"):
            Downsampler(loaded, adapter)
        return
    first, second, frames = GRIDS[name]
    sampler, asked = Downsampler(loaded, adapter), [sample(str(at), one) for at, one in enumerate(pictures())]
    for group in (asked[:1], asked[1:], asked):
        made = sampler.smaller(group, loaded.encode(group), KeepRatio(ratio=0.25))
        counts = [rows * columns for rows, columns in ((first, second)[asked.index(one)] for one in group)]
        assert (made.inputs["input_ids"] == IMAGE).sum(1).tolist() == counts
        with sampler.running(made):
            assert generate(loaded, dict(made.inputs)).shape == (len(group), 3)
    side = sampler.kind.side
    assert (side is None) == (name == "llava")
    if side is not None:
        for one, (rows, columns) in zip(asked, (first, second), strict=True):
            size = (columns * side, rows * side)
            file = replace(one, images=(one.images[0].resize(size, Image.Resampling.BICUBIC),))
            with not_enlarging(loaded.processor):
                by_hand = loaded.encode([file])
            made = sampler.smaller([one], loaded.encode([one]), KeepRatio(ratio=0.25))
            assert made.inputs.keys() == by_hand.keys()
            assert all(made.inputs[key].equal(value) for key, value in by_hand.items())
    if frames:
        moving = [Sample("clip", (), "what is this", "", "", "", videos=(clip(),))]
        made = sampler.smaller(moving, loaded.encode(moving), KeepRatio(ratio=0.25))
        assert int((made.inputs["input_ids"] == VIDEO).sum()) == frames
        assert generate(loaded, dict(made.inputs)).shape == (1, 3)


def entry(method: str) -> dict[str, Any]:
    """An entry of an experiment's methods; layers that tiny models lack are replaced."""
    return {"name": method, **OTHERWISE.get(method, {})}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_with_methods(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """A third of the methods, in turn: each keeps a quarter of the tokens of each picture, answers, is reported.

    All methods on all families, without their processors, are in `tests/methods/test_method_table.py`.
    """
    for number, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{number}.png")
    rows = [{"image": f"{number}.png", "question": "what is this", "answer": "Answer"} for number in range(2)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    served = [named.name for named in tp.list_methods() if named.name not in REFUSED | {"oracle"}]
    assert len(served) >= 26
    served = served[list(FAMILIES).index(name) % 3 :: 3]
    experiment = tp.ExperimentConfig.from_dict(
        {
            "model": {"name": "hf", "checkpoint": str(folders[name]), "device": "cpu", "dtype": "float32"},
            "task": {"name": "vqa", "data": str(tmp_path / "q.jsonl")},
            "methods": [entry(method) for method in served],
            "budgets": [{"name": "keep_ratio", "ratio": 0.25}],
            "output": str(tmp_path / "out"),
            "max_new_tokens": 2,
            "calibration": 1,
            "timing": 0,
            "examples": 0,  # the run of the example has them
        }
    )
    result = tp.run_experiment(experiment)
    report = markdown(result)
    assert len(result.rows) == 2 * (1 + len(served))
    for row in result.rows:
        count = FAMILIES[name].counts[row["position"]]
        assert row["visual_after"] == (count if row["method"] == "unpruned" else count // 4), row
        assert len(row["prediction"].split()) == 2
        assert f"| {row['method']} " in report


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_methods_for_frames_refuse_a_picture(name: str, folders: dict[str, Path]) -> None:
    loaded = load(folders[name])
    batch = loaded.encode([sample("one", pictures()[0])])
    for refused in REFUSED:
        method = MethodEntry.model_validate(entry(refused)).method(KeepRatio(ratio=0.25))
        with tp.apply(loaded.model, method), pytest.raises(TokenPruneError, match="no two frames"):
            loaded.model(**batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """With the tiny checkpoint in place of the one on the hub, and two questions."""
    data = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert "/" in data["model"]["checkpoint"]
    data["model"] |= {"checkpoint": str(folders[name]), "device": "cpu", "dtype": "float32"}
    data["model"].pop("device_map", None)  # needs accelerate
    for limit in {"min_pixels", "max_pixels"} & set(data["model"]):
        data["model"][limit] = {"min_pixels": 16 * 16, "max_pixels": 32 * 32}[limit]
    experiment = tp.ExperimentConfig.from_dict({**data, "output": str(tmp_path), "timing": 0, "calibration": 1})
    result = tp.run_experiment(experiment, part=Part(limit=2))
    assert list(result.left_out) == ["oracle"]  # it needs a fixed grid
    assert len(result.rows) == 2 * (1 + 2 * len(data["methods"]))
    before = {row["position"]: row["visual_after"] for row in result.rows if row["method"] == "unpruned"}
    for budget in experiment.budgets:
        after = [row for row in result.rows if row["budget"] == budget_label(budget)]
        assert all(row["visual_after"] == int(budget.ratio * before[row["position"]]) for row in after), after


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_bench(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Pictures of 64 x 64 pixels, in prompts of one and of two, with decode steps."""
    written = tmp_path / "bench.json"
    options = [
        "--method",
        "fastv",
        "--average-ratio",
        "0.75",
        "--batch",
        "2",
        "--ragged",
        "--rounds",
        "1",
        "--decode",
        "2",
    ]
    options += ["--dtype", "float32", "--device", "cpu", "--image-size", "64", "--output", str(written)]
    done = CliRunner().invoke(cli.app, ["bench", "--model", str(folders[name]), *options])
    assert done.exit_code == 0, done.output
    (batch,) = json.loads(written.read_text(encoding="utf-8"))["batches"]
    unpruned, keep_all, fastv = batch["rows"]
    assert (unpruned["name"], keep_all["name"], fastv["name"]) == ("unpruned", "keep-all", "fastv")
    one = FAMILIES[name].counts[0]
    assert keep_all["kept"] == [one, FAMILIES[name].together or 2 * one]
    layers = CASES[FAMILIES[name].case].build().config.get_text_config().num_hidden_layers
    for kept, before in zip(fastv["kept"], keep_all["kept"], strict=True):
        assert (2 * before + (layers - 2) * kept) / layers == pytest.approx(0.75 * before, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_decode_step_of_the_bench_is_one_of_generate(name: str, folders: dict[str, Path]) -> None:
    """Also where positions go on from those of images in rows and columns, in a batch with padding."""
    loaded = load(folders[name])
    batch = loaded.encode([sample(str(number), picture) for number, picture in enumerate(pictures())])
    settings = {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        expected = loaded.model.generate(**batch, max_new_tokens=2, do_sample=False, **settings)
        past = loaded.model(**batch, use_cache=True)[CACHE]
        mask = torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
        step = {"input_ids": expected.sequences[:, -2:-1], "attention_mask": mask, CACHE: past}
        given = loaded.model(**step, **step_positions(loaded.model, mask))
    torch.testing.assert_close(given.logits[:, -1].float(), expected.logits[1].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_flops(name: str, folders: dict[str, Path]) -> None:
    """From the config in the folder; a family whose tower has no closed form says so."""
    options = ["--visual-tokens", "16", "--method", "fastv", "--keep-ratio", "0.25", "--json"]
    done = CliRunner().invoke(cli.app, ["flops", "--model", str(folders[name]), *options])
    if name in {"llava", "llava-next", "qwen2.5-vl"}:
        result = json.loads(done.output)
        assert (result["visual_tokens"], result["kept"], result["layers"]) == (16, [4], [2])
        assert 0 < result["total"]["flops_pruned"] < result["total"]["flops_unpruned"]
    else:
        assert "no closed form for the vision tower" in str(done.exception)
