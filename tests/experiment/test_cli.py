"""The command line: a user's mistake is one line on stderr, exit code 2, no traceback."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
from functools import partial
from operator import floordiv
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import tokenprune as tp
from tests.support.tiny import CASES
from tokenprune import cli
from tokenprune.cli.progress import Callback, progress_bar
from tokenprune.models.presets import PRESETS

pytestmark = pytest.mark.usefixtures("toy_installed")

GOOD = {
    "model": {"name": "toy"},
    "task": {"name": "toy", "split": "test", "questions": 10},
    "methods": ["random"],
    "budgets": [{"name": "keep_ratio", "ratio": 0.5}],
    "output": "results",
}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tokenprune", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def write(folder: Path, **changes: object) -> str:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"output": str(folder / "results")} | changes))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["fastw"]}, ["methods[0]", "unknown method 'fastw'", "did you mean 'fastv'"]),
        (
            {"methods": [{"name": "random", "pruner": {"name": "topk", "scorer": "matrix_entropie"}}]},
            ["methods[0].pruner.scorer", "unknown scorer 'matrix_entropie'", "did you mean 'matrix_entropy'"],
        ),
        ({"task": {"name": "toy", "splitt": "test"}}, ["task.splitt", "unknown key"]),
        (
            {"requires": {"no-such-plugin": "pip install no-such-plugin"}, "model": "no-such-model"},
            ["'no-such-plugin' is needed and not installed; pip install no-such-plugin"],
        ),
        ({"model": {"name": "hf", "checkpoint": "no/such-checkpoint"}}, ["'no/such-checkpoint' cannot be loaded"]),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    words: list[str],
) -> None:
    assert call(monkeypatch, "run", write(tmp_path, **changes)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_a_required_plugin_that_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENPRUNE_NO_PLUGINS", "1")
    assert call(monkeypatch, "run", write(tmp_path, requires={"tokenprune-toy": "pip install tokenprune-toy"})) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: the plugin 'tokenprune-toy' is needed, and plugins are switched off; leave out --no-pl"
    )
    assert error.count("\n") == 1


def test_files_that_cannot_be_read_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", str(tmp_path / "none.yaml")) == 2
    assert "no such config file" in capsys.readouterr().err
    (tmp_path / "broken.yaml").write_text("model: [toy\ntask: x")
    assert call(monkeypatch, "run", str(tmp_path / "broken.yaml")) == 2
    assert "not valid YAML" in capsys.readouterr().err
    (tmp_path / "list.yaml").write_text("- 1")
    assert call(monkeypatch, "run", str(tmp_path / "list.yaml")) == 2
    assert "expected a mapping" in capsys.readouterr().err


def test_a_file_in_the_way_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert call(monkeypatch, "run", write(tmp_path), "--output", str(tmp_path / "file" / "x")) == 2
    assert "cannot write into" in capsys.readouterr().err


def test_an_unsupported_model_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real checkpoint folder, written by save_pretrained, whose processor is missing."""
    CASES["llava"].build().save_pretrained(tmp_path / "checkpoint")
    config = write(tmp_path, model={"name": "hf", "checkpoint": str(tmp_path / "checkpoint")})
    assert call(monkeypatch, "run", config) == 2
    assert "cannot be loaded" in capsys.readouterr().err


@pytest.mark.slow
def test_no_traceback_from_a_real_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tokenprune.cli", "run", write(tmp_path, methods=["fastw"])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_list_shows_every_component(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "list") == 0
    out = capsys.readouterr().out
    for name in ("matrix_entropy", "entropy_collapse", "topk", "layer_average", "llava", "toy", "entropyprune"):
        assert name in out
    assert "tokenprune-mllm" in out
    assert "BROKEN" not in out
    assert call(monkeypatch, "list", "scorer") == 2
    assert "unknown kind 'scorer'" in capsys.readouterr().err


def test_schema_is_json_schema(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(monkeypatch, "schema", "--output", str(tmp_path / "s.json")) == 0
    schema = json.loads((tmp_path / "s.json").read_text())
    assert set(schema["required"]) == {"model", "task", "methods", "budgets", "output"}
    assert "layer_average" in json.dumps(schema["properties"]["budgets"])
    assert schema["additionalProperties"] is False
    pruners = schema["$defs"]["MethodEntry"]["properties"]["pruner"]
    stages = next(form for form in pruners["anyOf"] if form.get("title") == "stages")
    inner = stages["properties"]["pruners"]["items"]["anyOf"]
    assert {"topk", "stages"} <= {form.get("title") for form in inner}
    capsys.readouterr()
    assert call(monkeypatch, "schema") == 0
    assert json.loads(capsys.readouterr().out) == schema


def test_show_prints_yaml_that_reads_back(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "show", "entropyprune-reference") == 0
    data = yaml.safe_load(capsys.readouterr().out)
    assert tp.Method.from_dict(data) == tp.load_method("entropyprune-reference")
    assert call(monkeypatch, "show", "entropyprun") == 2
    assert "did you mean 'entropyprune'" in capsys.readouterr().err


def test_show_begins_with_the_description_and_ends_with_what_was_published(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "show", "entropyprune") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "entropyprune-paper is the paper to the letter, entropyprune-reference the published code" in lines[0]
    assert "# published settings, printed in place by --model NAME:" in lines
    sizes = "32 layers of llama, hidden size 4096, MLP size 11008"
    (entry,) = [line for line in lines if line.startswith(f"# - LLaVA-1.6-Vicuna-7B (llava_next, {sizes})")]
    assert "budgets: [{name: keep_count, tokens: 320}, {name: layer_average, tokens: 320}]" in entry
    assert any(line.startswith("#   YahongWang1/EntropyPrune 9fc1cbb") for line in lines)
    assert call(monkeypatch, "show", "random") == 0
    assert "published" not in capsys.readouterr().out


@pytest.mark.parametrize("model", ["llava-1.5-13b", "LLaVA-1.5-13B", "folder"])
def test_show_prints_the_method_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    """A preset, the name of an entry, or a folder with a config."""
    PRESETS["llava-1.5-13b"].config().save_pretrained(tmp_path)
    model = str(tmp_path) if model == "folder" else model
    assert call(monkeypatch, "show", "vtw", "--model", model) == 0
    out = capsys.readouterr().out
    assert "# Settings published for LLaVA-1.5-13B (lzhxmu/VTW" in out
    assert tp.Method.from_dict(yaml.safe_load(out)) == tp.load_method("vtw", model="LLaVA-1.5-13B")
    assert yaml.safe_load(out)["layers"]["threshold"] == 0.0005


def test_show_lists_the_models_where_nothing_was_published(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in ("qwen2.5-vl-7b", "no-such-model"):
        assert call(monkeypatch, "show", "vtw", "--model", model) == 2
        error = capsys.readouterr().err
        assert "method 'vtw' has no settings that were published for" in error
        assert "LLaVA-1.5-13B (llava, 40 layers of llama, hidden size 5120, MLP size 13824)" in error
        assert error.count("\n") == 1


def test_flops_with_published_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["flops", "--model", "llava-next-7b", "--visual-tokens", "2880", "--published"]
    assert call(monkeypatch, *arguments, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kept"] == [320]
    assert result["settings"].startswith("settings published for LLaVA-1.6-Vicuna-7B (")
    assert call(monkeypatch, *arguments) == 0
    assert "entropyprune has the settings published for LLaVA-1.6-Vicuna-7B" in capsys.readouterr().out
    assert call(monkeypatch, *arguments, "--average-tokens", "320", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == [149]
    assert call(monkeypatch, "flops", "--model", "llava-next-7b", "--json") == 0
    assert "settings" not in json.loads(capsys.readouterr().out)
    assert call(monkeypatch, "flops", "--model", "llava-0.5b", "--published") == 2
    assert "no settings that were published for a 'llava' with 24 layers of 'qwen2'" in capsys.readouterr().err


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"tokenprune {tp.__version__}\n"


# ---- nothing but one line ------------------------------------------------------------------------------------------


def test_an_adaptive_budget_with_a_pruner_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", write(tmp_path, budgets=["adaptive"])) == 2
    assert "leaves the count to the pruner" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["profile", "FILE", "--output"], ["schema", "--output"], ["bench", "--model", "llava-0.5b", "--output"]],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("output", ["folder", "file/x.json"])
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    output: str,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("experiment.profiling.profile_model", "measure.bench.run_bench", "experiment.config.json_schema"):
        monkeypatch.setattr(f"tokenprune.{name}", lambda *_: pytest.fail("worked first"))
    arguments = [write(tmp_path) if word == "FILE" else word for word in arguments]
    assert call(monkeypatch, *arguments, str(tmp_path / output)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write")
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["run", "a\0b"], ["flops", "--model", "a\0"], ["schema", "--output", "\0"]])
def test_a_nul_in_an_argument(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err == (
        "error: an argument holds a NUL character, which no name or path can hold; remove it\n"
    )


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "some/file")

    monkeypatch.setattr("tokenprune.experiment.config.json_schema", full)
    assert call(monkeypatch, "schema") == 2
    assert capsys.readouterr().err.startswith("error: disk full while writing some/file; ")


def test_a_bug_keeps_its_traceback_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "tokenprune.experiment.config.json_schema", partial(floordiv, 1, 0)
    )  # no code of the toy plugin
    assert call(monkeypatch, "schema") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-2].startswith("ZeroDivisionError")
    assert lines[-1].startswith("this is a bug in tokenprune or in a plugin: please report")


@pytest.mark.slow
def test_a_reader_that_stops_reading_gets_no_complaint() -> None:
    """As in `tokenprune schema | head -1`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tokenprune.cli", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()


def test_the_progress_bar_waits_for_something_to_show() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    with pytest.raises(ZeroDivisionError), progress_bar(console):
        raise ZeroDivisionError
    assert stream.getvalue() == ""

    def work(show: Callback) -> None:
        show("fastv [x] / keep_ratio 0.5", 1, 4)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), progress_bar(console) as callback:
        work(callback)
    assert "fastv [x] / keep_ratio 0.5" in stream.getvalue()
    assert "1/4" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[?25h")  # the cursor is back: the bar has stopped


@pytest.mark.parametrize("command", ["flops", "show"])
@pytest.mark.parametrize("wrap", [False, True])
def test_a_methods_file_stands_for_a_named_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, wrap: bool
) -> None:
    method = {"layers": {"name": "fixed", "layers": [3]}, "pruner": {"name": "topk", "scorer": "random"}}
    method["budget"] = {"name": "keep_count", "tokens": 99}
    data = {"description": "mine", "paper": "none", "method": method} if wrap else {"label": "other", **method}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    name = "mine" if wrap else "other"
    arguments = ["show", str(path)] if command == "show" else ["flops", "--method", str(path), "--json"]
    assert call(monkeypatch, *arguments) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["label" if command == "show" else "method"] == name
    if command == "flops":
        assert shown["kept"] == [99]
        assert call(monkeypatch, *arguments, "--keep-tokens", "7") == 0
        assert json.loads(capsys.readouterr().out)["kept"] == [7]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such config file"),
        ("- 1", "holds no method"),
        ("", "holds no method"),
        (
            "description: x\nmethod: {}\nauthor: me",
            "mine.yaml: line 3: author: unknown key; use description, paper, differs, method or published",
        ),
        ("description: x\nmethd: {}", "mine.yaml: line 2: methd: unknown key, did you mean 'method'?"),
        ("description: x\nmethod: {}", "layers: Field required"),
        (yaml.safe_dump(GOOD), "is an experiment, not a method; use `tokenprune run"),
    ],
)
def test_a_wrong_methods_file_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    words: str,
) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    for arguments in (["flops", "--method", str(path)], ["bench", "--method", str(path)], ["show", str(path)]):
        assert call(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
