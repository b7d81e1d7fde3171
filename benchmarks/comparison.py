"""Writes docs/comparison/ and docs/reports/ from the finished cells of `make tables`; `make comparison` runs it.

    python benchmarks/comparison.py
    python benchmarks/comparison.py --output docs

``comparison/index.md`` has what all tasks say together, ``comparison/TASK.md`` every method on one task,
``reports/CELL.md`` the report of a cell. It measures nothing: every figure is in a file below
``benchmarks/results/tables/``. A cell that is not finished, or that was made with other settings than those of
``tables.yaml``, is named at the top of the index.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from tables import OWN, PLAN, POSITIONS, RENUMBERED, ROOT, Cell, affordable, cells

from tokenprune.core.references import DOWNSAMPLED, ORACLE, UNPRUNED, is_reference, same_cost
from tokenprune.methods.named import method_names
from tokenprune.stats.estimate import Estimate
from tokenprune.tables import markdown
from tokenprune.tables.table import Cell as Field
from tokenprune.tables.table import Heading, Row, Table

TASKS = {"digits": "Digits", "easy-vqa": "easy-VQA", "clips": "Clips"}
PICTURES, CLIPS = ("digits", "easy-vqa"), ("clips",)
AXES = {"average": "layer average", "kept": "kept", POSITIONS: "layer average, both kinds of positions"}
#: The same, in the titles of reports.
TITLES = {"average": "equal layer averages", "kept": "equal kept tokens", POSITIONS: "both kinds of positions"}
#: Task and share -> the share of the unpruned accuracy that entropyprune should keep at least.
GOALS = {("digits", "22.2"): 0.96, ("easy-vqa", "22.2"): 0.96, ("clips", "33.3"): 0.92}
#: The shares of the nine cells with goals.
NINE = ("33.3", "22.2", "11.1")

HEAD = """\
# All methods compared

Every method on three tasks, at four shares of the visual tokens. `make tables` measures it, cell by cell, and
`make comparison` writes these pages. The models are small and the tasks are synthetic. They show what a method does,
and on what it depends. They do not rank methods for a 7B model on photographs: measure those on your own model
([Choose a method for your model](../tuning.md)).
"""
WHICH = """\
## Which method, at which budget

Every method may spend as many visual tokens per layer of the language model, on average, as the first column says.
*Good* methods are the best of a task, or not distinguishable from the best, on every task of the column. A field
stays empty until its tasks have been measured. [Methods](../methods/index.md) has a page for each.
"""
TASK_HEAD = """\
# {title}: every method

Every method on {questions} questions about {pictures} {what}, with one model: the intervals say nothing about other
models. [All methods compared](index.md) has what the tasks say together, and [how it was
measured](index.md#how-it-was-measured).
"""
DETAIL = """\
## The best methods

*As good*: the number of methods that are not distinguishable from the best; they stand below the table. *Told apart*: a
smaller difference is seldom seen ([how to read this](index.md#how-to-read-a-table-of-the-best)).
"""
READING = """\
## How to read a table of the best

The page of a task has a row per share of the tokens. *Best* is the method with the highest accuracy; random, smaller
pictures and the oracle are references and no methods. *As good* is the number of methods that are not distinguishable
from it: the 95 % interval of their difference to it, paired by question, holds zero. They stand below the table, in the
order of their accuracy. *Told apart* is the half width of these intervals, the median over the methods. The best of
many is best partly by luck, so read these columns together. *Random* acts before the language model. *Smaller pictures*
is the unpruned model on pictures with as many tokens.
"""
RANDOM = """\
## Where random wins

Each method is compared with the random choice of the nearest layer average, on the same questions, at equal layer
averages. **Bold: random wins** beyond the 95 % interval, by so many points. The last column has the methods whose
interval holds zero. A cell has some forty methods: one or two differences at the edge of their interval mean nothing.
"""
OWN_HEAD = """\
## EntropyPrune

`entropyprune` looks for its layers, its states and its pruner on calibration samples without labels
([Concepts](../concepts.md#verification)). All differences are in points and paired by question. *Rival*: the best
method of the cell at no higher cost that is neither a variant of EntropyPrune, nor one of its null models, nor a
reference. It is picked on these questions, which favours it. The pages of the tasks have the other cells, what the
verification promised, and the null models.
"""
OWN_TASK = """\
## EntropyPrune

`entropyprune` on this task. [The index](index.md#entropyprune) has its verdict on all tasks, and says what a rival is.
Differences are in points and paired by question.
"""
PROMISED = """\
### What the verification promised

Agreement with the unpruned model. *Promised*: of the first answer token, on the calibration samples that chose the
candidate. *Corrected*: the same without the gain from having been picked. *Kept*: of the whole answer, on the
questions of the cell.
"""
NULL = """\
### The null models

Accuracy in %, and in brackets that of `entropyprune` minus it, paired by question. `energy-diversity` has the energy
of the states in the place of their entropy, `diversity` has neither. `energy-tower-large`, `norm-tower-large` and
`norm-query-small` keep the tokens with the most energy, the largest and the smallest norm. **Bold**: `entropyprune`
is not above it beyond the interval. There the entropy is not what the accuracy comes from.
"""
METHODS = """\
## Every method

A row per method, a column per share of the visual tokens; accuracy in % with its 95 % interval, clustered by picture.
**Bold: random wins** at equal cost beyond the interval. `oracle` keeps the tokens that show the foreground (no upper
bound on clips, where movement shows in the background, too), and `random-...` are random choices at other layers;
these references are in italics. A method without a figure cannot meet the budget, or was not measured at it.
"""
AVERAGES = """\
The share is the average over all layers of the language model. A method whose layer average differs by more than 5 %
of that has it in brackets, in % of the visual tokens; one that costs more cannot be the best."""
KEPT_TOKENS = """\
The share is what is left after the last stage. **Equal kept is not equal cost**: in brackets stands the layer
average, in % of the visual tokens. Methods that act before the language model only are left out: they keep as many as
their layer average."""
HARD = """\
Accuracy on the hard questions alone, at equal layer averages. The unpruned model answers them right, and wrong from a
smaller picture with as many tokens. On the others nothing shows whether a method keeps the right tokens."""

REPORTS = """\
# The report of every cell

The tables behind [All methods compared](../comparison/index.md), as written. A cell is a task and a share of the
tokens; *equal* is what all its methods have in common.
"""
REPORT = """\
---
hide: [toc]
---

# {task} at {share} %: {equal}

[Every report](index.md), [all methods compared](../comparison/index.md).

--8<-- "{path}:3"
"""
POSITIONS_HEAD = """\
## Positions

The code of these methods' authors numbers the tokens that are left from 0. Here they keep their positions, unless a
method says `positions: renumbered` ([Concepts](../concepts.md#positions)). At equal layer averages of {share} %:
accuracy in % with original positions, and in brackets that with renumbered ones minus it, paired by question.
**Bold**: the renumbered ones are better beyond the interval.
"""


@dataclass(frozen=True)
class Method:
    """A method in a cell, as ``summary.json`` and ``pairs.json`` have it.

    Attributes:
        name: The method.
        data: Its row of the summary.
        pairs: "random", "best", "entropyprune" and "original" (positions) -> its difference to that one.
    """

    name: str
    data: Mapping[str, Any]
    pairs: Mapping[str, Mapping[str, Any]]

    def estimate(self, name: str) -> Estimate | None:
        """A number of the summary with its interval, if there is one."""
        return None if self.data.get(name) is None else estimate(self.data[name])

    @property
    def accuracy(self) -> Estimate:
        """The mean score."""
        return estimate(self.data["accuracy"])

    @property
    def kept(self) -> float:
        """The share of the unpruned model's accuracy; NaN where that is zero."""
        return math.nan if self.data["kept"] is None else float(self.data["kept"])

    @property
    def average(self) -> float:
        """The layer average in tokens."""
        return float(self.data["average"])

    def minus(self, name: str) -> Estimate | None:
        """The difference to "random", "best" or "entropyprune"; None where it is the same method, or not there."""
        return estimate(self.pairs[name]) if name in self.pairs else None


def estimate(data: Mapping[str, float | None]) -> Estimate:
    """An estimate of a file, in which numbers that JSON does not have are null."""
    ends = {"mean": math.nan, "low": -math.inf, "high": math.inf}
    return Estimate(*(unknown if (value := data[name]) is None else value for name, unknown in ends.items()))


@dataclass(frozen=True)
class Result:
    """A finished cell."""

    cell: Cell

    def read(self, name: str) -> Any:
        """What a file of the cell holds."""
        return json.loads((self.cell.folder / name).read_text(encoding="utf-8"))

    @cached_property
    def pairs(self) -> dict[str, Any]:
        """The differences of methods; see ``tables.pairs``."""
        return self.read("pairs.json")  # type: ignore[no-any-return]

    @cached_property
    def choices(self) -> dict[str, Any]:
        """Series -> the layers, and what was promised."""
        return self.read("choices.json")  # type: ignore[no-any-return]

    @cached_property
    def methods(self) -> dict[str, Method]:
        """All methods, the best first; the unpruned model among them."""
        found = [Method(row["method"], row, self.pairs["methods"].get(row["method"], {})) for row in self.summary]
        return {item.name: item for item in sorted(found, key=lambda item: -item.accuracy.mean)}

    @cached_property
    def summary(self) -> list[dict[str, Any]]:
        """The rows of the table."""
        return self.read("summary.json")  # type: ignore[no-any-return]

    @property
    def unpruned(self) -> Method:
        """The unpruned model."""
        return self.methods[UNPRUNED]

    @property
    def share(self) -> str:
        """The share of the tokens in %."""
        return percent(self.cell.share)

    def random_wins(self, method: Method) -> bool:
        """Whether random is better at equal cost, beyond the interval."""
        gain = self.over_random(method)
        return gain is not None and gain.high < 0

    def over_random(self, method: Method) -> Estimate | None:
        """The difference to random, where it costs the same."""
        gain = method.minus("random")
        if gain is None:
            return None
        return gain if same_cost(method.average, self.methods[method.pairs["random"]["name"]].average) else None

    @property
    def equals(self) -> list[Method]:
        """The methods that cannot be told apart from the best."""
        return [item for item in self._ranked if (gap := item.minus("best")) is not None and gap.high >= 0]

    @property
    def told_apart(self) -> float:
        """The median half width of the differences to the best."""
        gaps = [gap.half for item in self._ranked if (gap := item.minus("best")) is not None]
        return statistics.median(gaps) if gaps else math.nan

    @property
    def _ranked(self) -> list[Method]:
        return [item for item in self.methods.values() if self._is_ranked(item, self.pairs["target"])]

    def _is_ranked(self, item: Method, target: float | None) -> bool:
        return item.name != UNPRUNED and not is_reference(item.name) and affordable(item.average, target)

    @property
    def rival(self) -> Method | None:
        """The best method at no higher cost than entropyprune that is not of its kind."""
        kind = {*self.cell.plan["own"], *self.cell.plan["null_models"]}
        target = self.methods[OWN].average
        return next((i for i in self.methods.values() if i.name not in kind and self._is_ranked(i, target)), None)

    def minus(self, other: Method) -> Estimate:
        """The accuracy of entropyprune minus that of another method."""
        gap = other.minus(OWN)
        return Estimate.unknown() if gap is None else -gap


def percent(share: float) -> str:
    """A share in words of the page: 22.2, 5."""
    return f"{100 * share:.3g}"


def points(value: Estimate | None) -> str:
    """A difference in points."""
    return "" if value is None else value.written(signed=True)


def names(methods: Iterable[Method]) -> str:
    """Methods in a sentence."""
    return ", ".join(f"`{item.name}`" for item in methods)


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Field]]) -> list[str]:
    """A table in Markdown. Columns that say what a row is about, or name methods, are words; the others are numbers."""
    words = (
        "good",
        "equal",
        "report",
        "task",
        "method",
        "best",
        "random",
        "no better",
        "rival",
        "chose",
        "goal",
        "above",
        "below",
    )
    headings = [Heading(name, "text" if name.startswith(words) and "%" not in name else "number") for name in columns]
    filled = [Row(tuple(cell if isinstance(cell, Field) else Field(cell) for cell in row)) for row in rows]
    return [*markdown.lines(Table("", tuple(headings), tuple(filled))), ""]


def task_table(columns: Sequence[str], rows: Sequence[Sequence[str | Field]]) -> list[str]:
    """A table whose first column is the task; without it where all rows have the same."""
    first = 0 if len({row[0] for row in rows}) > 1 else 1
    return table(columns[first:], [row[first:] for row in rows])


def where(item: Result) -> list[str]:
    """The first two cells of a row about a cell of the page."""
    return [TASKS[item.cell.task], item.share]


@dataclass(frozen=True)
class Page:
    """The pages: all cells of the plan, and the results of those that are finished.

    Attributes:
        cells: All cells.
    """

    cells: Sequence[Cell]

    @cached_property
    def results(self) -> list[Result]:
        """The finished cells, task by task, the largest share first."""
        made = [Result(cell) for cell in self.cells if cell.finished]
        return sorted(made, key=lambda item: (list(TASKS).index(item.cell.task), -item.cell.share))

    def of(self, axis: str, tasks: Iterable[str] = TASKS) -> list[Result]:
        """The finished cells of an axis."""
        return [item for item in self.results if item.cell.axis == axis and item.cell.task in tasks]

    @property
    def missing(self) -> list[Cell]:
        """The cells that are not finished."""
        return [cell for cell in self.cells if not cell.finished]

    def texts(self) -> dict[str, str]:
        """The pages by their paths below docs/: the index, every task, the reports and their list."""
        tasks = {f"comparison/{task}.md": self.task(task) for task in TASKS if any(self.every(task))}
        reports = {f"reports/{item.cell.name}.md": report(item) for item in self.results}
        return {"comparison/index.md": self.index(), **tasks, "reports/index.md": self.reports(), **reports}

    def every(self, task: str) -> list[Result]:
        """The finished cells of a task."""
        return [item for item in self.results if item.cell.task == task]

    def index(self) -> str:
        """The page about all tasks."""
        parts = [HEAD, self._not_measured(), self._tasks()]
        if self.of("average"):
            parts += [WHICH, lines(in_short(self.of("average"))), READING, RANDOM, *self._random()]
        if any(OWN in item.methods for item in self.results):
            parts += [OWN_HEAD, *self._nine()]
        if self.results:
            parts += [*self._positions(), *self._measured()]
        return joined(parts)

    def task(self, task: str) -> str:
        """The page about one task."""
        first = self.every(task)[0]
        sizes = {name: first.pairs[name] for name in ("questions", "pictures")}
        parts = [TASK_HEAD.format(title=TASKS[task], what="clips" if task in CLIPS else "pictures", **sizes)]
        found = self.of("average", [task])
        if found:
            parts += [DETAIL, lines(self._best(found))]
        parts += [METHODS, *self._methods(task)]
        if any(OWN in item.methods for item in self.every(task)):
            parts += [OWN_TASK, *self._own(task)]
        return joined(parts)

    def _tasks(self) -> str:
        links = [f"[{title}]({task}.md)" for task, title in TASKS.items() if self.every(task)]
        return f"A page per task has every method, with intervals: {', '.join(links)}.\n" if links else ""

    def _not_measured(self) -> str:
        if not self.missing:
            return ""
        if not self.results:
            return f"**Not measured yet: all {len(self.cells)} cells.**\n"
        missing = ", ".join(f"`{cell.name}`" for cell in self.missing)
        return f"**Not measured yet:** {missing} (the task, what is equal, and the share of the tokens in %).\n"

    # ---- which method ---------------------------------------------------------------------------------------------

    @staticmethod
    def _best(found: Sequence[Result]) -> list[str]:
        columns = ["task", "tokens %", "unpruned %", "best", "its %", "% of unpruned", "as good"]
        columns += ["told apart, points", "random, its %", "smaller pictures %"]
        rows = []
        for item in found:
            best = item.methods.get(item.pairs["best"] or "")
            chance = first_random(item)
            smaller = item.methods.get(DOWNSAMPLED)
            rows.append(
                [
                    *where(item),
                    str(item.unpruned.accuracy),
                    names([best]) if best else "",
                    str(best.accuracy) if best else "",
                    f"{100 * best.kept:.1f}" if best else "",
                    str(len(item.equals)),
                    "" if math.isnan(item.told_apart) else f"{100 * item.told_apart:.1f}",
                    str(chance.accuracy) if chance else "",
                    str(smaller.accuracy) if smaller else "",
                ]
            )
        equals = [f"- at {item.share} %: {names(item.equals) or 'none'}" for item in found]
        return [*task_table(columns, rows), "Not distinguishable from the best:", "", *equals, ""]

    def _random(self) -> Iterator[str]:
        rows, dear = [], []
        for item in self.of("average"):
            others = [one for one in item.methods.values() if one.name != ORACLE and one.minus("random") is not None]
            gains = [(gain, one) for one in others if (gain := item.over_random(one)) is not None]
            lost = sorted(((gain, one) for gain, one in gains if gain.high < 0), key=lambda pair: pair[0].mean)
            words = ", ".join(f"**`{one.name}`** {points(gain)}" for gain, one in lost)
            even = names(one for gain, one in gains if gain.low <= 0 <= gain.high)
            rows.append([*where(item), words or "none", even or "none"])
            apart = names(one for one in others if item.over_random(one) is None)
            dear += [f"{TASKS[item.cell.task]} at {item.share} %: {apart}"] if apart else []
        yield lines(table(["task", "tokens %", "random wins against", "no better than random"], rows))
        yield f"Not compared, as no random choice costs the same: {'; '.join(dear)}.\n" if dear else ""

    # ---- EntropyPrune ---------------------------------------------------------------------------------------------

    def _nine(self) -> Iterator[str]:
        nine = [item for item in self.results if OWN in item.methods and is_of_nine(item)]
        if nine:
            yield "### The nine cells\n"
            yield verdict(nine)
            yield lines(own_table(nine))

    def _own(self, task: str) -> Iterator[str]:
        found = [item for item in self.every(task) if OWN in item.methods]
        for axis, title in AXES.items():
            of_axis = [item for item in found if item.cell.axis == axis]
            if of_axis:
                yield f"### EntropyPrune at equal {title}\n"
                yield lines(own_table(of_axis))
        yield PROMISED
        yield lines(promises(found))
        yield NULL
        yield lines(null_models([item for item in found if item.cell.axis == "average"]))

    # ---- every method ---------------------------------------------------------------------------------------------

    def _methods(self, task: str) -> Iterator[str]:
        for axis, name, words, cell in (
            ("average", "Equal layer averages", AVERAGES, accuracy_cell),
            ("kept", "Equal kept tokens", KEPT_TOKENS, kept_cell),
            ("average", "Hard questions", HARD, hard_cell),
        ):
            found = self.of(axis, [task])
            rows = list(method_rows(found, cell))
            if rows:
                yield f"### {name}\n"
                yield words + "\n"
                yield lines(table(["method", *(f"{item.share} %" for item in found)], rows))
                yield unable(found) if cell is not hard_cell else ""

    def _positions(self) -> Iterator[str]:
        found = self.of(POSITIONS)
        if not found:
            return
        yield POSITIONS_HEAD.format(share=found[0].share)
        names = sorted({name for item in found for name in item.methods if f"{name}{RENUMBERED}" in item.methods})
        rows: list[list[str | Field]] = [[name, *(positions_cell(item, name) for item in found)] for name in names]
        yield lines(table(["method", *(f"{TASKS[item.cell.task]} %" for item in found)], rows))
        yield unable(found)

    def _measured(self) -> Iterator[str]:
        yield "## How it was measured\n"
        plan = self.cells[0].plan
        settings = plan["settings"]
        machines = dict.fromkeys(
            f"tokenprune {found['tokenprune']}, torch {found['torch']}, transformers {found['transformers']},"
            f" {found['device']}"
            for found in (item.read("environment.json") for item in self.results)
        )
        tasks = dict.fromkeys(item.cell.task for item in self.results)
        yield lines(
            [
                *(about_task(TASKS[task], plan["tasks"][task]) for task in tasks),
                f"- Answers have at most {settings['max_new_tokens']} tokens; batches have {settings['batch_size']}"
                f" questions. Verifications have {settings['calibration']} samples that the model was not trained on.",
                f"- Versions and machine: {'; '.join(machines)}.",
                "- Published layers of deeper towers are scaled to the six layers of ours (`benchmarks/tables.yaml`).",
                "- For methods for pictures, a clip is eight pictures, each with its own share.",
                "",
            ]
        )
        yield (
            "[The report of every cell](../reports/index.md) has all columns: costs, chosen layers and accuracy per"
            " question type.\n"
        )

    def reports(self) -> str:
        """The list of the reports."""
        columns = ["task", "tokens %", "equal", "questions", "pictures or clips", "report"]
        rows = (
            [
                *where(item),
                AXES[item.cell.axis],
                str(item.pairs["questions"]),
                str(item.pairs["pictures"]),
                f"[{item.cell.name}]({item.cell.name}.md)",
            ]
            for item in self.results
        )
        found = [lines(table(columns, rows))] if self.results else ["No cell has been measured yet.\n"]
        return joined([REPORTS, *found])


def report(item: Result) -> str:
    """The page with the report of a cell."""
    path = (item.cell.folder / "report.md").relative_to(ROOT)
    return joined(
        [REPORT.format(task=TASKS[item.cell.task], share=item.share, equal=TITLES[item.cell.axis], path=path)]
    )


def joined(parts: Iterable[str]) -> str:
    """Parts of a page, with one empty line between them."""
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def is_of_nine(item: Result) -> bool:
    """Whether a cell is one of the nine with goals."""
    return item.cell.axis == "average" and item.share in NINE


def about_task(title: str, about: Mapping[str, Any]) -> str:
    """The line about a task of the plan."""
    model, task = about["model"], about["task"]
    return (
        f"- {title}: the embedded model `{model['name']}` in {model['dtype']}, {task['questions']} questions of the"
        f" split `{task['split']}` of the task `{task['name']}`."
    )


def lines(rows: Iterable[str]) -> str:
    """Lines of a part of the page."""
    return "\n".join(rows)


def first_random(item: Result) -> Method | None:
    """The random choice before the language model."""
    return item.methods.get("random-layer-0")


def in_short(found: Sequence[Result]) -> list[str]:
    """A row per share: what is best or not distinguishable from the best, for pictures, for clips, and for both."""
    rows = []
    for share in sorted({item.share for item in found}, key=float, reverse=True):
        same = [item for item in found if item.share == share]
        groups = [[item for item in same if item.cell.task in tasks] for tasks in (PICTURES, CLIPS, tuple(TASKS))]
        wanted = (len(PICTURES), len(CLIPS), len(TASKS))
        cells = (good(group) if len(group) == count else "" for group, count in zip(groups, wanted, strict=True))
        rows.append([share, *cells])
    return table(["tokens %", "good on both tasks with pictures", "good on clips", "good on all three tasks"], rows)


def good(found: Sequence[Result]) -> str:
    """The methods that are the best, or not distinguishable from the best, in all of some cells."""
    sets = [{item.pairs["best"], *(one.name for one in item.equals)} for item in found]
    return names(one for one in found[0].methods.values() if all(one.name in names for names in sets)) or "none"


def verdict(nine: Sequence[Result]) -> str:
    """The goals in one sentence each."""
    above = sum(is_above(item) for item in nine)
    below = sum(is_below(item) for item in nine)
    aims = [(item, GOALS[item.cell.task, item.share]) for item in nine if (item.cell.task, item.share) in GOALS]
    met = sum(item.methods[OWN].kept >= goal for item, goal in aims)
    few = "" if len(nine) == 9 else f" Only {len(nine)} of the nine cells have been measured."
    return (
        f"Above random at equal cost beyond the interval: {above} of {len(nine)}. Not below the best rival beyond the"
        f" interval: {len(nine) - below} of {len(nine)}. Goals for the share of the unpruned accuracy (96 % at 22.2 %"
        f" of the tokens on digits and easy-VQA, 92 % at 33.3 % on clips): {met} of {len(aims)} met.{few}\n"
    )


def is_above(item: Result) -> bool:
    """Whether entropyprune is above random at equal cost, beyond the interval."""
    gain = item.over_random(item.methods[OWN])
    return gain is not None and gain.low > 0


def is_below(item: Result) -> bool:
    """Whether entropyprune is below the best rival, beyond the interval."""
    return item.rival is not None and item.minus(item.rival).high < 0


def own_table(found: Sequence[Result]) -> list[str]:
    """Entropyprune in some cells, with a verdict for each."""
    columns = ["task", "tokens %", "layer average %", "unpruned %", "accuracy %", "% of unpruned", "minus random"]
    columns += ["minus rival", "rival", "rival's %", "above random", "below the rival", "goal"]
    rows: list[list[str | Field]] = []
    for item in found:
        own, rival = item.methods[OWN], item.rival
        gain = item.over_random(own)
        goal = GOALS.get((item.cell.task, item.share)) if item.cell.axis == "average" else None
        met = goal is not None and own.kept >= goal
        rows.append(
            [
                *where(item),
                f"{cost_of(item, own):.1f}",
                str(item.unpruned.accuracy),
                str(own.accuracy),
                f"{100 * own.kept:.1f}",
                points(gain) if gain else "no random choice at this cost",
                points(item.minus(rival)) if rival else "",
                names([rival]) if rival else "",
                str(rival.accuracy) if rival else "",
                Field(
                    "" if gain is None else "yes" if is_above(item) else "no",
                    strong=gain is not None and not is_above(item),
                ),
                Field("" if rival is None else "yes" if is_below(item) else "no", strong=is_below(item)),
                Field(
                    "" if goal is None else f"{100 * goal:.0f} %: {'met' if met else 'missed'}",
                    strong=goal is not None and not met,
                ),
            ]
        )
    filled = [at for at in range(len(columns)) if any(row[at] not in ("", Field("")) for row in rows)]
    return task_table([columns[at] for at in filled], [[row[at] for at in filled] for row in rows])


def promises(found: Sequence[Result]) -> list[str]:
    """What the verification of entropyprune promised in each cell, and what it kept."""
    rows = []
    for item in found:
        own = item.methods[OWN]
        for key, choice in item.choices.items():
            if key.split(" / ")[0] != OWN or "promise" not in choice:
                continue
            promise = choice["promise"]
            corrected = estimate({"mean": promise["corrected"], **{end: promise[end] for end in ("low", "high")}})
            rows.append(
                [
                    *where(item),
                    AXES[item.cell.axis],
                    f"{100 * promise['agreement']:.1f}",
                    str(corrected),
                    str(own.estimate("agreement") or ""),
                    str(promise["candidates"]),
                    str(promise["samples"]),
                    chosen(choice),
                ]
            )
    columns = ["task", "tokens %", "equal", "promised %", "corrected %", "kept %", "candidates", "samples", "chose"]
    return task_table(columns, rows)


def chosen(choice: Mapping[str, Any]) -> str:
    """What a verification chose, from the words of its reason."""
    words = choice["reason"].partition("verified without labels: ")[2].partition(" agrees with")[0]
    return words or "before layer " + ", ".join(map(str, choice["layers"]))


def null_models(found: Sequence[Result]) -> list[str]:
    """Entropyprune beside its null models."""
    models = (
        [name for name in found[0].cell.plan["null_models"] if any(name in item.methods for item in found)]
        if found
        else []
    )
    rows: list[list[str | Field]] = []
    for item in found:
        row: list[str | Field] = [*where(item), str(item.methods[OWN].accuracy)]
        for name in models:
            other = item.methods.get(name)
            gap = item.minus(other) if other else Estimate.unknown()
            row.append(Field(f"{other.accuracy} ({points(gap)})" if other else "", strong=gap.low <= 0))
        chance = item.methods[OWN].pairs.get("random")
        rows.append([*row, str(item.methods[chance["name"]].accuracy) if chance else ""])
    return task_table(["task", "tokens %", f"`{OWN}` %", *(f"`{name}` %" for name in models), "random, its %"], rows)


# ---- cells of the tables of all methods ------------------------------------------------------------------------------


def accuracy_cell(item: Result, method: Method) -> Field:
    """The accuracy, in bold where random wins; with the layer average of a method that costs more or less."""
    cost = f" ({cost_of(item, method):.1f})"
    equal = method.name == UNPRUNED or same_cost(method.average, item.pairs["target"])
    return Field(f"{method.accuracy}{'' if equal else cost}", strong=item.random_wins(method))


def cost_of(item: Result, method: Method) -> float:
    """The layer average in % of the visual tokens."""
    return 100 * method.average / item.unpruned.average


def kept_cell(item: Result, method: Method) -> Field:
    """The accuracy with the layer average that it costs."""
    return Field(f"{method.accuracy} ({cost_of(item, method):.1f})", strong=item.random_wins(method))


def positions_cell(item: Result, name: str) -> Field:
    """The accuracy with original positions, and what renumbered ones change."""
    if name not in item.methods:
        return Field("")
    gap = item.methods[f"{name}{RENUMBERED}"].minus("original")
    return Field(f"{item.methods[name].accuracy} ({points(gap)})", strong=gap is not None and gap.low > 0)


def hard_cell(item: Result, method: Method) -> Field:
    """The accuracy on the hard questions; their number for smaller pictures, which answer none of them."""
    count = method.data.get("hard_count")
    if method.name == DOWNSAMPLED:
        return Field("" if count is None else f"{count} questions")
    hard = method.estimate("hard")
    return Field("" if hard is None else str(hard))


def method_rows(found: Sequence[Result], cell: Callable[[Result, Method], Field]) -> Iterator[list[str | Field]]:
    """A row per method, the best first: by the sum over the shares, where a missing one counts nothing."""
    scores: dict[str, list[float]] = {}
    for item in found:
        for one in item.methods.values():
            shown = one.estimate("hard") if cell is hard_cell else one.accuracy
            scores.setdefault(one.name, []).append(shown.mean if shown else 0.0)
    for name in sorted(scores, key=lambda name: (name != UNPRUNED, -sum(scores[name]), name)):
        row = [cell(item, item.methods[name]) if name in item.methods else Field("") for item in found]
        if any(field.text for field in row):
            yield [linked(name), *row]


def linked(name: str) -> str:
    """A method of a row, with a link to its page; a reference in italics."""
    if is_reference(name):
        return f"*{name}*"
    return f"[{name}](../methods/{name}.md)" if name in method_names() else name


def reason(why: str) -> str:
    """Why a method cannot meet a budget, without the number of tokens, which the share already says."""
    return re.sub(r"^a layer average of [\d.]+ tokens cannot be met: ", "", " ".join(why.split()))


def unable(found: Sequence[Result]) -> str:
    """Which methods cannot meet a budget, and why: those with the same reason in one line."""
    shares: dict[tuple[str, str], list[str]] = {}
    for item in found:
        for name, why in item.read("cannot.json").items():
            shares.setdefault((reason(why), name), []).append(f"{item.share} %")
    same: dict[tuple[str, str], list[str]] = {}
    for (why, name), at in sorted(shares.items(), key=lambda pair: pair[0][1]):
        same.setdefault((", ".join(dict.fromkeys(at)), why), []).append(f"`{name}`")
    words = [f"- {', '.join(methods)} at {at}: {why}" for (at, why), methods in same.items()]
    return "\n".join(["Left out, as they cannot meet the budget:", "", *words, ""]) if words else ""


def main() -> None:
    """Write the pages, and remove those of tasks and cells that are gone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    folder = parser.parse_args().output
    texts = Page(cells(yaml.safe_load(PLAN.read_text(encoding="utf-8")))).texts()
    for part in ("comparison", "reports"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for old in (folder / part).glob("*.md"):
            if f"{part}/{old.name}" not in texts:
                old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
