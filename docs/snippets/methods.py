"""Prints docs/methods.md from what is registered; `make methods` writes it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence

from tokenprune import plugins
from tokenprune.component import Component
from tokenprune.config import Method
from tokenprune.named import NamedMethod, list_methods, load_method

HEAD = """\
# Methods

Every named method, as it is registered. This page is made by `make methods` from the methods' files and the
docstrings of their parts; a test compares the two. `tokenprune show NAME` prints a method to copy and change, and any
part goes with any other.

What a method *needs* is captured for it and nothing else: states of the layer before the pruned one (`query`, `key`,
`value`), single attention rows (`attention`), the prompt's input embeddings (`embeddings`), or layers of the vision
tower. Equal scores keep the earlier position unless a method says otherwise.
"""

FAMILIES = """\
## Which method runs on which family

--8<-- "benchmarks/results/families.md:3"
"""


def paragraphs(part: Component) -> str:
    """A docstring up to its attributes, each paragraph on one line; the source is said elsewhere."""
    text = inspect.cleandoc(type(part).__doc__ or "").split("Attributes:")[0]
    text = re.sub(r":\w+:(`[^`]+`)", r"\1", text)  # roles of the API pages mean nothing here
    blocks = [" ".join(block.split()) for block in text.split("\n\n")]
    return "\n\n".join(block for block in blocks if block and not block.startswith("Source:"))


def acts(method: Method) -> str:
    """Where the method prunes, in words."""
    layers = method.layers.model_dump(exclude_none=True)
    where = layers.get("layers")
    if where is not None and list(where) == [0]:
        return "before the language model"
    if where is not None:
        return f"before layer{'s' if len(where) > 1 else ''} {', '.join(map(str, where))}"
    given = ", ".join(f"{name} {value}" for name, value in layers.items())
    return f"chosen by `{type(method.layers).__name__}` ({given})"


def needs(method: Method) -> str:
    """What is captured for the method, in words."""
    tower = sorted(method.pruner.vision_layers)
    found = [f"`{name}`" for name in sorted(method.pruner.needs)]
    found += [f"layer {layer} of the vision tower" for layer in tower]
    return ", ".join(found) or "nothing of the model"


def parts(part: Component) -> Iterator[Component]:
    """A part, and all that it is made of."""
    yield part
    for name in type(part).model_fields:
        value = getattr(part, name)
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Component):
                yield from parts(inner)


def overview(methods: Sequence[NamedMethod]) -> str:
    """All methods on one screen."""
    rows = [
        f"| [{named.name}](#{named.name}) | {acts(load_method(named.name)).partition(' (')[0]} | {named.description} |"
        for named in methods
    ]
    return "\n".join(["| Method | Acts | Idea |", "|---|---|---|", *rows, ""])


def section(named: NamedMethod) -> str:
    """One method."""
    method = load_method(named.name)
    rows = {
        "Acts": acts(method),
        "Needs": needs(method),
        "Source": named.paper,
        "Differs": str(named.data.get("differs", "")),
    }
    lines = [f"## {named.name}", "", named.description, ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items() if text), ""]
    found = {type(part).__name__: paragraphs(part) for part in parts(method.pruner)}
    lines += [f"*{name}*: {text}\n" for name, text in found.items()]
    text = method.to_yaml().replace(f"label: {named.name}\n", "")
    return "\n".join([*lines, "```yaml", text.rstrip(), "```", ""])


def main() -> None:
    """Print the page."""
    with plugins.builtin_only():
        methods = list_methods()
        pages = [overview(methods), FAMILIES, *(section(named) for named in methods)]
    print("\n".join([HEAD, *pages]), end="")


if __name__ == "__main__":
    main()
