"""The first line of a docstring, read from the file: nothing is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tokenprune.cli.commands import COMMANDS
from tokenprune.core.sources import first_line, source_file


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "unread_package"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "inner" / "__init__.py").write_text("raise RuntimeError('imported')")
    text = "raise RuntimeError('imported')\nclass One:\n    '''First.\n\n    More.\n    '''\ndef two(): pass\n"
    (folder / "inner" / "module.py").write_text(text)
    (folder / "broken.py").write_text("class")
    monkeypatch.syspath_prepend(tmp_path)
    return folder.name


def test_a_module_of_packages_that_cannot_be_imported(package: str) -> None:
    assert first_line(f"{package}.inner.module:One") == "First."
    assert first_line(f"{package}.inner.module:two") == ""
    assert source_file(f"{package}.inner").name == "__init__.py"
    assert package not in sys.modules


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("inner.module:Three", "does not define Three"),
        ("inner.nothing:One", "No module named"),
        ("nothing.at.all:One", "No module named"),
        ("broken:One", "SyntaxError"),
    ],
)
def test_what_is_not_there(package: str, target: str, says: str) -> None:
    with pytest.raises(LookupError, match=says):
        first_line(f"{package}.{target}")


def test_what_has_no_source() -> None:
    with pytest.raises(LookupError, match="has no Python source"):
        first_line("math:sin")


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("list",),
        ("list", "methods", "--json"),
        *((command.name or "", "--help") for command in COMMANDS),
    ],
)
def test_commands_that_need_no_model_do_not_import_torch(words: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom tokenprune.cli import main\n"
        f"sys.argv = ['tokenprune', *{words!r}]\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fastv" in done.stdout or words[0] != "list" or "--help" in words


def test_the_package_has_all_its_names() -> None:
    code = (
        "import sys, tokenprune as tp\nassert 'torch' not in sys.modules\n"
        "assert set(tp.__all__) <= set(dir(tp))\n"
        "for name in tp.__all__: assert getattr(tp, name) is not None, name\n"
        "try: tp.nothing\nexcept AttributeError as error: assert 'nothing' in str(error)\nelse: raise SystemExit(1)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
