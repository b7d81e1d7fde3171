"""The JSON schema that editors check experiment files with."""

from __future__ import annotations

import copy
import json
import os
import runpy
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "examples" / "experiment.schema.json"
EXAMPLES = sorted(path for path in (ROOT / "examples").rglob("*.yaml") if not path.name.startswith("tune-"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_committed_schema_is_what_the_command_prints() -> None:
    """Where nothing is installed but tokenprune and what the examples require."""
    script = runpy.run_path(str(ROOT / "docs" / "snippets" / "schema.py"))
    for name in script["needed"]():
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
    same = script["schema"]() + "\n" == SCHEMA.read_text(encoding="utf-8")
    assert same, "examples/experiment.schema.json is not what the registry says: run `make schema`"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid_and_names_the_schema(path: Path, validator: Any) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# yaml-language-server: $schema={os.path.relpath(SCHEMA, path.parent)}\n")
    assert not list(validator.iter_errors(yaml.safe_load(text)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modle", "digits"),
        ("model", "no-such-model"),
        ("model", {"name": "hf"}),  # a checkpoint is missing
        ("model", {"name": "digits", "dtyp": "float32"}),
        ("methods", ["fastw"]),
        ("methods", "fastv"),
        ("methods", []),
        ("methods", [{"name": "fastw"}]),
        ("methods", [{"name": "fastv", "sseds": [1]}]),
        ("methods", [{"name": "fastv", "pruner": {"name": "topk", "scorer": "no-such-scorer"}}]),
        ("methods", [{"name": "fastv", "pruner": "topk"}]),  # a scorer is missing
        ("budgets", [{"name": "keep_ratio", "ratio": "half"}]),
        ("budgets", [{"name": "keep_ratio", "ratio": True}]),
        ("budgets", [{"name": "keep_ratio", "ratio": 1.5}]),
        ("budgets", ["keep_ratio"]),
        ("budgets", []),
        ("batch_size", 0),
        ("batch_size", "8"),
        ("output", ""),
        ("oracle", "yes"),
    ],
)
def test_mistakes_are_rejected(key: str, value: object, validator: Any) -> None:
    data = copy.deepcopy(yaml.safe_load((ROOT / "examples" / "demo.yaml").read_text(encoding="utf-8")))
    assert validator.is_valid(data)
    data[key] = value
    assert not validator.is_valid(data)
