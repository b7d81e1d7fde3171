"""Settings of the engine and of requests: what is taken, what is refused, and in which words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokenprune import TokenPruneError, load_method
from tokenprune_vllm.command import main
from tokenprune_vllm.overrides import overrides
from tokenprune_vllm.settings import EngineSettings, _resolved, engine_settings, parsed

LLAVA = "LlavaForConditionalGeneration"


def engine(**more: Any) -> EngineSettings:
    return engine_settings({"default": {"method": "divprune", "ratio": 0.25}, **more})


def test_overrides_name_an_architecture_that_only_the_plugin_registers() -> None:
    made = overrides(LLAVA, method="divprune", ratio=0.25)
    assert made == {
        "architectures": ["TokenPruneLlavaForConditionalGeneration"],
        "tokenprune": {"default": {"method": "divprune", "ratio": 0.25}},
    }
    assert json.loads(json.dumps(made)) == made


def test_overrides_read_the_architecture_of_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [LLAVA]}))
    assert overrides(tmp_path, method="unpruned")["architectures"] == [f"TokenPrune{LLAVA}"]
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Other"]}))
    with pytest.raises(TokenPruneError, match="architecture 'Other' cannot be pruned in vLLM"):
        overrides(tmp_path, method="unpruned")
    (tmp_path / "config.json").unlink()
    with pytest.raises(TokenPruneError, match=r"has no readable config\.json"):
        overrides(tmp_path, method="unpruned")


def test_overrides_find_a_checkpoint_by_its_name_on_the_hub(tmp_path: Path) -> None:
    """What was loaded before lies in a cache. A name that nothing has is an error of one line."""
    folder = tmp_path / "models--some--llava"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps({"architectures": [LLAVA]}))
    command = [sys.executable, "-m", "tokenprune_vllm.command", "--method", "divprune", "--ratio", "0.25"]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    def run(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, name], env=environment, capture_output=True, text=True, check=False)

    found = run("some/llava")
    assert f'--model some/llava --hf-overrides \'{{"architectures": ["TokenPrune{LLAVA}"]' in found.stdout
    missing = run("my-chekpoint/")
    assert missing.returncode == 2
    assert missing.stdout == ""
    assert missing.stderr.startswith("error: my-chekpoint/ has no readable config.json (")
    assert missing.stderr.count("\n") == 1


def test_a_method_of_a_file_travels_as_data(tmp_path: Path) -> None:
    method = load_method("visionzip", keep_ratio=0.2)
    file = tmp_path / "mine.yaml"
    file.write_text(method.to_yaml())
    made = overrides(LLAVA, method=file)
    settings = engine_settings(json.loads(json.dumps(made["tokenprune"])))
    assert settings.default.resolved() == load_method(file)
    assert overrides(LLAVA, method=file, tokens=9)["tokenprune"]["default"]["tokens"] == 9


def test_a_definition_without_a_label_has_the_name_of_its_file(tmp_path: Path) -> None:
    """`/metrics` tells methods of files apart by it."""
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(load_method("divprune", keep_ratio=0.5).model_dump(mode="json", exclude={"label"})))
    assert overrides(LLAVA, method=file)["tokenprune"]["default"]["method"]["label"] == "mine"


def test_requests_with_many_shares_do_not_fill_the_memory() -> None:
    for number in range(1, 400):
        assert parsed({"method": "divprune", "ratio": number / 400}).resolved() is not None
    assert _resolved.cache_info().currsize <= 256


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "divprune"}, "method 'divprune' needs a ratio"),
        ({"method": "divprune", "ratio": 0.5, "tokens": 3}, "ratio or tokens, not both"),
        ({"method": "divprune", "ratio": 0}, "ratio: Input should be greater than 0"),
        ({"method": "divprune", "ratio": 1.5}, "ratio: Input should be less than or equal to 1"),
        ({"method": "divprune", "tokens": 0}, "tokens: Input should be greater than or equal to 1"),
        ({"method": "divprune", "ratio": 0.5, "keep": 3}, "keep: Extra inputs are not permitted"),
        ({"method": "unpruned", "ratio": 0.5}, "takes no other settings"),
        ({"ratio": 0.5}, "method: Field required"),
    ],
)
def test_malformed_settings_are_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenPruneError, match=message) as error:
        parsed(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("fastv", "prunes inside the language model"),
        ("pyramiddrop", "prunes inside the language model"),
        ("cdpruner", "reads 'text'"),
        ("vidcom2", "compares the frames of a video, and LlavaForConditionalGeneration gets none in vLLM"),
        ("apet", "prunes inside the language model"),
        ("entropyprune", "searches for its layers"),
        ("vtw", "searches for its layers"),
        ("nosuch", "unknown method 'nosuch'"),
    ],
)
def test_a_method_that_cannot_be_served_is_refused_by_name_and_reason(method: str, reason: str) -> None:
    with pytest.raises(TokenPruneError, match=reason) as error:
        overrides(LLAVA, method=method, ratio=0.5)
    assert method in str(error.value)


def test_requests_change_what_the_server_allows() -> None:
    free = engine()
    assert free.of_request(None) == free.default
    assert free.of_request({"tokens": 9}) == parsed({"method": "divprune", "tokens": 9})
    assert free.of_request({"method": "visionzip", "ratio": 0.5}) == parsed({"method": "visionzip", "ratio": 0.5})
    assert free.of_request({"method": "unpruned"}).resolved() is None
    with pytest.raises(TokenPruneError, match="all requests alike"):
        engine(requests="nothing").of_request({"tokens": 9})
    budget = engine(requests="budget")
    assert budget.of_request({"ratio": 0.5}).ratio == 0.5
    with pytest.raises(TokenPruneError, match="ratio or tokens only"):
        budget.of_request({"method": "unpruned"})
    few = engine(methods=["divprune"])
    with pytest.raises(TokenPruneError, match="does not serve method 'visionzip'"):
        few.of_request({"method": "visionzip", "ratio": 0.5})


def test_a_request_names_a_file_that_the_server_offers(tmp_path: Path) -> None:
    method, file = load_method("visionzip", keep_ratio=0.2), tmp_path / "mine.yaml"
    file.write_text(method.to_yaml())
    made = overrides(LLAVA, method="unpruned", methods=["divprune", file])
    settings = engine_settings(json.loads(json.dumps(made["tokenprune"])))
    assert settings.methods == ("divprune", "mine")
    assert settings.of_request({"method": "mine"}).resolved() == load_method(file)
    with pytest.raises(TokenPruneError, match="does not serve method 'visionzip'; use divprune, mine"):
        settings.of_request({"method": "visionzip", "ratio": 0.5})


@pytest.mark.parametrize(
    ("name", "reason"), [("fastv", "prunes inside the language model"), ("divprun", "unknown method 'divprun'")]
)
def test_offered_methods_are_checked_before_a_request_names_one(name: str, reason: str) -> None:
    with pytest.raises(TokenPruneError, match=reason):
        overrides(LLAVA, method="unpruned", methods=["divprune", name])


def test_two_offered_methods_have_two_names(tmp_path: Path) -> None:
    (tmp_path / "divprune.yaml").write_text(load_method("mmr", keep_ratio=0.5).to_yaml())
    with pytest.raises(TokenPruneError, match="two of the offered methods have one name"):
        overrides(LLAVA, method="unpruned", methods=["divprune", tmp_path / "divprune.yaml"])


def test_a_request_names_no_files_and_no_definitions(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(load_method("divprune", keep_ratio=0.5).model_dump(mode="json")))
    for method in (str(file), {"pruner": "divprune"}, 3, None):
        with pytest.raises(TokenPruneError):
            engine().of_request({"method": method, "ratio": 0.5}).resolved()
    for asked in ("divprune", 3, ["divprune"]):
        with pytest.raises(TokenPruneError, match="give an object"):
            engine().of_request(asked)


def test_the_command_prints_the_line_that_starts_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([LLAVA, "--method", "divprune", "--ratio", "0.25"]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"python -m vllm.entrypoints.openai.api_server --model {LLAVA} --hf-overrides '")
    assert line.endswith(" --trust-request-mm-kwargs\n")
    assert main([LLAVA, "--method", "divprune", "--ratio", "0.25", "--requests", "nothing"]) == 0
    assert "--trust-request-mm-kwargs" not in capsys.readouterr().out
    assert main([LLAVA, "--method", "fastv", "--ratio", "0.25"]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith("error: method 'fastv' cannot be served: it prunes inside the language model")
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert "divprune: can be served\n" in listed
    assert "vidcom2: can be served, for prompts of one video\n" in listed
    assert "fastv: prunes inside the language model" in listed
