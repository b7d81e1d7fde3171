"""Prints docs/methods.md from what is registered; `make methods` writes it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

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


def paragraph(part: Component) -> str:
    """A docstring up to its attributes, on one line; the source is said elsewhere."""
    text = inspect.cleandoc(type(part).__doc__ or "").split("Attributes:")[0]
    kept = [block for block in text.split("\n\n") if not block.strip().startswith("Source:")]
    return " ".join(" ".join(kept).split())


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
    lines += [f"*{type(part).__name__}*: {paragraph(part)}\n" for part in parts(method.pruner)]
    text = method.to_yaml().replace(f"label: {named.name}\n", "")
    return "\n".join([*lines, "```yaml", text.rstrip(), "```", ""])


def main() -> None:
    """Print the page."""
    with plugins.builtin_only():
        found = [section(named) for named in list_methods()]
    print("\n".join([HEAD, *found]), end="")


if __name__ == "__main__":
    main()
