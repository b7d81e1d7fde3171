"""Makes the tables of docs/comparison/: every method, three tasks, four shares of tokens, two measures of cost.

    python benchmarks/tables.py --jobs 2

A *cell* is one experiment: a task, an axis (``average``: the budget is a layer average; ``kept``: it is what is left
after the last stage) and a share. Cells of a third axis, ``positions``, have methods with original and with renumbered
positions, at equal layer averages. ``benchmarks/tables.yaml`` says what is measured. A cell goes on where it stopped,
below ``results/tables/``; a finished one is copied to ``benchmarks/results/tables/CELL/`` and is not made again as
long as its settings are the same. ``pairs.json`` beside it has the differences of methods, paired by question, which
the answers alone can tell; ``benchmarks/comparison.py`` writes the page from these folders. Methods that act before
the language model only keep as many tokens as their layer average is, so that the axis ``kept`` has the others. A
method that cannot meet a layer average is left out of that cell; ``cannot.json`` says why.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tokenprune import ExperimentConfig
from tokenprune.adapters import adapter_for
from tokenprune.adapters.base import Adapter
from tokenprune.budgets.base import Schedule
from tokenprune.core.references import SAME_COST, is_reference
from tokenprune.errors import BudgetError, TokenPruneError
from tokenprune.experiment import ExperimentResult, run_experiment, write_report
from tokenprune.experiment.report_data import Gain, gains_over_random
from tokenprune.experiment.series import Series
from tokenprune.experiment.summary import SeriesSummary, by_budget, summarise
from tokenprune.flops.decoder import prefill_cost
from tokenprune.output.lines import json_ready
from tokenprune.run import choose_layers

ROOT = Path(__file__).resolve().parent.parent
PLAN = ROOT / "benchmarks" / "tables.yaml"
WORK = ROOT / "results" / "tables"
KEPT = ROOT / "benchmarks" / "results" / "tables"
FILES = ("report.md", "summary.json", "config.yaml", "choices.json", "environment.json", "accuracy.png")
AXES = {"average": "layer_average", "kept": "keep_ratio"}
#: The axis of methods with both kinds of positions, and the end of the names of those with renumbered ones.
POSITIONS, RENUMBERED = "positions", "-renumbered"
#: The method that every other one is compared with, beside random and the best.
OWN = "entropyprune"


@dataclass(frozen=True)
class Cell:
    """One experiment: a task, an axis and a share of the tokens."""

    task: str
    axis: str
    share: float
    plan: Mapping[str, Any]

    @property
    def name(self) -> str:
        """E.g. ``digits-average-22.2``."""
        return f"{self.task}-{self.axis}-{100 * self.share:.1f}"

    @property
    def folder(self) -> Path:
        """Where its result is kept."""
        return KEPT / self.name

    @cached_property
    def entries(self) -> list[Any]:
        """The methods to try."""
        found = self._of(self.plan)
        if self.axis != POSITIONS:
            return found
        known = {_name(entry): entry for entry in found}
        chosen = [known[name] for name in self._of(self.plan["positions"])]
        return [form for entry in chosen for form in (entry, _renumbered(entry))]

    def _of(self, plan: Mapping[str, Any]) -> list[Any]:
        return [*plan["methods"], *(plan["video"] if self.task == "clips" else ())]

    def config(self, entries: Sequence[Any]) -> ExperimentConfig:
        """The experiment with some of the methods."""
        return ExperimentConfig.from_dict(
            {
                **self.plan["tasks"][self.task],
                **self.plan["settings"],
                "methods": list(entries),
                "budgets": [{"name": AXES.get(self.axis, AXES["average"]), "ratio": self.share}],
                "output": str(WORK.relative_to(ROOT) / self.name),
            },
            self.name,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What the cell was asked to measure, to know whether the kept result is that of these settings."""
        plan = {**self.plan["tasks"][self.task], **self.plan["settings"], "methods": self.entries}
        return json.loads(json.dumps({**plan, "axis": self.axis, "share": self.share}))  # type: ignore[no-any-return]

    @property
    def finished(self) -> bool:
        """Whether the kept result has these settings."""
        stored = self.folder / "plan.json"
        there = stored.is_file() and (self.folder / "pairs.json").is_file()
        return there and json.loads(stored.read_text(encoding="utf-8")) == self.settings

    def make(self) -> None:
        """Run the experiment, or go on with it, and keep its result."""
        entries, cannot = self.possible()
        config = self.config(entries)
        result = run_experiment(config, _say(self.name))
        write_report(result)
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            source = ROOT / config.output / name
            if source.is_file():
                shutil.copyfile(source, self.folder / name)
        _write(self.folder / "cannot.json", cannot)
        _write(self.folder / "pairs.json", pairs(result, None if self.axis == "kept" else self.share))
        _write(self.folder / "plan.json", self.settings)

    def possible(self) -> tuple[list[Any], dict[str, str]]:
        """The methods that can run in this cell; and why the others cannot.

        On the axis ``kept``, methods that act before the language model only are left out without a reason: they stand
        on the axis ``average`` with the same tokens.
        """
        stored = WORK / f"{self.name}.json"
        if stored.is_file():  # a cell that goes on must not search again
            found = json.loads(stored.read_text(encoding="utf-8"))
            if found["settings"] == self.settings:
                return found["entries"], found["cannot"]
        loaded = self.config(["random"]).model.load()
        task = self.config(["random"]).task
        calibration = [loaded.encode([sample]) for sample in task.calibration(8)]
        images = len(next(iter(task.samples())).images)
        visual = loaded.visual_tokens * images if loaded.visual_tokens else 0
        adapter = adapter_for(loaded.model)
        entries: list[Any] = []
        cannot: dict[str, str] = {}
        for entry in self.entries:
            (item, *_) = [series for series in self.config([entry]).series() if not series.unpruned]
            try:
                if self._belongs(item, adapter, calibration, visual, images):
                    entries.append(entry)
            except TokenPruneError as error:
                cannot[item.method_name] = error.what
        WORK.mkdir(parents=True, exist_ok=True)
        _write(stored, {"settings": self.settings, "entries": entries, "cannot": cannot})
        return entries, cannot

    def _belongs(self, item: Series, adapter: Adapter, calibration: list[Any], visual: int, images: int) -> bool:
        """Whether a method belongs to the cell.

        Raises:
            TokenPruneError: It cannot meet the budget, or cannot run on the model.
        """
        if item.method is None:  # smaller pictures: before the language model
            return self.axis != "kept"
        if item.method.layers.verifies:  # it finds a layer that can
            return True
        layers = choose_layers(adapter.model, item.method, calibration).layers
        schedule = Schedule(layers, adapter.num_layers, prefill_cost(adapter.config, 0))
        left = min(item.method.budget.keep(visual, schedule))
        if 0 < left < images:
            raise BudgetError(f"{left} tokens are left of {images} frames, and each keeps at least one", "keep more")
        return self.axis != "kept" or layers != (0,) or item.method_name.startswith("random")


def pairs(result: ExperimentResult, share: float | None) -> dict[str, Any]:
    """Differences of methods, paired by question: what ``summary.json`` does not say.

    Args:
        result: A finished experiment with one budget.
        share: The layer average that the methods may spend, as a share of all visual tokens; None where their costs are
            not equal, so that none of them is the best.

    Returns:
        The number of ``questions`` and of ``pictures``, the layer average ``target``, the ``best`` method of that cost,
        and for each of the ``methods`` its score minus that of the ``random`` choice with the nearest layer average,
        of the ``best``, of ``entropyprune``, and with renumbered positions of the same with ``original`` ones: ``name``
        of the other, ``mean``, ``low``, ``high``.
    """
    summaries, groups = summarise(result), result.answers.questions.groups
    (budget, methods), *_ = by_budget(summaries).items()
    whole = next(item.visual for item in summaries if not item.budget)
    target = None if share is None else share * whole
    rivals = [item for item in methods.values() if not is_reference(item.method) and affordable(item.average, target)]
    best = max(rivals, key=lambda item: item.accuracy.mean, default=None)
    chance = gains_over_random(result.answers, summaries).get(budget, {})

    def of(own: SeriesSummary) -> dict[str, Any]:
        gains = {"random": chance[own.method]} if own.method in chance else {}
        twin = own.method.removesuffix(RENUMBERED)
        for name, rival in (("best", best), (OWN, methods.get(OWN)), ("original", methods.get(twin))):
            if rival is not None and rival.method != own.method:
                gains[name] = Gain.of(result.answers, own, rival)
        return {name: {"name": gain.rival.method, **vars(gain.points)} for name, gain in gains.items()}

    return json_ready(  # type: ignore[no-any-return]
        {
            "questions": len(groups),
            "pictures": len(set(groups.values())),
            "target": target,
            "best": best.method if best else None,
            "methods": {name: of(item) for name, item in methods.items()},
        }
    )


def affordable(average: float, target: float | None) -> bool:
    """Whether a layer average is within a cost, nearly; nothing is where no cost was given."""
    return target is not None and average <= (1 + SAME_COST) * target


def _name(entry: Any) -> str:
    return str(entry if isinstance(entry, str) else entry["name"])


def _renumbered(entry: Any) -> dict[str, Any]:
    """An entry of the plan with renumbered positions."""
    own = {"name": entry} if isinstance(entry, str) else entry
    return {**own, "positions": "renumbered", "label": f"{_name(entry)}{RENUMBERED}"}


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _say(name: str) -> Any:
    """Print a line per method of a cell."""
    last: list[str] = []

    def progress(key: str, done: int, total: int) -> None:
        if last != [key] and done == total:
            last[:] = [key]
            print(f"{name}: {key} ({done} of {total})", flush=True)

    return progress


def cells(plan: Mapping[str, Any]) -> list[Cell]:
    """All cells, the layer averages first."""
    shares = [(axis, share) for axis in AXES for share in plan["shares"]]
    shares += [(POSITIONS, plan["positions"]["share"])] if "positions" in plan else []
    return [Cell(task, axis, share, plan) for axis, share in shares for task in plan["tasks"]]


def main() -> int:
    """Make all cells, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", help="names, e.g. digits-average-22.2; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, each in a process of its own")
    parser.add_argument("--list", action="store_true", help="list the cells and whether they are finished")
    parser.add_argument("--again", action="store_true", help="also make cells that are finished")
    arguments = parser.parse_args()
    found = {cell.name: cell for cell in cells(yaml.safe_load(PLAN.read_text(encoding="utf-8")))}
    unknown = [name for name in arguments.cells if name not in found]
    if unknown:
        print(f"there is no cell {unknown[0]!r}; there are {', '.join(found)}", file=sys.stderr)
        return 2
    chosen = [found[name] for name in arguments.cells or found]
    if arguments.list:
        print("\n".join(f"{cell.name}: {'finished' if cell.finished else 'to do'}" for cell in chosen))
        return 0
    todo = [cell for cell in chosen if arguments.again or not cell.finished]
    if len(todo) == 1 or arguments.jobs <= 1:
        for cell in todo:
            cell.make()
        return 0
    return _in_processes(todo, arguments.jobs)


def _in_processes(todo: Sequence[Cell], jobs: int) -> int:
    """Make cells side by side; a cell that fails does not stop the others."""
    waiting, failed = list(todo), list[str]()
    running: dict[str, subprocess.Popen[bytes]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            cell = waiting.pop(0)
            command = [sys.executable, str(Path(__file__).resolve()), "--again", cell.name]
            running[cell.name] = subprocess.Popen(command, cwd=ROOT)
        for name, process in list(running.items()):
            try:
                code = process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
            del running[name]
            print(f"{name}: {'finished' if code == 0 else 'FAILED'}", flush=True)
            failed += [name] if code else []
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
