"""What `{name: hf}` takes beside a checkpoint, and what it says about samples that a checkpoint does not take."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

import tokenprune as tp
from tests.support.checkpoints import FAMILIES, clip, pictures
from tokenprune import cli
from tokenprune.errors import ConfigError, MissingDataError, SampleError, UnsupportedModelError
from tokenprune.models.base import LoadedModel
from tokenprune.models.hf import HuggingFace
from tokenprune.tasks.base import Sample


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES["llava"].save(tmp_path_factory.mktemp("options") / "llava")


def load(folder: Path, **options: Any) -> LoadedModel:
    return HuggingFace(checkpoint=str(folder), device="cpu", dtype="float32", **options).load()


def sample(*images: Any, question: str = "what is this", **more: Any) -> Sample:
    return Sample("q7", images, question, "", "", "", **more)


def config(folder: Path, tmp_path: Path, model: dict[str, Any], **more: Any) -> tp.ExperimentConfig:
    """An experiment with both pictures and one method."""
    for number, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{number}.png")
    rows = [{"image": f"{number}.png", "question": "what is this", "answer": "one"} for number in range(2)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tp.ExperimentConfig.from_dict(
        {
            "model": {"name": "hf", "checkpoint": str(folder), "device": "cpu", "dtype": "float32", **model},
            "task": {"name": "vqa", "data": str(tmp_path / "q.jsonl")},
            "methods": ["random"],
            "budgets": [{"name": "keep_ratio", "ratio": 0.25}],
            "output": str(tmp_path / "out"),
            "timing": 0,
            **more,
        }
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation": {"num_beam": 3}}, "model.generation: unknown key 'num_beam'; did you mean 'num_beam"),
        ({"generation": {"max_new_tokens": 3}}, "'max_new_tokens' is decided by the experiment: remove it"),
        ({"generation": {"output_logits": True}}, "'output_logits' is decided by the experiment: remove it"),
        ({"quantization": {"load_in_4bits": True}}, "unknown key 'load_in_4bits'; did you mean 'load_in_4bit'"),
        ({"quantization": {"load_in_4bit": True, "load_in_8bit": True}}, "transformers refuses it: load_in_4bit and"),
        ({"quantization": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "half16"}}, "transformers refuses it:"),
        ({"quantization": {}}, "nothing is quantized: set load_in_4bit or load_in_8bit to true"),
        ({"min_pixels": 0}, "min_pixels"),
        ({"min_pixels": 9, "max_pixels": 4}, "min_pixels 9 is more than max_pixels 4: lower it"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        config(tmp_path, tmp_path, options)
    assert "\n" not in str(caught.value)


def test_quantization_without_its_package(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDataError, match=r"'bitsandbytes'.*; pip install 'tokenprune-mllm\[quantization\]'$"):
        load(llava, quantization={"load_in_4bit": True})


def test_quantization_reaches_transformers(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def from_pretrained(name: str, **options: Any) -> Any:
        given.update(options)
        raise OSError("stop")

    monkeypatch.setitem(sys.modules, "bitsandbytes", sys)  # any module
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    with pytest.raises(MissingDataError, match="stop"):
        load(llava, quantization={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    settings = given["quantization_config"]
    assert (settings.load_in_4bit, settings.bnb_4bit_quant_type) == (True, "nf4")
    assert given["device_map"] == {"": torch.device("cpu")}


@pytest.mark.parametrize("option", ["min_pixels", "max_pixels"])
def test_numbers_of_pixels_are_refused_where_there_are_none(llava: Path, option: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"does not resize images to a number of pixels; remove min_pixels"):
        load(llava, **{option: 256})


def test_no_chat_template(tmp_path: Path) -> None:
    """One line; a template in the configuration gives the prompt that one in the folder gives."""
    family = FAMILIES["llava"]
    bare, whole = family.save(tmp_path / "bare", template=False), family.save(tmp_path / "whole")
    with pytest.raises(UnsupportedModelError, match="'bare' has no chat template; give one as chat_template, or put"):
        load(bare)
    question = sample(pictures()[0])
    given = load(bare, chat_template=family.template).encode([question])
    assert given["input_ids"].equal(load(whole).encode([question])["input_ids"])


def test_samples_that_a_checkpoint_does_not_take(llava: Path) -> None:
    loaded = load(llava)
    with pytest.raises(SampleError, match=r"sample 'q7' has a video, but llava takes none; use a model"):
        loaded.encode([sample(videos=(clip(),))])
    with pytest.raises(SampleError, match=r"sample 'q7' has 1 images, but its prompt has 2 placeholders; remove '<im"):
        loaded.encode([sample(pictures()[0], question="<image> what")])
    one = FAMILIES["llava"].template.replace("part.type == 'image'", "part.type == 'image' and loop.first")
    with pytest.raises(SampleError, match=r"sample 'q7' has 2 images, but a prompt of llava shows 1; use a model"):
        load(llava, chat_template=one).encode([sample(*pictures())])


def test_a_processor_may_put_its_placeholders_itself(tmp_path: Path) -> None:
    """PaliGemma's does, where the prompt has none."""
    folder = FAMILIES["paligemma"].save(tmp_path / "paligemma", template=False)
    loaded = load(folder, chat_template="{{ messages[0].content[-1].text }}")
    assert int((loaded.encode([sample(pictures()[0])])["input_ids"] == 150).sum()) == 16


@pytest.mark.slow
def test_a_sample_that_cannot_be_encoded_is_left_out(llava: Path, tmp_path: Path) -> None:
    experiment = config(llava, tmp_path, {})
    rows = [
        {"id": "good", "image": "0.png", "question": "what"},
        {"id": "bad", "image": "1.png", "question": "what", "system": "<image>"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = tp.run_experiment(experiment)
    assert {row["sample"] for row in result.rows} == {"good"}
    skipped = (tmp_path / "out" / "skipped.jsonl").read_text(encoding="utf-8")
    assert "sample 'bad' has 1 images, but its prompt has 2 placeholders" in skipped


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"repetition_penalty": 5.0}])
def test_answers_are_those_of_transformers(llava: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """With the settings of `generation`, and greedy without them."""
    result = tp.run_experiment(config(llava, tmp_path, {"generation": settings}))
    processor = AutoProcessor.from_pretrained(llava)
    model = AutoModelForImageTextToText.from_pretrained(llava).eval()
    processor.tokenizer.padding_side = "left"
    text = "USER <image> what is this Answer with one word. "
    inputs = processor(images=list(pictures()), text=[text, text], return_tensors="pt", padding=True)
    ids = model.generate(**inputs, max_new_tokens=4, **{"do_sample": False, **settings})
    expected = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    given = [row["prediction"] for row in result.rows if row["method"] == "unpruned"]
    assert given == expected


@pytest.mark.slow
def test_sampled_answers_are_the_same_again(llava: Path, tmp_path: Path) -> None:
    answers = []
    for number in range(2):
        torch.manual_seed(number)  # does not matter
        experiment = config(llava, tmp_path, {"generation": {"do_sample": True, "temperature": 9.0}})
        result = tp.run_experiment(experiment.model_copy(update={"output": str(tmp_path / str(number))}))
        answers.append([row["prediction"] for row in result.rows])
    greedy = tp.run_experiment(config(llava, tmp_path, {}))
    assert answers[0] == answers[1] != [row["prediction"] for row in greedy.rows]


@pytest.mark.slow
def test_divergence_is_forced_whatever_generation_is(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    model = type(AutoModelForImageTextToText.from_pretrained(llava))
    own = model.generate

    def generate(self: Any, **options: Any) -> Any:
        calls.append(options)
        return own(self, **options)

    monkeypatch.setattr(model, "generate", generate)
    tp.run_experiment(config(llava, tmp_path, {"generation": {"num_beams": 3}}, divergence=True))
    kinds = [[type(item).__name__ for item in options["logits_processor"]] for options in calls]
    forced = [options for options, kind in zip(calls, kinds, strict=True) if kind == ["_Forced"]]
    answers = [options for options, kind in zip(calls, kinds, strict=True) if kind == ["_Watch"]]
    assert (len(forced), len(answers)) == (4, 4)  # each series tries one sample out first
    assert all(options["do_sample"] is False and options.get("num_beams", 1) == 1 for options in forced)
    assert all(options["num_beams"] == 3 for options in answers)


def test_a_folder_without_a_processor(llava: Path, tmp_path: Path) -> None:
    """It is enough for `flops`; `bench` says what is missing."""
    bare = FAMILIES["llava"].save(tmp_path / "bare", processor=False)
    options = ["--visual-tokens", "16", "--method", "fastv", "--keep-ratio", "0.25", "--json"]
    given, whole = (
        json.loads(CliRunner().invoke(cli.app, ["flops", "--model", str(folder), *options]).output)
        for folder in (bare, llava)
    )
    assert given["total"] == whole["total"]
    error = CliRunner().invoke(cli.app, ["bench", "--model", str(bare)]).exception
    assert isinstance(error, MissingDataError)
    assert "bare' cannot be loaded: it has no processor" in str(error)
    assert "\n" not in str(error)


def test_every_example_has_its_family() -> None:
    names = {path.stem for path in (Path(__file__).parents[2] / "examples" / "models").glob("*.yaml")}
    assert names == set(FAMILIES)


def test_a_processor_that_needs_torchvision_says_how_to_install_it(tmp_path: Path) -> None:
    """The environment of the tests has none."""
    FAMILIES["qwen2.5-vl"].save(tmp_path / "qwen", processor=False)
    FAMILIES["qwen2.5-vl"].tokenizer().save_pretrained(tmp_path / "qwen")
    (tmp_path / "qwen" / "processor_config.json").write_text('{"processor_class": "Qwen2_5_VLProcessor"}')
    settings = {"image_processor_type": "Qwen2VLImageProcessor", "video_processor_type": "Qwen2VLVideoProcessor"}
    (tmp_path / "qwen" / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        MissingDataError, match=r"the Torchvision library.*; install it.*pip install 'tokenprune-mllm\[qwen\]'$"
    ):
        load(tmp_path / "qwen")


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there(llava: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"no such device: '{name}'; use one of cpu"):
        HuggingFace(checkpoint=str(llava), device=name).load()


def test_a_mistyped_folder_is_not_asked_for_on_the_hub(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *_, **__: pytest.fail("the hub was asked"))
    message = f"there is no such folder; check the path; did you mean '{llava}'?"
    with pytest.raises(MissingDataError, match=re.escape(message)):
        HuggingFace(checkpoint=str(llava.parent / "lava")).load()
