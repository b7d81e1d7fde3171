"""The files of a finished tune: the chosen method, the tables, a line per candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import yaml

from tokenprune.engine.trials.race import Goal
from tokenprune.files.lines import Row
from tokenprune.methods.named import method_names, shipped_method
from tokenprune.tuning import table
from tokenprune.tuning.ranking import Ranked, Ranking, pareto_front
from tokenprune.tuning.words import LOSSES, copies_sentence, no_winner, quality, sentence
from tokenprune.version import __version__

#: The file with a line per candidate, and the file with what was tuned.
ROWS, FACTS = "tune.jsonl", "run.json"


@dataclass(frozen=True)
class Facts:
    """What was tuned, and on what.

    Attributes:
        model: The model, in words.
        data: The samples, in words.
        goal: What was made small.
        tokens: Answer tokens that were compared.
        error: Probability that a race drops its best candidate.
        seconds: How long the measurements of this call took; what an earlier call measured is not in it.
        copies: How many of the given samples are copies of others, which do not count.
    """

    model: str
    data: str
    goal: Goal
    tokens: int = 1
    error: float = 0.05
    seconds: float = 0.0
    copies: int = 0


def file_names(budgets: Sequence[str]) -> list[str]:
    """The file of each budget's method: ``tuned.yaml``, or one name per budget if there are several."""
    if len(budgets) == 1:
        return ["tuned.yaml"]
    return [f"tuned-{budget.replace(' ', '-')}.yaml" for budget in budgets]


def method_file(ranking: Ranking, facts: Facts) -> str:
    """The best candidate's method as YAML, in the form in which named methods are shipped."""
    best = ranking.best
    labels = "with their answers" if facts.goal == "score" else "without labels"
    noise = len(ranking.within_noise)
    ran = f"{len(ranking.ranked)} candidates of equal cost ({ranking.budget})"
    description = (
        f"{best.name}, chosen by tokenprune {__version__} tune among {ran} for {facts.model} on {ranking.samples}"
        f" samples of {facts.data}, {labels}, by the {LOSSES[facts.goal][0]}: {quality(best)}; {noise} other"
        f" candidates are within the noise." + (f" {_capital(no_winner(ranking))}." if ranking.undecided else "")
    )
    data: dict[str, object] = {"description": description}
    name = best.name.partition(":")[0]  # variants are called METHOD: what differs
    if name in method_names() and shipped_method(name).paper:
        data["paper"] = shipped_method(name).paper
    data["method"] = best.method.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(data, sort_keys=False, width=120, allow_unicode=True)


def rows(rankings: Sequence[Ranking]) -> Iterator[Row]:
    """A line per budget and candidate, JSON-ready: what it is, its numbers, and those of every sample."""
    for ranking in rankings:
        for place, row in enumerate(ranking.ranked, 1):
            intervals = {name: asdict(getattr(row, name)) for name in ("loss", "agreement", "divergence", "difference")}
            yield {
                "budget": ranking.budget,
                "place": place,
                "candidate": row.name,
                "origin": row.origin,
                "method": row.method.model_dump(mode="json", exclude_none=True),
                **intervals,
                "seen": row.seen,
                "left": row.left,
                "average": row.average,
                "flops": row.flops,
                "random": row.random,
                "tied": row.tied,
                "samples": {**row.samples.to_lists(), "loss": row.losses.tolist()},
            }
        for name, reason in ranking.refused.items():
            yield {"budget": ranking.budget, "candidate": name, "refused": reason}


def report(rankings: Sequence[Ranking], facts: Facts, skipped: Mapping[str, str]) -> str:
    """The report in Markdown."""
    lines = [f"# Methods for {facts.model}", ""]
    lines += [f"{text}" for text in _how(rankings, facts)]
    for ranking in rankings:
        lines += ["", f"## {ranking.budget}", "", _capital(sentence(ranking, facts.goal)), ""]
        lines += markdown_table(ranking.ranked, facts.goal)
        if ranking.refused:
            lines += ["", "Cannot run:", "", *(f"- `{name}`: {why}" for name, why in ranking.refused.items())]
    front = pareto_front([row for ranking in rankings for row in ranking.ranked])
    lines += ["", "## Cost against fidelity", "", "No other candidate is both cheaper and closer:", ""]
    lines += [f"- {row.average:.1f} visual tokens per layer: `{row.name}` ({quality(row)})" for row in front]
    if skipped:
        lines += ["", "Samples that could not be used:", "", *(f"- `{name}`: {why}" for name, why in skipped.items())]
    return "\n".join(lines) + "\n"


def _how(rankings: Sequence[Ranking], facts: Facts) -> list[str]:
    name, _, unit = LOSSES[facts.goal]
    answer = "first answer token" if facts.tokens == 1 else f"first {facts.tokens} answer tokens"
    compared = "scored by the task" if facts.goal == "score" else f"compared on the {answer}, without labels"
    return [
        f"{rankings[0].samples} samples of {facts.data}, {compared}. The loss is the {name} (in {unit};"
        " agreement and score are subtracted from 100 %). Intervals: bootstrap over the samples, 95 %. Differences are"
        f" paired by sample. Candidates that were clearly worse left the race early; it drops the best one with a"
        f" probability of at most about {facts.error:g}.",
        *copies_sentence(rankings[0].samples, facts.copies),
    ]


def markdown_table(ranked: Sequence[Ranked], goal: Goal) -> list[str]:
    """The ranked table in Markdown, line by line."""
    lines = [f"| {' | '.join(table.COLUMNS)} |", f"|{'---|' * len(table.COLUMNS)}"]
    return [*lines, *(f"| {' | '.join(table.cells(row, goal))} |" for row in ranked)]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
