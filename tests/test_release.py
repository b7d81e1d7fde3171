"""One version everywhere, a changelog that has it, and files for citing that name it."""

from __future__ import annotations

import datetime
import re
import sys
import tomllib
import zipfile
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
from tools import release_check

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(ROOT.glob("plugins/*/pyproject.toml"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def project(file: Path) -> dict[str, Any]:
    """The table `project` of a pyproject.toml."""
    table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    return table


def test_the_core_takes_its_version_from_the_package() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert table["project"]["dynamic"] == ["version"]
    assert table["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "tokenprune.version.__version__"}


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: file.parent.name)
def test_plugins_have_the_version_of_the_core_and_its_minor_versions_range(file: Path) -> None:
    assert project(file)["version"] == __version__
    (core,) = [needed for needed in map(Requirement, project(file)["dependencies"]) if needed.name == DISTRIBUTION]
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


def test_a_wheel_is_compared_with_the_files_of_its_project(tmp_path: Path) -> None:
    """A data file that the metadata forget, and a file that git does not know, are both named."""
    files = release_check.packaged(ROOT / "plugins" / "tokenprune-example")
    assert "tokenprune_example/py.typed" in files
    (yaml_file,) = [name for name in files if name.endswith(".yaml")]
    wheel = tmp_path / "tokenprune_example-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*(files - {yaml_file}), "tokenprune_example/stale.py", "tokenprune_example-0.dist-info/METADATA"]:
            archive.writestr(name, "")
    assert release_check.differences(wheel, files) == [
        f"{wheel.name} lacks {yaml_file}",
        f"{wheel.name} holds tokenprune_example/stale.py, which is not under version control",
    ]


def test_the_release_check_covers_the_core_and_every_plugin() -> None:
    assert [ROOT, *(file.parent for file in PLUGINS)] == release_check.PROJECTS
    assert {"tokenprune/version.py", "tokenprune/py.typed"} <= release_check.packaged(ROOT)
    assert not [name for name in release_check.packaged(ROOT) if not name.startswith("tokenprune/")]


def test_a_tag_of_another_version_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["release_check.py", "--tag", "v9.9.9", "--out", str(tmp_path / "dist")])
    with pytest.raises(SystemExit, match=rf"the tag is v9.9.9 and the version {__version__}: tag v{__version__}"):
        release_check.main()
    assert not (tmp_path / "dist").exists()


def test_a_command_that_fails_ends_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        release_check.run(sys.executable, "-c", "print('why'); raise SystemExit(3)", shown=False)
    assert ended.value.code == 3
    assert "why" in capsys.readouterr().out
