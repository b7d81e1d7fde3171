"""Writes docs/methods/: a page for every named method, and an index; `make methods` runs it.

    python benchmarks/method_pages.py
    python benchmarks/method_pages.py --output docs/methods

It measures nothing. What a page says comes from the method's file, the docstrings of its components, the transcripts of
the authors' code (``tests/published/transcripts/``), ``benchmarks/results/families.md`` and the cells of `make tables`.
A page whose method is gone is removed.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from comparison import AXES, TASKS, Page, Result, accuracy_cell, kept_cell, points, reason, table
from pictures import PICTURES
from tables import PLAN, ROOT, cells

from tokenprune.budgets.label import budget_label, in_words
from tokenprune.cli.show import flow
from tokenprune.config import Method
from tokenprune.core import plugins
from tokenprune.core.component import Component
from tokenprune.methods.named import NamedMethod, list_methods, load_method

TRANSCRIPTS = ROOT / "tests" / "published" / "transcripts"
FAMILIES = ROOT / "benchmarks" / "results" / "families.md"
OUTPUT = ROOT / "docs" / "methods"
#: Methods that stand for others in the table of families: what the others' names start with -> the one.
STANDS_FOR = {"norm-": "norm-query-small"}
#: Results that are no cell of `make tables`: method -> lines of a committed report, and what was measured.
OWN_RESULTS = {
    "vtw": (
        "benchmarks/results/vtw/report.md:3:8",
        "`examples/vtw.yaml` measured it on the digits. Its budget is fixed, so it is in no comparison",
    )
}

#: Budgets without a number, in words.
BUDGETS = {"adaptive": "as many tokens as the method itself chooses for each picture", "drop_all": "no token is left"}

INDEX = """\
# Methods

Every named method has a page: what it computes, its defaults, the model families on which it runs, what it was checked
against, and its results. `tokenprune show NAME` prints a method as YAML, to copy and change. Layer selectors, pruners,
scorers and budgets can be combined freely. [All methods compared](../comparison/index.md) has them side by side.
"""
GROUPS = {
    "EntropyPrune and its variants": "The method of this project's paper, and what its parts give alone.",
    "Before the language model": "The language model sees the kept tokens only. Most of these read no question.",
    "Inside the language model, in one step": "All tokens pass the first layers, so the question can choose.",
    "Inside the language model, in several steps": "Some drop tokens before the first layer, too.",
    "For videos": "They compare frames. On a picture they have nothing to compare, or act as on one frame.",
    "Baselines and null models": "They show what a simple rule reaches. A method has to beat them.",
}
READING = """\
## How to read a page

*Reads*: the signals that the method declares, and the engine captures only these: states of the layer before the pruned
one, K-1 (`query`, `key`, `value`), the hidden states that entered it (`previous`), single attention rows of that layer
(`attention`) or of layer K itself (`entering`), the norm behind the last layer (`final_norm`), the prompt's input
embeddings (`embeddings`), or layers of the vision tower. Hidden states are always available. If two scores are equal,
the token at the earlier position is kept, unless the method states another rule.

*Checked against* names the code that the method's authors published. It was run on seeded tensors, and a test compares
ours with what it gave: the same tokens, and the same values where a method merges them
(`tests/published/README.md`). *Paper only*: no such code could be had, so the tests follow the paper.

## Which method runs on which family

--8<-- "benchmarks/results/families.md:3"
"""


def paragraphs(component: Component) -> str:
    """A component's docstring up to its attributes, one line per paragraph. The table already states the source."""
    text = inspect.cleandoc(type(component).__doc__ or "").split("Attributes:")[0]
    text = re.sub(r":\w+:(`[^`]+`)", r"\1", text)  # Sphinx roles are not rendered on this page
    blocks = [" ".join(block.split()) for block in text.split("\n\n")]
    return "\n\n".join(block for block in blocks if block and not block.startswith("Source:"))


def words(value: Any) -> str:
    """The value of a selector's field; of a pruner with a label, the label."""
    if isinstance(value, list):
        return ", ".join(map(words, value))
    return str(value["label"]) if isinstance(value, dict) and "label" in value else str(value)


def listed(values: Iterable[Any]) -> str:
    """Values in a sentence: 8, 16 and 24."""
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}" if first else last


def acts(method: Method) -> str:
    """The layers before which the method prunes, in words."""
    layers = method.layers.model_dump(exclude_none=True)
    numbers, depths = layers.get("layers"), layers.get("depths")
    if numbers is not None and list(numbers) == [0]:
        return "before the language model"
    if numbers is not None:
        return f"before layer{'s' if len(numbers) > 1 else ''} {listed(numbers)}"
    if depths is not None:
        return f"at {listed(f'{depth:g}' for depth in depths)} of the language model's depth"
    return f"where `{type(method.layers).__name__}` says"


def needs(method: Method) -> str:
    """The signals that are captured for the method, in words."""
    tower = sorted(method.pruner.vision_layers)
    signals = [f"`{name}`" for name in sorted(method.pruner.needs)]
    signals += [f"layer {layer} of the vision tower" for layer in tower]
    return ", ".join(signals) or "no signal of the model"


def components(component: Component) -> Iterator[Component]:
    """A component, and all components in its fields."""
    yield component
    for name in type(component).model_fields:
        value = getattr(component, name)
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Component):
                yield from components(inner)


@cache
def transcript(name: str) -> dict[str, Any] | None:
    """What the authors' code gave, if it was recorded."""
    file = TRANSCRIPTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def address(recorded: dict[str, Any]) -> str:
    """Where the recorded code stands."""
    return f"https://github.com/{recorded['repository']}/blob/{recorded['commit']}/{recorded['file']}"


def checked(named: NamedMethod) -> str:
    """What our selection was compared with: the authors' published code, only the paper, or nothing."""
    if not named.paper:
        return "Own baseline, nothing to compare with"
    recorded = transcript(named.name)
    if recorded is None:
        return checked_as(named) or "Paper only"
    cases = [entry["case"] for entry in recorded["cases"]]
    different = list(dict.fromkeys(case["differs"] for case in cases if "differs" in case))
    agreeing = sum("differs" not in case for case in cases)
    words = f"[{recorded['repository']}]({address(recorded)}), commit `{recorded['commit'][:7]}`,"
    words += f" `{Path(recorded['file']).name}` (lines {recorded['lines']}): {agreeing} of {len(cases)} cases equal"
    return words + "".join(f"; not equal, and expected so: {reason}" for reason in different)


def checked_as(named: NamedMethod) -> str | None:
    """The method with the same pruner whose selection was compared, if there is one."""
    pruner = load_method(named.name).pruner
    recorded = (file.stem for file in sorted(TRANSCRIPTS.glob("*.json")))
    same = next((name for name in recorded if load_method(name).pruner == pruner), None)
    return None if same is None else f"As [{same}]({same}.md), which has the same pruner"


# ---- one method ------------------------------------------------------------------------------------------------------


def sentences(text: str) -> list[str]:
    """The sentences of a text."""
    return re.split(r"(?<=[a-z)`0-9]\.) (?=[A-Z])", text.strip())


def opening(named: NamedMethod, method: Method) -> str:
    """What the method computes, in its own words, and where and from what it does so."""
    return f"{named.description} It acts {acts(method)}, and reads {needs(method)}."


def paper(named: NamedMethod) -> str:
    """The paper with a link, if there is one."""
    number = re.search(r"arXiv ([\d.]+)", named.paper)
    return f"[{named.paper}](https://arxiv.org/abs/{number[1]})" if number else named.paper or "none, a baseline"


def code(named: NamedMethod) -> str:
    """The authors' code: that which was compared, or that from which settings were taken."""
    recorded = transcript(named.name)
    if recorded is not None:
        return f"[{recorded['repository']}]({address(recorded)})"
    found = (re.match(r"([\w.-]+/[\w.-]+) ([0-9a-f]{7})\b", entry.source) for entry in named.published)
    source = next((one for one in found if one), None)
    return f"[{source[1]}](https://github.com/{source[1]}/tree/{source[2]})" if source else "none was compared"


def pictures(named: NamedMethod) -> Iterator[str]:
    """The committed pictures on which the method is."""
    for name, picture in PICTURES.items():
        path = f"../figures/look-{name}.png"
        if named.name in picture.methods and (OUTPUT / path).is_file():
            what = listed(f"`{one}`" for one in picture.methods)
            yield f"[![What {named.name} keeps of a question's picture]({path})]({path})\n"
            yield (
                f"What {what} keep of the pictures of the first test question"
                f" ([Look at what a method keeps](../looking.md)). Budget: {in_words(label_of(picture.budget))}.\n"
            )


def label_of(budget: Any) -> str:
    """The label of a budget of the pictures."""
    return " ".join(map(str, budget.values()))


def budget(method: Method) -> str:
    """The budget in words."""
    label = budget_label(method.budget)
    ratios = method.budget.model_dump().get("ratios")
    if ratios:
        return f"{listed(f'{100 * ratio:.4g} %' for ratio in ratios)} of the tokens, stage after stage"
    return BUDGETS.get(label, in_words(label))


def defaults(method: Method) -> str:
    """The method's settings in words."""
    fields = [
        f"`{type(part).__name__}`: {', '.join(f'{name} {words(value)}' for name, value in own.items())}"
        for part in components(method.pruner)
        if (own := plain_fields(part))
    ]
    lines = [
        f"- It acts {acts(method)}.",
        f"- Budget: {budget(method)}.",
        f"- Kept tokens {'keep their positions' if method.positions == 'original' else 'are numbered from 0'}.",
        f"- It reads {needs(method)}.",
        *([f"- Settings: {'; '.join(fields)}."] if fields else []),
    ]
    return "\n".join(lines)


def plain_fields(component: Component) -> dict[str, Any]:
    """The fields of a component that are no components."""
    own = {name: getattr(component, name) for name in type(component).model_fields}
    inner = (Component, tuple)
    return {name: value for name, value in own.items() if value is not None and not isinstance(value, inner)}


@cache
def family_table() -> dict[str, dict[str, str]]:
    """Method -> family -> yes, no or video only."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in FAMILIES.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[1:]}


def families(named: NamedMethod) -> str:
    """On which families the method ran."""
    others = (one for start, one in STANDS_FOR.items() if named.name.startswith(start))
    row = family_table().get(named.name) or family_table().get(next(others, ""))
    if row is None:
        return "It was not tried family by family.\n"
    by_word: dict[str, list[str]] = {}
    for family, word in row.items():
        by_word.setdefault(word, []).append(f"`{family}`")
    ran = by_word.pop("yes", [])
    said = (
        f"It ran on all {len(row)} that were tried: "
        if len(ran) == len(row)
        else f"It ran on {len(ran)} of {len(row)}: "
    )
    rest = "".join(f" {word.capitalize()}: {', '.join(names)}." for word, names in by_word.items())
    return (
        f"{said}{', '.join(ran)}.{rest} [The table](index.md#which-method-runs-on-which-family) says what was tried.\n"
    )


def results(named: NamedMethod, page: Page) -> Iterator[str]:
    """The rows of the method in the comparison."""
    labels = labels_of(named.name, page)
    if named.name in OWN_RESULTS:
        lines, what = OWN_RESULTS[named.name]
        yield f"{what}.\n"
        yield f'--8<-- "{lines}"\n'
        return
    found = [item for item in page.results if any(label in item.methods for label in labels)]
    if not found:
        yield "It is in no comparison: nothing was measured.\n"
        return
    yield (
        "Accuracy in % with its 95 % interval, at four shares of the visual tokens"
        " ([how it was measured](../comparison/index.md#how-it-was-measured)). **Bold: random tokens are better** at"
        " equal cost beyond the interval. In brackets: the layer average, where it is another.\n"
    )
    for axis, cell in (("average", accuracy_cell), ("kept", kept_cell)):
        rows = list(result_rows(page, axis, labels, cell))
        if rows:
            yield f"Equal {AXES[axis]}:\n"
            yield "\n".join(table(["task", *(f"{share} %" for share in shares(page)), "unpruned %"], rows))
    changed = [flow(entry) for entry in entries(page) if entry["name"] == named.name and "pruner" in entry]
    if changed:
        yield f"Measured with `{changed[0]}`: the vision towers of these models have six layers.\n"
    yield from left_out(page, labels)


def entries(page: Page) -> list[dict[str, Any]]:
    """The methods of the plan."""
    plan = page.cells[0].plan
    return [entry if isinstance(entry, dict) else {"name": entry} for entry in (*plan["methods"], *plan["video"])]


def labels_of(name: str, page: Page) -> list[str]:
    """What the results call a method: one name, or several where it was measured in several ways."""
    return [entry.get("label", name) for entry in entries(page) if entry["name"] == name]


def shares(page: Page) -> list[str]:
    """The shares of the tokens that were measured, in %."""
    return sorted({item.share for item in page.of("average")}, key=float, reverse=True)


def result_rows(page: Page, axis: str, labels: Sequence[str], cell: Any) -> Iterator[list[Any]]:
    """Per task and label a row of accuracies, and a row of differences to random tokens at equal cost."""
    for task, title in TASKS.items():
        by_share = {item.share: item for item in page.of(axis, [task])}
        for label in labels:
            own = [found(by_share.get(share), label) for share in shares(page)]
            if not any(own):
                continue
            unpruned = next(pair[0] for pair in own if pair).unpruned.accuracy
            words = title if len(labels) == 1 else f"{title}, `{label}`"
            yield [words, *(cell(*pair) if pair else "" for pair in own), str(unpruned)]
            gains = [points(pair[0].over_random(pair[1])) if pair else "" for pair in own]
            if any(gains):
                yield ["minus random, points", *gains, ""]


def found(item: Result | None, label: str) -> tuple[Result, Any] | None:
    """A cell with a method of it, if it is there."""
    return None if item is None or label not in item.methods else (item, item.methods[label])


def left_out(page: Page, labels: Iterable[str]) -> Iterator[str]:
    """Why the method is not in a cell of equal layer averages."""
    for label in labels:
        reasons: dict[str, list[str]] = {}
        for item in page.of("average"):
            why = item.read("cannot.json").get(label)
            if why:
                reasons.setdefault(reason(why), []).append(f"{TASKS[item.cell.task]} at {item.share} %")
        if reasons:
            yield f"`{label}` is left out where it cannot meet the budget:\n"
            yield "\n".join(f"- {', '.join(where)}: {why}" for why, where in reasons.items()) + "\n"


def method_page(named: NamedMethod, page: Page) -> str:
    """The page of one method."""
    method = load_method(named.name)
    text = method.to_yaml().replace(f"label: {named.name}\n", "").rstrip()
    differs, title = str(named.data.get("differs", "")), group(named, page)
    details = {type(part).__name__: paragraphs(part) for part in components(method.pruner)}
    parts = [
        f"# {named.name}\n",
        opening(named, method) + "\n",
        f"- Group: [{title}](index.md#{anchor(title)})\n- Paper: {paper(named)}\n- Code: {code(named)}\n",
        *pictures(named),
        "## Defaults\n",
        defaults(method) + "\n",
        f"```yaml\n{text}\n```\n",
        "## Model families\n",
        families(named),
        "## Checked against\n",
        checked(named) + ".\n",
        f"What differs: {differs}\n" if differs else "",
        "## Results\n",
        *results(named, page),
        *published(named),
        "## In detail\n",
        *(f"*{name}*: {words}\n" for name, words in details.items()),
    ]
    return "\n".join(part for part in parts if part)


def published(named: NamedMethod) -> list[str]:
    """The table of settings that were published for single models."""
    if not named.published:
        return []
    rows = []
    for entry in named.published:
        source = f"`{entry.source}` {entry.note}".strip()
        rows.append(f"| {entry.model} | {entry.condition} | `{flow(entry.settings)[1:-1]}` | {source} |")
    intro = f'`load_method("{named.name}", model=model)` and `published: true` use them.'
    head = ["| Model | Fits | Settings | Source |", "|---|---|---|---|"]
    return ["## Published settings\n", intro + "\n", "\n".join([*head, *rows, ""])]


# ---- all methods -----------------------------------------------------------------------------------------------------


def group(named: NamedMethod, page: Page) -> str:
    """The title of the group in which the method stands."""
    own, before, once, steps, videos, baselines = GROUPS
    plan = page.cells[0].plan
    if not named.paper:
        return baselines
    if named.name in plan["own"]:
        return own
    if named.name in plan["video"]:
        return videos
    layers = load_method(named.name).layers.model_dump(exclude_none=True)
    where = layers.get("layers") or layers.get("depths") or ()
    if len(where) > 1:
        return steps
    return before if list(where) == [0] else once


def anchor(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-")


def line(named: NamedMethod) -> str:
    """The line of the index: the first sentence, and the second one if that says little."""
    first, *others = sentences(named.description)
    return f"- [{named.name}]({named.name}.md): {' '.join([first, *others[:1]]) if len(first) < 50 else first}"


def index(methods: Sequence[NamedMethod], page: Page) -> str:
    """The page with a line per method."""
    parts = [INDEX]
    for title, about in GROUPS.items():
        lines = [line(named) for named in methods if group(named, page) == title]
        parts += [f"## {title}\n", f"{about}\n", "\n".join(lines) + "\n"]
    return "\n".join([*parts, READING])


def pages() -> dict[str, str]:
    """File name -> text."""
    page = Page(cells(yaml.safe_load(PLAN.read_text(encoding="utf-8"))))
    with plugins.builtin_only():
        methods = list_methods()
        return {
            "index.md": index(methods, page),
            **{f"{named.name}.md": method_page(named, page) for named in methods},
        }


def main(folder: Path) -> None:
    """Write the pages, and remove those of methods that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    written = pages()
    for old in folder.glob("*.md"):
        if old.name not in written:
            old.unlink()
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    main(parser.parse_args().output)
