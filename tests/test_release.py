"""One version everywhere, a changelog that has it, and files for citing that name it."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.test_house import run
from tokenprune.core.plugins import DISTRIBUTION
from tokenprune.methods.named import shipped_method
from tokenprune.version import __version__

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(ROOT.glob("plugins/*/pyproject.toml"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def project(file: Path) -> dict[str, Any]:
    """The table `project` of a pyproject.toml."""
    table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    return table


def requirements(file: Path) -> Iterator[Requirement]:
    """What a distribution needs, with and without extras."""
    table = project(file)
    for text in [*table.get("dependencies", []), *sum(table.get("optional-dependencies", {}).values(), [])]:
        yield Requirement(text)


def test_the_core_takes_its_version_from_the_package() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert table["project"]["dynamic"] == ["version"]
    assert table["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "tokenprune.version.__version__"}


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: file.parent.name)
def test_plugins_have_the_version_of_the_core_and_its_minor_versions_range(file: Path) -> None:
    assert project(file)["version"] == __version__
    (core,) = [needed for needed in requirements(file) if needed.name == DISTRIBUTION]
    major, minor, _ = Version(__version__).release
    assert core.specifier == Requirement(f"{DISTRIBUTION}>={major}.{minor},<{major}.{minor + 1}").specifier
    assert __version__ in core.specifier


def test_all_plugins_are_seen() -> None:
    assert len(PLUGINS) == len([folder for folder in (ROOT / "plugins").iterdir() if (folder / "src").is_dir()]) >= 5


def test_the_changelog_has_this_version_with_its_date() -> None:
    """The newest version with a date is this one; only work that is not released stands above it."""
    headings = re.findall(r"^## \[(.+?)\](?: - (.+))?$", CHANGELOG, re.M)
    assert len(headings) == len(re.findall(r"^## ", CHANGELOG, re.M)), "a heading is not of the form [version] - date"
    released = [heading for heading in headings if heading[0] != "Unreleased"]
    assert headings[-len(released) :] == released, "what is not released stands at the top"
    version, date = released[0]
    assert version == __version__
    assert datetime.date.fromisoformat(date) == datetime.date.fromisoformat(CITATION["date-released"])
    versions = [Version(version) for version, _ in released]
    assert versions == sorted(set(versions), reverse=True)


def test_the_changelog_has_the_sections_of_its_form() -> None:
    sections = set(re.findall(r"^### (.+)$", CHANGELOG, re.M))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_file_is_valid() -> None:
    run("check_jsonschema", "--builtin-schema", "vendor.citation-file-format", str(ROOT / "CITATION.cff"))


def test_the_citation_file_says_what_the_metadata_and_readme_say() -> None:
    """The version, the licence, and the paper of the method."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("{", "").replace("}", "")
    assert CITATION["version"] == __version__
    assert CITATION["license"] == project(ROOT / "pyproject.toml")["license"]
    assert f"title = {CITATION['title']}," in readme
    (paper,) = CITATION["references"]
    title, number = re.fullmatch(r"(.*) \(arXiv ([\d.]+)\)", shipped_method("entropyprune").paper).groups()  # type: ignore[union-attr]
    assert paper["title"] == title
    assert paper["identifiers"][0]["value"] == f"arXiv:{number}"
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"author = {authors}," in readme
