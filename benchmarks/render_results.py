"""Render every committed result again, to see whether a change of the code changes a figure. Nothing is measured.

    python benchmarks/render_results.py FOLDER     # text, Markdown, LaTeX, CSV and the page's table of every result
    python benchmarks/render_results.py --reports  # write the tables of the committed reports again

Run it before and after a change, and compare the folders. The tables come from ``summary.json`` and ``choices.json``;
the answers of single questions are not in the repository, so further tables of ``report.md`` stay as they are.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenprune.core.references import UNPRUNED
from tokenprune.experiment.paper_table import csv_table, latex_table
from tokenprune.experiment.report_data import chosen_layers
from tokenprune.experiment.summary import SeriesSummary
from tokenprune.experiment.tables import layers_table, main_table
from tokenprune.measure import bench_table
from tokenprune.output.lines import json_ready
from tokenprune.stats.estimate import Estimate
from tokenprune.tables import markdown, terminal

RESULTS = Path(__file__).parent / "results"
NUMBERS = ("kept", "visual", "average", "flops_reduction", "kv_bytes", "time_ratio")


def estimate(data: dict[str, Any]) -> Estimate:
    """An estimate of a summary, as it stands there; null is a number that is not known."""
    unknown = {"mean": math.nan, "low": -math.inf, "high": math.inf}
    return Estimate(**{name: value if data[name] is None else data[name] for name, value in unknown.items()})


def summary(data: dict[str, Any]) -> SeriesSummary:
    """One row of a summary; JSON has null for a number that is not known."""
    fields = {name: math.nan if data[name] is None else data[name] for name in NUMBERS}
    low, high = (math.nan if value is None else value for value in data["time_spread"])
    own = data["method"] == UNPRUNED
    shares = {name: estimate(data[name]) for name in ("agreement", "hard") if data.get(name) is not None}
    if own and "agreement" in shares:
        shares["agreement"] = Estimate.exact(1.0)
    known = {name: data[name] for name in ("label_free", "hard_count") if data.get(name) is not None}
    return SeriesSummary(
        method=data["method"],
        budget=data["budget"],
        seeds=data["seeds"],
        accuracy=estimate(data["accuracy"]),
        gain=Estimate.exact(0.0) if own else estimate(data["gain"]),
        divergence=None,  # no committed result has one
        time_spread=(low, high),
        **{"agreement": None, **shares, **known, **fields},
    )


def summaries(folder: Path) -> list[SeriesSummary]:
    """The rows of a committed experiment."""
    return [summary(data) for data in json.loads((folder / "summary.json").read_text(encoding="utf-8"))]


def report(folder: Path) -> str:
    """The text of a committed ``report.md``, its main table and its layers made again."""
    text = (folder / "report.md").read_text(encoding="utf-8")
    choices = json.loads((folder / "choices.json").read_text(encoding="utf-8"))
    layers = layers_table(chosen_layers(choices, {key: key.split(" / ")[0] for key in choices}))
    text = _replaced(text, "| method | budget | accuracy % ", markdown.lines(main_table(summaries(folder))))
    return _replaced(text, "| methods | before layer | why |", markdown.lines(layers))


def _replaced(text: str, heading: str, table: list[str]) -> str:
    """A text with another table in place of the one that begins with a heading."""
    before, found, after = text.partition(f"\n{heading}")
    assert found, f"the report has no table {heading!r}"
    rest = after.partition("\n\n")[2]
    return "\n".join([before, *table]) + (f"\n\n{rest}" if rest else "\n")


def experiments() -> dict[str, Path]:
    """Name -> folder of every committed experiment, the cells of ``make tables`` among them."""
    return {path.parent.name: path.parent for path in sorted(RESULTS.rglob("summary.json"))}


def renderings() -> dict[str, str]:
    """Name of a file -> its text, for every committed result."""
    found = {}
    for name, folder in experiments().items():
        rows = summaries(folder)
        table = main_table(rows)
        found[f"{name}.txt"] = "\n".join(terminal.lines(table)) + "\n"
        found[f"{name}.tex"] = latex_table({"": rows}, share=True)
        found[f"{name}.csv"] = csv_table({name: rows})
        found[f"{name}.json"] = json.dumps(json_ready(asdict(table)), indent=1) + "\n"
        found[f"{name}.md"] = report(folder)
    for path in sorted((RESULTS / "speed").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "batches" in result:
            found[f"speed-{path.stem}.md"] = bench_table.markdown(result)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where to write the renderings")
    parser.add_argument("--reports", action="store_true", help="write the committed reports again")
    args = parser.parse_args()
    folders = experiments()
    for name, text in renderings().items():
        if args.folder is not None:
            args.folder.mkdir(parents=True, exist_ok=True)
            (args.folder / name).write_text(text, encoding="utf-8")
        folder = folders.get(name.removesuffix(".md"))
        if args.reports and folder is not None:
            (folder / "report.md").write_text(text, encoding="utf-8")
        if args.reports and name.startswith("speed-"):
            (RESULTS / "speed" / name.removeprefix("speed-")).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
