"""What GitHub and pre-commit read: valid, and in agreement with CI, the Makefile and the metadata."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tests.test_house import run

ROOT = Path(__file__).parent.parent
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def schema(file: Path) -> str:
    """The schema that a file has to agree with."""
    if file in WORKFLOWS:
        return "vendor.github-workflows"
    return "vendor.github-issue-config" if file.stem == "config" else "vendor.github-issue-forms"


def data(file: Path) -> dict[str, Any]:
    """A YAML file; the key `on` of workflows is read as True by YAML 1.1."""
    loaded: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("file", [*FORMS, *WORKFLOWS], ids=lambda file: file.name)
def test_github_understands(file: Path) -> None:
    run("check_jsonschema", "--builtin-schema", schema(file), str(file))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_have_limits_and_few_rights(file: Path) -> None:
    """Every job ends; none may write to the repository, and only the one that publishes asks for an identity."""
    run("check_jsonschema", "--builtin-schema", "custom.github-workflows-require-timeout", str(file))
    workflow = data(file)
    assert workflow["permissions"] == {"contents": "read"}
    rights = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert rights == ({"publish": {"id-token": "write"}} if file.stem == "release" else {})


def test_github_runs_what_ci_runs() -> None:
    """Every command of .ci/run, the tests on both versions of Python that README names, and the release check."""
    jobs = data(ROOT / ".github" / "workflows" / "test.yml")["jobs"]["test"]["strategy"]["matrix"]["include"]
    commands = [job["command"] for job in jobs]
    ci = re.findall(r"^make .+$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M)
    assert ci
    assert set(commands) == {*ci, "make release-check"}
    (row,) = re.findall(r"^\| Python \|.*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    tested = row.split("|")[3]
    assert {job["python"] for job in jobs if job["command"] == "make test"} == set(re.findall(r"3\.\d+", tested))


def test_make_targets_of_workflows_and_guides_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    texts = [ROOT / "CONTRIBUTING.md", ROOT / ".github" / "pull_request_template.md", *WORKFLOWS]
    for text in texts:
        named = set(re.findall(r"(?:^|[`,:{] ?)make ([a-z-]+)", text.read_text(encoding="utf-8"), re.M))
        assert named <= targets, text
    assert "release-check" in targets


def test_a_bug_report_asks_for_what_doctor_prints() -> None:
    fields = {field.get("id"): field for field in data(ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml")["body"]}
    assert "tokenprune doctor" in fields["doctor"]["attributes"]["label"]
    assert fields["doctor"]["validations"]["required"]


def test_pre_commit_has_the_ruff_of_the_metadata() -> None:
    hooks = data(ROOT / ".pre-commit-config.yaml")["repos"]
    (rev,) = [hook["rev"] for hook in hooks if hook["repo"].endswith("/ruff-pre-commit")]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (ruff,) = [needed for needed in map(Requirement, extras["dev"]) if needed.name == "ruff"]
    assert str(ruff.specifier) == f"=={rev.removeprefix('v')}"


def test_the_files_that_github_looks_for_are_there() -> None:
    assert {form.stem for form in FORMS} == {"bug", "config", "family", "method"}
    for name in ("SECURITY.md", "CODE_OF_CONDUCT.md", "LICENSE", "CONTRIBUTING.md", ".github/pull_request_template.md"):
        assert (ROOT / name).read_text(encoding="utf-8").strip(), name
