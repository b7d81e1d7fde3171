"""Which model types are exact: `python -m tests.support.families_table` writes docs/families.md.

It builds every image-text model type of the installed transformers, asks its adapter, runs the contract matrix for its
tiny models, keeps what it found under benchmarks/results/model_types/, and writes the page from all that is kept there.
With names of model types it looks at these alone.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from tests.support.survey import TYPES, USABLE, Finding, judged
from tests.support.tiny.core import TRANSFORMERS

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "benchmarks" / "results" / "model_types"
PAGE = ROOT / "docs" / "families.md"
VERSION = ".".join(map(str, TRANSFORMERS))
Table = dict[str, Finding]

HEAD = """# Model types

Every image-text model type of transformers {versions}, and what tokenprune does with it.
`{command}` writes this page: it builds each model, asks its adapter, and runs the
[contract matrix](invariants.md) for its small models.

- *exact*: pruned at any layer, in `forward` and in `generate`, the logits of all kept tokens are those of the same
  model with the dropped tokens masked out.
- *exact in `forward`*: `generate` of these models hands embeddings to the language model inside; it is refused.
- *exact in the last layers*: the first layers mix tokens, or get features late; methods that prune behind the last of
  these are exact, others are refused with the reason in the last column.
- *refused*: an error says why, before anything runs. The last column has its words.
- *needs an adapter*: refused as well; [an adapter](adapters.md) may make it possible.
- *broken upstream*: this version of transformers cannot run the model unpruned.

Signals are what scorers may read beside the hidden states. *attention*: single attention rows of the layer before;
*entering*: of the layer itself, before it runs; *tower*: attention, keys and states of the vision tower.
"""


def load(version: str) -> Table:
    """What was found with a version of transformers, by model type."""
    data = json.loads((STORED / f"{version}.json").read_text(encoding="utf-8"))
    return {
        name: Finding(row["status"], tuple(row["cases"]), tuple(row["signals"]), row["why"])
        for name, row in data["types"].items()
    }


def store(table: Table) -> None:
    """Keep what was found with the installed version."""
    STORED.mkdir(exist_ok=True)
    data = {"transformers": transformers.__version__, "types": {name: asdict(f) for name, f in table.items()}}
    (STORED / f"{VERSION}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def versions() -> list[str]:
    """The versions that something is kept of, oldest first."""
    return sorted((path.stem for path in STORED.glob("*.json")), key=lambda v: [int(n) for n in v.split(".")])


def page() -> str:
    """The page, from all that is kept."""
    known = versions()
    tables = {version: load(version) for version in known}
    head = HEAD.format(versions=" and ".join(known), command="python -m tests.support.families_table")
    lines = [head, "| Model type | " + " | ".join(known) + " | Signals | Why |", "|---" * (len(known) + 3) + "|"]
    lines += [row(name, tables) for name in sorted(set().union(*tables.values()))]
    newest = tables[known[-1]]
    lines += ["", "## In numbers", "", "| | " + " | ".join(known) + " |", "|---" * (len(known) + 1) + "|"]
    statuses = sorted({f.status for table in tables.values() for f in table.values()})
    for status in statuses:
        counts = (str(sum(f.status == status for f in tables[version].values())) for version in known)
        lines.append(f"| {status} | " + " | ".join(counts) + " |")
    around = sorted(name.removeprefix("llava_") for name in newest["llava"].cases if name != "llava")
    lines += [
        "",
        "## Language models",
        "",
        f"LLaVA is in the matrix around these language models, too: {', '.join(around)}.",
    ]
    return "\n".join(lines) + "\n"


def row(name: str, tables: dict[str, Table]) -> str:
    """A model type's line: its newest signals and reason."""
    found = [table.get(name) for table in tables.values()]
    last = next(f for f in reversed(found) if f is not None)
    usable = next((f for f in reversed(found) if f is not None and f.status in USABLE), None)
    cells = [f"`{name}`", *(f.status if f else "" for f in found)]
    return "| " + " | ".join([*cells, "; ".join(usable.signals) if usable else "", last.why.replace("|", "/")]) + " |"


def main(names: list[str]) -> None:
    """Survey model types, or all, with the installed version, and write the page."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    table = load(VERSION) if names else {}
    for name in names or sorted(TYPES):
        table[name] = judged(name)
        print(name, table[name].status, flush=True)
    store(table)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
