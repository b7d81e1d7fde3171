"""``tokenprune look``: from files on the disk to a figure; a mistake is one line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny import CASES
from tests.support.toy import Letters
from tokenprune import cli
from tokenprune.cli.looking import in_words, look_methods, looks, read_sample
from tokenprune.errors import ConfigError
from tokenprune.models.base import LoadedModel
from tokenprune.models.hf import HuggingFace
from tokenprune.models.named import find_model
from tokenprune.tasks.base import sample_pictures

pytestmark = pytest.mark.usefixtures("toy_installed")


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return str(path)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tokenprune", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def arguments(picture: str, output: Path, *more: str, method: str = "fastv") -> list[str]:
    return ["look", picture, "--question", "what?", "--model", "toy", "--method", method, "-o", str(output), *more]


def test_look(
    tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    png, svg = Path("made") / "out.png", tmp_path / "out.svg"
    monkeypatch.chdir(tmp_path)
    more = ["--method", "tome", "--keep-tokens", "5", "--max-new-tokens", "2", "-o", str(svg)]
    assert call(monkeypatch, *arguments(picture, png, *more)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith('unpruned keeps all 16 visual tokens. It answers "')
    assert printed[1].startswith("Of 16 visual tokens fastv keeps 5 before layer 2")
    assert printed[2].startswith("Of 16 visual tokens tome keeps 5 before layer 0")
    written = [line.removeprefix("written: ") for line in "".join(printed[3:]).split("written: ") if line]
    assert [Path(path).name for path in written] == ["out.png", "out.svg"]
    with Image.open(png) as opened:
        assert opened.size[0] == 1400
    text = svg.read_text(encoding="utf-8")
    for words in ("what?", "unpruned", "fastv", "tome", "merged into"):
        assert words in text


def test_looks_are_those_of_the_prefill(picture: str) -> None:
    """The kept tokens, the scores and the answers, of every method and of the unpruned model."""
    loaded = find_model("toy", "look").load()
    methods = look_methods(["norm-hidden-large"], {"budget": "keep_count", "tokens": 4})
    sample = read_sample([picture], "what?", "w1", 8)
    unpruned, look = looks(loaded, methods, sample, 3)
    assert (unpruned.method, unpruned.stages, unpruned.budget) == ("unpruned", (), "")
    assert (look.method, look.expected, look.question) == ("norm-hidden-large", "w1", "what?")
    (stage,) = look.stages
    assert stage.scores is not None
    assert sorted(np.argsort(-stage.scores)[:4]) == np.flatnonzero(stage.kept).tolist()
    inputs = loaded.encode([sample])
    ids = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=3)
    assert unpruned.answer == loaded.decode(ids[:, inputs["input_ids"].shape[1] :])[0]
    assert np.array_equal(look.pictures[0], np.asarray(Image.open(picture)))


def test_a_method_file_and_its_own_budget(
    tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    method = ["layers: {name: fixed, layers: [1]}", "pruner: {name: topk, scorer: random}"]
    file.write_text("\n".join([*method, "budget: {name: keep_count, tokens: 3}"]))
    assert call(monkeypatch, *arguments(picture, tmp_path / "out.pdf", method=str(file))) == 0
    assert "Of 16 visual tokens mine keeps 3 before layer 1" in capsys.readouterr().out


def test_a_method_that_measures_the_model_does_so_on_the_prompt(tmp_path: Path, picture: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "\n".join(
            [
                "layers: {name: vtw, start: 1, threshold: 10.0}",
                "pruner: {name: topk, scorer: random}",
                "budget: {name: keep_count, tokens: 3}",
            ]
        )
    )
    sample = read_sample([picture], "what?", None, 8)
    _, look = looks(find_model("toy", "look").load(), look_methods([str(file)], {}), sample, 2)
    assert look.stages[0].layer in range(1, 4)


def test_a_layer_that_was_found_on_the_prompt_is_said(picture: str) -> None:
    """VTW compares the answers of several layers to this prompt; FastV's layer is fixed."""
    methods = look_methods(["vtw"], {}) | look_methods(["fastv"], {"budget": "keep_count", "tokens": 3})
    layers = methods["vtw"].layers.model_copy(update={"start": 1, "threshold": 10.0})
    methods["vtw"] = methods["vtw"].model_copy(update={"layers": layers})
    _, vtw, fastv = looks(find_model("toy", "look").load(), methods, read_sample([picture], "what?", None, 8), 2)
    assert vtw.budget.endswith(", layer found on this prompt")
    assert in_words(vtw).endswith(" Its layer was found on this prompt.")
    assert "found" not in fastv.budget + in_words(fastv)
    assert vtw.stages[0].scores is None  # it drops everything: nothing was preferred


def test_a_checkpoint_is_asked_the_question_as_it_is(
    tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(spec: HuggingFace) -> None:
        assert (spec.checkpoint, spec.instruction, spec.dtype) == ("some/checkpoint", "", "bfloat16")
        raise ConfigError("reached")

    monkeypatch.setattr(HuggingFace, "load", load)
    words = [word if word != "toy" else "some/checkpoint" for word in arguments(picture, tmp_path / "out.png")]
    assert call(monkeypatch, *words, "--dtype", "bf16") == 2


@pytest.mark.slow
def test_a_video_is_its_frames(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * number, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    sample = read_sample([str(path)], "what?", None, 4)
    assert not sample.images
    assert [len(video.frames) for video in sample.videos] == [4]
    means = [float(np.mean(frame)) for frame in sample_pictures(sample)]
    assert means == pytest.approx([0, 60, 130, 190], abs=12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"picture": "missing.png"}, ["the file 'missing.png' does not exist", "give pictures"]),
        ({"picture": "a" * 5000}, ["does not exist", "give pictures"]),
        ({"picture": "https://example.org/a.png"}, ["is a URL, and nothing is downloaded"]),
        ({"picture": "{folder}"}, ["is a folder, not a file", "give pictures"]),
        ({"picture": "{folder}/text.png"}, ["the image", "cannot be read", "give pictures (png, jpg"]),
        ({"picture": "{folder}/text.mp4"}, ["the video", "cannot be read", "or videos (mp4"]),
        ({"method": "fastw"}, ["unknown method 'fastw'", "did you mean 'fastv'"]),
        ({"method": "no.yaml"}, ["no.yaml"]),
        ({"question": " "}, ["the question is empty", "--question"]),
        ({"output": "out.gif"}, ["a figure cannot be saved as 'out.gif'", ".png, .svg, .pdf"]),
        ({"output": "{folder}/text.png/out.png"}, ["cannot write", "choose another file"]),
        (
            {"more": ["--keep-tokens", "4", "--average-tokens", "4"]},
            ["several budgets", "--average-tokens, --average-ratio, --keep-tokens, --keep-ratio"],
        ),
        (
            {"more": ["--keep-tokens", "16"]},
            ["method 'fastv' with budget '16 tokens kept' drops none of the 16 visual tokens", "ask for fewer"],
        ),
        ({"more": ["--keep-tokens", "17"]}, ["method 'fastv'", "17"]),
        ({"more": ["--average-tokens", "99"]}, ["method 'fastv'", "99"]),
        ({"more": ["--keep-tokens", "0"]}, ["tokens", "0"]),
        ({"more": ["--keep-ratio", "2"]}, ["ratio", "2"]),
        ({"more": ["--method", "fastv"]}, ["two columns are named 'fastv'"]),
        ({"model": "no/such-checkpoint"}, ["'no/such-checkpoint' cannot be loaded"]),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    words: list[str],
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.mp4").write_text("no video")
    monkeypatch.chdir(tmp_path)
    given = {"picture": picture, "question": "what?", "model": "toy", "method": "fastv", "output": "out.png"} | changes
    texts = {name: str(value).format(folder=tmp_path) for name, value in given.items() if name != "more"}
    options = [f"--{name}={texts[name]}" for name in ("question", "model", "method", "output")]
    more = changes.get("more", [])
    assert isinstance(more, list)
    assert call(monkeypatch, "look", texts["picture"], *options, *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "out.png").exists()


def test_a_family_without_a_grid(
    tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tokenprune.adapters.image_video.ImageVideoAdapter.placed", lambda *arguments: None)
    assert call(monkeypatch, *arguments(picture, tmp_path / "out.png", "--keep-tokens", "4")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "method 'fastv': the adapter of" in error
    assert "knows no token grid" in error


def test_no_method_names_those_there_are(
    picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "look", picture, "--question", "what?", "--model", "toy") == 2
    error = capsys.readouterr().err
    assert "no method; give --method" in error
    assert "fastv" in error


def test_an_output_is_probed_before_the_model_is_loaded(
    tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.support.toy.ToyModel.load", lambda self: pytest.fail("the model was loaded"))
    (tmp_path / "folder.png").mkdir()
    assert call(monkeypatch, *arguments(picture, tmp_path / "folder.png")) == 2
    assert "cannot write" in capsys.readouterr().err
    if os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        assert call(monkeypatch, *arguments(picture, locked / "out.png")) == 2


def test_the_pictures_are_of_one_prompt(
    tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that takes another number of them says so."""
    with monkeypatch.context() as patch:
        patch.setattr("tests.support.toy.ToyModel.load", one_picture_only)
        assert call(monkeypatch, "look", picture, *arguments(picture, tmp_path / "out.png")[1:]) == 2
    assert "takes one picture, got 2" in capsys.readouterr().err


def one_picture_only(self: object) -> object:
    """What stands in for loading the model."""

    def encode(samples: object) -> object:
        (sample,) = samples  # type: ignore[misc]
        raise ConfigError(f"takes one picture, got {len(sample.images)}", "give one")

    return LoadedModel(CASES["llava"].build(), Letters(), "toy", encode, 16)  # type: ignore[arg-type]


def test_json(
    tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments(picture, tmp_path / "out.png", "--keep-tokens", "5", "--json")) == 0
    data = json.loads(capsys.readouterr().out)
    unpruned, fastv = data["looks"]
    assert (unpruned["method"], unpruned["stages"], unpruned["tokens"]) == ("unpruned", [], 16)
    assert fastv["stages"] == [{"layer": 2, "kept": 5, "reason": None}]
    assert fastv["sentence"].startswith("Of 16 visual tokens fastv keeps 5 before layer 2")
    assert data["files"] == [str(tmp_path / "out.png")]
