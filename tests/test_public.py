"""The public names: what users and authors import, and that nothing else is needed."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokenprune
from tokenprune import authoring, errors

ROOT = Path(__file__).parent.parent
#: A name joins or leaves with an entry in the changelog.
USERS = """
ExperimentConfig Look Method Part Report Run StageResult TokenPruneError TuneConfig TuneResult __version__ apply
choose_layers describe draw generate list_methods load_method measure_entropy observe ops run_experiment run_tune tune
"""
AUTHORS = """
FEATURE_SIGNALS Adapter Answer Answerer AttentionProbe Budget BudgetError Component ConfigError DecoderStack
Downsampling EntropyProfile Executor Frames FromRegistry ImageVideoAdapter Item LayerChoice LayerError LayerSelector
LayerSignature Likelihood LoadedModel Message Metric MissingDataError Modality ModelSpec Placement Projection Prompt
PruneContext Pruner Sample SampleError Schedule ScoreError Scorer Selection SelectorContext Setup Task TokenGrid
TokenPruneError TokenPruneWarning TowerLayerNumber TowerSignals TowerSite TowerTensors Trial TrialResult Tunable
TunableLayer UnknownNameError UnsupportedFeatureError UnsupportedModelError Video VisualLayout Whole Workers
builtin_only different_images find_tower first_word foreground_tokens image_batch_site lattice make_context
needs_beyond_features packed packed_site picture_of pixtral_site refresh registry serve tower_signals tunable_fields
unpacked variants video_of views_of
"""
#: What docs, README, examples and plugins may import from.
FACES = {"tokenprune", "tokenprune.authoring"}
#: A serving engine checks methods on a model that it runs itself: one file may read how apply does so.
ENGINES = {
    "plugins/tokenprune-vllm/src/tokenprune_vllm/twin.py": {
        "tokenprune.adapters",
        "tokenprune.engine.plan",
        "tokenprune.engine.renumber",
        "tokenprune.ops.topk",
    }
}
#: Errors that only the framework raises.
OURS = {"BusyModelError", "ForwardError", "OutputError", "PluginError"}


def sources() -> Iterator[tuple[str, str]]:
    """Name and Python text of everything that a user or author reads or runs."""
    listed = subprocess.run(
        ["git", "ls-files", "README.md", "CONTRIBUTING.md", "docs", "examples", "plugins"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix == ".py" and not name.startswith("docs/snippets/"):  # these write our own pages
            yield name, path.read_text(encoding="utf-8")
        elif path.suffix == ".ipynb":
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            yield name, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        elif path.suffix == ".md":
            for block in re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
                yield name, block


def imported(text: str) -> set[str]:
    """Modules of ours that a text imports from, or reaches through ``tp``."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tp":
            found.add("tokenprune" if node.attr in USERS.split() else f"tokenprune.{node.attr}")
    return {name for name in found if name.partition(".")[0] == "tokenprune"}


def test_names_for_users() -> None:
    assert tokenprune.__all__ == USERS.split()
    assert all(hasattr(tokenprune, name) for name in USERS.split())


def test_names_for_authors() -> None:
    assert authoring.__all__ == AUTHORS.split()
    assert all(hasattr(authoring, name) for name in AUTHORS.split())


def test_authors_find_every_error_that_they_may_raise() -> None:
    ours = {name for name in vars(errors) if name.endswith("Error")}
    assert ours - OURS == {name for name in AUTHORS.split() if name.endswith("Error")}


def test_nothing_that_people_read_imports_from_elsewhere() -> None:
    found = [
        (name, modules) for name, text in sources() if (modules := imported(text) - FACES - ENGINES.get(name, set()))
    ]
    assert not found


def test_the_search_sees_imports() -> None:
    assert len([1 for _, text in sources() if "tokenprune.authoring" in imported(text)]) >= 10
    assert [name for name, text in sources() if name.endswith(".ipynb") and "tokenprune.authoring" in imported(text)]
    assert imported("from tokenprune.core.plugins import registry") == {"tokenprune.core.plugins"}
    assert imported("tp.engine.observe(model)") == {"tokenprune.engine"}


def test_every_public_name_is_documented() -> None:
    """Once, on a page of docs/api."""
    text = "".join(page.read_text(encoding="utf-8") for page in ROOT.glob("docs/api/*.md"))
    found = re.findall(r"^::: tokenprune\.(?:authoring\.)?(\w+)$", text, re.M)
    shown = set(found)
    assert len(found) == len(shown)
    not_shown = {"__version__", "ops"} | {name for name in AUTHORS.split() if name.endswith(("Error", "Warning"))}
    assert shown == ({*USERS.split(), *AUTHORS.split()}) - not_shown | {"TokenPruneError"}
