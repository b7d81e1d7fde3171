"""Rules of the house: lint, types, a documentation that builds, and what no file may contain."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# written as patterns, so that this file does not contain what it looks for
FORBIDDEN = {
    "a path of someone's machine": re.compile(r"(?<![\w.:/~-])/(?:home|root|Users|work|opt|mnt)/[\w.-]+"),
    "a private package index": re.compile(r"(?:extra-)?index-url\s*=|--index-url\s+\S"),
    "a debugger": re.compile(r"\bbreakpoint\(\)|\b(?:i?pdb)\.set_trace\("),
    "a conflict marker": re.compile(r"^(?:<{7}|>{7}) ", re.M),
}
BINARY = {".png", ".npz", ".safetensors", ".gguf", ".onnx", ".ttf", ".ico", ".pt", ".bin", ".gz", ".npy", ".xz", ".zst"}


def run(*command: str) -> None:
    """Run one tool of the environment; its output is the failure's message."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def tracked() -> list[Path]:
    """The files under version control; all files where there is no git (an unpacked archive)."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_lint() -> None:
    run("ruff", "check", ".")


def test_format() -> None:
    run("ruff", "format", "--check", ".")


@pytest.mark.slow
@pytest.mark.long
def test_types() -> None:
    run("mypy")


@pytest.mark.slow
@pytest.mark.long
def test_docs_build_without_a_warning(tmp_path: Path) -> None:
    run("mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site"))
    assert (tmp_path / "site" / "index.html").is_file()
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "fonts.g" not in page, "the site asks a font server"


def test_nothing_forbidden_is_committed() -> None:
    found = []
    for path in tracked():
        if path.suffix in BINARY:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for what, pattern in FORBIDDEN.items():
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{path.relative_to(ROOT)}:{line}: {what}: {match[0]}")
    assert not found, "\n".join(found)


def test_the_patterns_find_what_they_are_for() -> None:
    """The test above can fail."""
    slash = "/"
    assert FORBIDDEN["a path of someone's machine"].search(f"see {slash}home{slash}me")
    assert not FORBIDDEN["a path of someone's machine"].search("https://example.org/work/x and a/home/b")
    assert FORBIDDEN["a debugger"].search("breakpoint" + "()")


def test_hooks_are_touched_in_one_place() -> None:
    """Only the engine registers hooks: one place to read when something is left on a model."""
    users = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tokenprune").rglob("*.py")
        if re.search(r"\.register_\w*hook\(", path.read_text(encoding="utf-8"))
    }
    assert users == {"tokenprune/engine/hooks.py"}


def test_the_core_names_no_plugin() -> None:
    """What plugins register is found, never known: no model, task or package of theirs stands in the core."""
    found = []
    for path in sorted((ROOT / "tokenprune").rglob("*")):
        if path.suffix in {".py", ".yaml", ".json", ".md"}:
            text = path.read_text(encoding="utf-8")
            found += [
                f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
                for pattern in plugin_names()
                for match in pattern.finditer(text)
            ]
    assert not found, "\n".join(found)


def plugin_names() -> list[re.Pattern[str]]:
    """What names a plugin of this repository: its package and modules, what it registers, what it is made of."""
    patterns = ["embedded[ -]model", r"\[embedded", r"models[./]embedded\b", "easy.?vqa", "smollm", "handwritten"]
    for file in (ROOT / "plugins").glob("*/pyproject.toml"):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        patterns.append(project["name"].replace("-", "[-_.]"))
        for name in [name for names in project["entry-points"].values() for name in names]:
            # a word of everyday language only where it is used as a name
            patterns.append(name.replace("-", "[-_ ]") if "-" in name else rf"""["'`]{name}["'`]|name: *{name}\b""")
        patterns += [rf"\b(?:tasks|models)[./]{module.stem}\b" for module in file.parent.glob("src/*/*/[a-z]*.py")]
    return [re.compile(pattern, re.I) for pattern in dict.fromkeys(patterns)]


@pytest.mark.parametrize(
    "text",
    [
        "pip install 'tokenprune-mllm[embedded]'",
        "the embedded model",
        "import tokenprune_embedded",
        "tasks/scenes.py",
        "name: digits",
    ],
)
def test_the_names_of_plugins_are_recognised(text: str) -> None:
    """The test above can fail."""
    assert any(pattern.search(text) for pattern in plugin_names())


@pytest.mark.parametrize("text", ["the last digits", "it clips its states", "embeddings", "tokenprune.tasks.base"])
def test_words_that_are_no_names_are_left_alone(text: str) -> None:
    assert not any(pattern.search(text) for pattern in plugin_names())


def test_the_core_distribution_stays_small() -> None:
    """All files that setuptools packages, each compressed as in the wheel."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert table["packages"]["find"] == {"include": ["tokenprune*"]}
    files = {file for package in ROOT.glob("tokenprune*/__init__.py") for file in package.parent.rglob("*.py")}
    assert len(files) > 100
    for package, patterns in table["package-data"].items():
        files.update(file for pattern in patterns for file in (ROOT / package).glob(pattern))
    assert not (ROOT / "MANIFEST.in").exists(), "it can add files that this test does not see"
    assert sum(len(zlib.compress(file.read_bytes())) for file in files) < 780_000


def test_supported_versions_are_stated_once() -> None:
    """README and metadata agree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("torch", "transformers"):
        lowest = next(d for d in project["dependencies"] if d.startswith(name)).split(">=")[1].split(",")[0]
        assert f"| {name} | {lowest}" in readme, f"README does not say {name} {lowest}"
    assert f"| Python | {project['requires-python'].removeprefix('>=')}" in readme
