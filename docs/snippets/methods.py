"""Print docs/methods.md from the registered methods; `make methods` writes the file."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenprune.cli.show import flow
from tokenprune.config import Method
from tokenprune.core import plugins
from tokenprune.core.component import Component
from tokenprune.methods.named import NamedMethod, list_methods, load_method

TRANSCRIPTS = Path(__file__).parents[2] / "tests" / "published" / "transcripts"

HEAD = """\
# Methods

This page lists every named method. `make methods` generates it from the methods' files and the docstrings of their
components, and a test compares the two. `tokenprune show NAME` prints a method as YAML, to copy and change. Layer
selectors, pruners, scorers and budgets can be combined freely.

Each method declares the signals that it *needs*, and the engine captures only these: states of the layer before the
pruned one, K-1 (`query`, `key`, `value`), the hidden states that entered it (`previous`), single attention rows of that
layer (`attention`) or of layer K itself (`entering`), the norm behind the last layer (`final_norm`), the prompt's input
embeddings (`embeddings`), or layers of the vision tower. Hidden states are always available. If two scores are equal,
the token at the earlier position is kept, unless the method states another rule.

*Checked against* names the code that the method's authors published. It was run on seeded tensors, and a test compares
ours with what it gave: the same tokens, and the same values where a method merges them
(`tests/published/README.md`). *Paper only*: no such code could be had, so the tests follow the paper.
"""

FAMILIES = """\
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


def acts(method: Method) -> str:
    """The layers before which the method prunes, in words."""
    layers = method.layers.model_dump(exclude_none=True)
    numbers = layers.get("layers")
    if numbers is not None and list(numbers) == [0]:
        return "before the language model"
    if numbers is not None:
        return f"before layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    own = method.layers.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    fields = ", ".join(f"{name} {words(value)}" for name, value in own.items())
    return f"chosen by `{type(method.layers).__name__}`" + (f" ({fields})" if fields else "")


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


def overview(methods: Sequence[NamedMethod]) -> str:
    """The table of all methods."""
    rows = [
        f"| [{named.name}](#{named.name}) | {acts(load_method(named.name)).partition(' (')[0]} | {named.description} |"
        for named in methods
    ]
    return "\n".join(["| Method | Acts | Idea |", "|---|---|---|", *rows, ""])


def checked(named: NamedMethod) -> str:
    """What our selection was compared with: the authors' published code, only the paper, or nothing."""
    if not named.paper:
        return "own baseline, nothing to compare with"
    file = TRANSCRIPTS / f"{named.name}.json"
    if not file.is_file():
        return checked_as(named) or "paper only"
    recorded = json.loads(file.read_text(encoding="utf-8"))
    cases = [entry["case"] for entry in recorded["cases"]]
    different = list(dict.fromkeys(case["differs"] for case in cases if "differs" in case))
    agreeing = sum("differs" not in case for case in cases)
    link = f"https://github.com/{recorded['repository']}/blob/{recorded['commit']}/{recorded['file']}"
    words = f"[{recorded['repository']}]({link}), commit `{recorded['commit'][:7]}`, `{Path(recorded['file']).name}`"
    words += f" (lines {recorded['lines']}): {agreeing} of {len(cases)} cases equal"
    return words + "".join(f"; not equal, and expected so: {reason}" for reason in different)


def checked_as(named: NamedMethod) -> str | None:
    """The method with the same pruner whose selection was compared, if there is one."""
    pruner = load_method(named.name).pruner
    recorded = (file.stem for file in sorted(TRANSCRIPTS.glob("*.json")))
    same = next((name for name in recorded if load_method(name).pruner == pruner), None)
    return None if same is None else f"as [{same}](#{same}), which has the same pruner"


def section(named: NamedMethod) -> str:
    """The section of one method."""
    method = load_method(named.name)
    rows = {
        "Acts": acts(method),
        "Needs": needs(method),
        "Source": named.paper,
        "Checked against": checked(named),
        "Differs": str(named.data.get("differs", "")),
    }
    lines = [f"## {named.name}", "", named.description, ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items() if text), ""]
    lines += published(named)
    texts = {type(component).__name__: paragraphs(component) for component in components(method.pruner)}
    lines += [f"*{name}*: {text}\n" for name, text in texts.items()]
    text = method.to_yaml().replace(f"label: {named.name}\n", "")
    return "\n".join([*lines, "```yaml", text.rstrip(), "```", ""])


def published(named: NamedMethod) -> list[str]:
    """The lines of the table of settings that were published for single models."""
    if not named.published:
        return []
    rows = []
    for entry in named.published:
        source = f"`{entry.source}` {entry.note}".strip()
        rows.append(f"| {entry.model} | {entry.condition} | `{flow(entry.settings)[1:-1]}` | {source} |")
    intro = f'Published settings, used by `load_method("{named.name}", model=model)` and `published: true`:'
    return [intro, "", "| Model | Fits | Settings | Source |", "|---|---|---|---|", *rows, ""]


def main() -> None:
    """Print the page."""
    with plugins.builtin_only():
        methods = list_methods()
        pages = [overview(methods), FAMILIES, *(section(named) for named in methods)]
    print("\n".join([HEAD, *pages]), end="")


if __name__ == "__main__":
    main()
