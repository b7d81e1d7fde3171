"""The version of a component's code: it changes with the code that decides, and with no other."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.toy import ToyTask
from tokenprune.fingerprint.code import code_name, code_version
from tokenprune.metrics.base import Metric
from tokenprune.metrics.exact_match import ExactMatch
from tokenprune.models.code import used_code
from tokenprune.models.hf import HuggingFace
from tokenprune.tasks.vqa import Vqa
from tokenprune.version import __version__

FILES = {
    "__init__.py": "",
    "words.py": "from scores_pkg.letters import lower\n\n\ndef clean(text):\n    return lower(text).strip()\n",
    "letters.py": "def lower(text):\n    return text.lower()\n",
    "unused.py": "LIMIT = 1\n",
    "constants.py": "WORDS = ('a', 'the')\n",
    "late.py": "def slow():\n    return 1\n",
    "metric.py": (
        "from scores_pkg.words import clean\nfrom tokenprune.metrics.base import Metric\n"
        "from .constants import WORDS\n\n\n"
        "class Clean(Metric):\n    def score(self, text, references, choices=()):\n"
        "        from scores_pkg import late\n\n        return float(late.slow())\n"
    ),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package with a metric, and helpers of it."""
    folder = tmp_path / "scores_pkg"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("scores_pkg")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("scores_pkg.unused")
    return importlib.import_module("scores_pkg.metric")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("metric.py", True),
        ("words.py", True),
        ("letters.py", True),
        ("constants.py", True),  # a constant does not say which module it is from
        ("late.py", True),  # imported in a function, so not yet
        ("unused.py", False),
    ],
)
def test_the_class_and_what_it_uses_count(package: ModuleType, tmp_path: Path, name: str, counts: bool) -> None:
    before = code_version("metrics", package.Clean)
    assert before is not None
    assert code_version("metrics", package.Clean) == before
    path = tmp_path / "scores_pkg" / name
    path.write_text(path.read_text() + "\n# another version\n")
    assert (code_version("metrics", package.Clean) != before) is counts


def test_a_class_that_it_extends_counts(package: ModuleType, tmp_path: Path) -> None:
    child = type("Child", (package.Clean,), {"__module__": __name__})
    before = code_version("metrics", child)
    path = tmp_path / "scores_pkg" / "letters.py"
    path.write_text(path.read_text() + "\n# another version\n")
    assert code_version("metrics", child) not in (before, None)


def test_it_names_the_distribution() -> None:
    found = code_version("metrics", ExactMatch)
    assert found is not None
    assert found.startswith(f"tokenprune-mllm {__version__}, source ")
    assert code_name("metrics", ExactMatch) == "metric 'exact_match'"


def test_a_class_without_source_is_unknown() -> None:
    typed = type("Typed", (Metric,), {"__module__": "nowhere"})
    assert code_version("metrics", typed) is None


def test_the_code_of_an_experiment(tmp_path: Path) -> None:
    """A metric that the data choose counts like one that the file names."""
    (tmp_path / "q.jsonl").write_text('{"image": "a.png", "question": "what?", "answer": "cat"}\n')
    model = HuggingFace(checkpoint="somewhere")
    named = Vqa(data=str(tmp_path / "q.jsonl"), metric=ExactMatch())
    found = used_code(model, Vqa(data=str(tmp_path / "q.jsonl")))
    assert list(found) == ["model 'hf'", "task 'vqa'", "metric 'exact_match'"]
    assert found == used_code(model, named)
    assert None not in found.values()
    assert len(set(found.values())) == 3
    assert list(used_code(model, ToyTask())) == ["model 'hf'", "task 'tests.support.toy:ToyTask'"]
