"""The notebooks of `examples/notebooks` run from top to bottom, show what they say, and have no outputs in git."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(ROOT.glob("examples/notebooks/*.ipynb"))


def read(path: Path) -> Any:
    """A notebook, checked against the schema of its format."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def execute(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run a notebook in a kernel of this Python, and return what its cells showed.

    Args:
        path: The notebook.
        folder: Where it runs, and where Jupyter and IPython keep their files.
        monkeypatch: Sets these folders.
    """
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR", "TMPDIR"):
        (folder / name.lower()).mkdir()
        monkeypatch.setenv(name, str(folder / name.lower()))
    notebook = read(path)
    client = NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    try:
        client.execute()
    except CellExecutionError as error:
        if error.ename == "MissingDataError":
            pytest.skip(error.evalue)
        raise
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shown(outputs: list[Any], kind: str) -> list[str]:
    """What was shown in one form, e.g. ``image/png``; ``stdout`` is what was printed."""
    if kind == "stdout":
        return [output.text for output in outputs if output.get("name") == "stdout"]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.slow
@pytest.mark.long
def test_compare_shows_a_table_of_its_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = execute(ROOT / "examples/notebooks/compare.ipynb", tmp_path, monkeypatch)
    table = shown(outputs, "text/html")[-1]
    assert all(f"{name}</" in table for name in ("unpruned", "fastv", "visionzip", "random"))
    (printed,) = shown(outputs, "stdout")
    assert [line.split()[0] for line in printed.splitlines()] == ["unpruned", "fastv", "visionzip", "random"]


@pytest.mark.slow
def test_look_shows_the_report_and_a_picture_of_two_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = execute(ROOT / "examples/notebooks/look.ipynb", tmp_path, monkeypatch)
    assert "visual tokens [144]" in shown(outputs, "text/html")[-1]
    sample, drawn = shown(outputs, "image/png")
    assert len(drawn) > len(sample)
    assert "visionzip keeps" in shown(outputs, "stdout")[-1]


def test_write_a_scorer_prunes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = execute(ROOT / "examples/notebooks/write_a_scorer.ipynb", tmp_path, monkeypatch)
    assert "layer 2: visual tokens [16] -> [4]" in "".join(shown(outputs, "stdout"))


def test_every_notebook_is_executed_and_named_in_the_documentation() -> None:
    code = Path(__file__).read_text(encoding="utf-8")
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    assert len(NOTEBOOKS) >= 3
    for path in NOTEBOOKS:
        assert f'"examples/notebooks/{path.name}"' in code
        assert f"`examples/notebooks/{path.name}`" in pages


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path: Path) -> None:
    """No outputs and no numbers of executions, and a kernel that every installation has."""
    notebook = read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert not [cell for cell in cells if cell.outputs or cell.execution_count is not None]
    assert notebook.metadata.kernelspec.name == "python3"
