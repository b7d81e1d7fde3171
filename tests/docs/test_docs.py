"""The documentation says what is: its examples run, its lists are complete, its commands exist."""

from __future__ import annotations

import ast
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import tokenprune as tp
from tests.support.checkpoints import FAMILIES
from tests.support.tiny import CASES
from tokenprune import errors
from tokenprune.methods.named import shipped_method

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
FIVE_MINUTES = ROOT / "docs" / "five-minutes.md"
"""Its scripts load checkpoints of the hub and need torchvision: `test_hub_pages.py` runs it."""
PAGES = sorted([README, *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")])
FENCE = re.compile(r"^(?P<before>[^\n]*)\n(?:\n)?```(?P<lang>\w+)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S)
INCLUDE = re.compile(r'^--8<-- "(?P<path>[^":]+)"$', re.M)
SETUP = ROOT / "docs" / "snippets" / "tiny.py"
NO_RUN = re.compile(r"<!-- no-run: \S.* -->")
OFFLINE = {"HuggingFaceTB/SmolVLM-256M-Instruct": "checkpoint", "http://images.cocodataset.org/val2017": "photos"}
"""What README takes from the net, and the folder that stands for it in tests. Nothing else of README is changed."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    lang: str
    code: str
    runs: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, lang: str) -> list[Block]:
    """The blocks of a language; `<!-- no-run: why -->` on the line before one keeps it from being run."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        if match["lang"] == lang:
            code = INCLUDE.sub(lambda include: (ROOT / include["path"]).read_text(encoding="utf-8"), match["code"])
            line = text.count("\n", 0, match.start("code"))
            found.append(Block(page, line, lang, code, NO_RUN.search(match["before"]) is None))
    return found


def all_blocks(lang: str) -> list[Block]:
    """The blocks of a language on all pages."""
    return [block for page in PAGES for block in blocks(page, lang)]


def name_of(page: Path) -> str:
    """A page's name for test ids."""
    return str(page.relative_to(ROOT))


@pytest.fixture
def playground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which examples may write; they find `examples/` there."""
    if (ROOT / "examples").is_dir():
        shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def offline(playground: Path) -> Path:
    """The playground with a tiny checkpoint of the hub's family and dtype, its processor, and six photos of noise."""
    FAMILIES["idefics3"].save(playground / "checkpoint")
    CASES["idefics3"].build().to(torch.bfloat16).save_pretrained(playground / "checkpoint")
    (playground / "photos").mkdir()
    noise = torch.Generator().manual_seed(0)
    (numbers,) = re.findall(r"^numbers = \(([\d, ]+)\)$", README.read_text(encoding="utf-8"), re.M)
    for number in numbers.split(","):
        pixels = torch.randint(0, 256, (48, 64, 3), generator=noise, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(playground / "photos" / f"{int(number):012}.jpg")
    return playground


def test_readme_runs_as_pasted(offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Top to bottom in an empty namespace: every name comes from the page. The first block calibrates and reports."""
    namespace: dict[str, Any] = {"__name__": "example"}
    first, *others = blocks(README, "python")
    run_offline(first, namespace)
    run, shown = namespace["run"], capsys.readouterr().out
    assert str(run.report) in shown
    assert "agrees with the unpruned model" in run.choice.reason
    assert run.report.after[0] < run.report.before[0]
    assert namespace["ids"].shape[1] > namespace["inputs"]["input_ids"].shape[1]
    for block in others:
        run_offline(block, namespace)


def run_offline(block: Block, namespace: dict[str, Any]) -> None:
    """Run a block with folders in place of what it takes from the net."""
    assert block.runs, f"{block}: README promises that its lines run"
    code = block.code
    for online, folder in OFFLINE.items():
        code = code.replace(online, folder)
    assert "://" not in code
    exec(compile("\n" * block.line + code, str(block.page), "exec"), namespace)


def test_the_first_block_of_readme_takes_from_the_net_what_the_test_replaces() -> None:
    first = blocks(README, "python")[0]
    assert all(online in first.code for online in OFFLINE)
    assert first.code.count("/") == sum(online.count("/") for online in OFFLINE) + 1, "another address or path"


def test_the_home_page_shows_the_first_lines_of_readme() -> None:
    """The part between the marks, whole: text, lines and what they mean."""
    part = README.read_text(encoding="utf-8").split("[start:first] -->")[1].split("<!-- --8<-- [end:first]")[0]
    assert blocks(README, "python")[0].code in part
    assert '--8<-- "README.md:first"' in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_bibtex_names_this_version_and_the_paper_of_the_method() -> None:
    (bibtex,) = blocks(README, "bibtex")
    paper = shipped_method("entropyprune").paper
    title, number = re.fullmatch(r"(.*) \(arXiv ([\d.]+)\)", paper).groups()  # type: ignore[union-attr]
    plain = bibtex.code.replace("{", "").replace("}", "")
    assert f"title = {title}," in plain
    assert f"eprint = {number}," in plain
    assert f"version = {tp.__version__}," in plain


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python") and page not in (README, FIVE_MINUTES)], ids=name_of
)
def test_python_examples_run(page: Path, playground: Path) -> None:
    """Top to bottom in one namespace that starts with the model of the start page."""
    namespace: dict[str, Any] = {"__name__": "example"}
    torch.manual_seed(0)
    exec(compile(SETUP.read_text(encoding="utf-8"), str(SETUP), "exec"), namespace)
    for block in blocks(page, "python"):
        code = compile("\n" * block.line + block.code, str(page), "exec")
        if block.runs:
            exec(code, namespace)


def names_from_nowhere(page: Path) -> set[str]:
    """Names of the model of the start page that the Python blocks of a page read and do not make themselves."""
    nodes = [node for block in blocks(page, "python") if block.runs for node in ast.walk(ast.parse(block.code))]
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    imported = {alias.asname or alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    loaded = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return (loaded & {"model", "inputs", "torch"}) - stored - imported


@pytest.mark.parametrize(
    "page",
    [page for page in ROOT.glob("docs/*.md") if names_from_nowhere(page) and page.name != "index.md"],
    ids=name_of,
)
def test_pages_say_where_their_model_comes_from(page: Path) -> None:
    before = page.read_text(encoding="utf-8").split("```python")[0]
    assert "(index.md#a-model-to-try-things-on)" in before, f"{page}: say where model, inputs and torch come from"


def test_blocks_are_found() -> None:
    """The fence pattern misses none: otherwise the tests of this file would pass by seeing nothing."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(FENCE.findall(text)) == len(re.findall(r"^```\w+", text, re.M)), page
        assert "8 < --" not in text, f"{page}: a formatter took an include for Python"


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_yaml_examples_are_valid(block: Block) -> None:
    """A block with a task is an experiment or a tune, one with a pruner a method; a named method's file wraps one."""
    data = yaml.safe_load(block.code)
    assert isinstance(data, dict)
    data = data.get("method", data)
    if "task" in data:
        kind = tp.TuneConfig if "budget" in data or "samples" in data else tp.ExperimentConfig
        try:
            assert kind.from_dict(data).model_dump(mode="json")
        except errors.MissingDataError as error:
            pytest.skip(str(error))
    elif "pruner" in data:
        assert tp.Method.from_dict(data).model_dump(mode="json")
    else:
        pytest.fail("neither an experiment nor a method")


def commands(program: str) -> list[tuple[str, str]]:
    """(where, first word after the program) of every use in a shell block."""
    pattern = re.compile(rf"(?:^|&& ){program} ([a-z-]+)", re.M)
    return [(str(block), word) for block in all_blocks("bash") for word in pattern.findall(block.code)]


def test_make_targets_exist() -> None:
    """Every `make x` of a shell block is a target."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.M))
    assert commands("make")
    for where, word in commands("make"):
        assert word in targets, where


def test_commands_exist() -> None:
    """Every `tokenprune x` of a shell block is a command, and every command is documented."""
    from typer.main import get_command

    from tokenprune.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    for where, word in commands("tokenprune"):
        assert word in known, where
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for word in known:
        assert f"tokenprune {word}" in page, f"{word} is not on docs/cli.md"


def test_commands_of_the_vllm_plugin_are_those_of_its_page() -> None:
    """The plugin's own tests run the commands of its page; they need vLLM, and these tests do not have it."""
    shown = {page: set[str]() for page in PAGES}
    for block in all_blocks("bash"):
        lines = (line.partition("  #")[0] for line in block.code.splitlines())
        shown[block.page] |= {line for line in lines if line.startswith("tokenprune-vllm")}
    assert shown[README]
    assert set().union(*shown.values()) == shown[ROOT / "docs" / "serving.md"]


def test_all_errors_are_documented() -> None:
    """docs/errors.md lists exactly the classes of `tokenprune.errors`, with code and builtin base."""
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \| (?:`(\w+)`|-) \|", page, re.M)
    classes = [
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, errors.TokenPruneError) and cls is not errors.TokenPruneError
    ]
    assert sorted(rows) == sorted(
        (cls.code, cls.__name__, "".join(b.__name__ for b in cls.__bases__ if b is not errors.TokenPruneError))
        for cls in classes
    )
    assert len({cls.code for cls in classes}) == len(classes)


def test_all_invariants_name_their_tests() -> None:
    """docs/invariants.md names exactly the numbered tests, each under its promise."""
    page = (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8")
    tests = (ROOT / "tests" / "engine" / "test_invariants.py").read_text(encoding="utf-8")
    promised = {
        number: set(re.findall(r"`(test_\w+)`", row)) for number, row in re.findall(r"^\| (\d+) \|(.*)$", page, re.M)
    }
    written: dict[str, set[str]] = {}
    for name, number in re.findall(r"^def (test_(\d+)_\w+)", tests, re.M):
        written.setdefault(number, set()).add(name)
    assert promised == written
    assert len(promised) == 11


def test_all_public_names_are_in_the_reference() -> None:
    """What `tokenprune` exports is on a page of docs/api; modules and the version are mentioned by what they hold."""
    text = "".join(page.read_text(encoding="utf-8") for page in ROOT.glob("docs/api/*.md"))
    for name in set(tp.__all__) - {"__version__", "ops"}:
        assert re.search(rf"^::: tokenprune\.(?:\w+\.)*{name}$", text, re.M), f"{name} is on no page of docs/api"
