"""The files of a finished tune: the chosen method, the tables, a line per candidate."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import yaml

from tokenprune.budgets.label import in_words
from tokenprune.methods.named import method_names, shipped_method
from tokenprune.output.lines import Row
from tokenprune.tables.markdown import lines
from tokenprune.tuning.ranking import Ranking
from tokenprune.tuning.sentences import LOSSES, capital, copies_sentence, no_winner, quality, race_sentences, sentence
from tokenprune.tuning.setup import TuneSetup
from tokenprune.tuning.tables import further_tables, ranking_table
from tokenprune.version import __version__

#: The file with a line per candidate, and the file with what was tuned.
ROWS, SETUP = "tune.jsonl", "run.json"


def file_names(budgets: Sequence[str]) -> list[str]:
    """The file of each budget's method: ``tuned.yaml``, or one name per budget if there are several."""
    if len(budgets) == 1:
        return ["tuned.yaml"]
    return [f"tuned-{budget.replace(' ', '-')}.yaml" for budget in budgets]


def method_file(ranking: Ranking, setup: TuneSetup) -> str:
    """The best candidate's method as YAML, in the form in which named methods are shipped."""
    best = ranking.best
    labels = "with their answers" if setup.goal == "score" else "without labels"
    noise = len(ranking.within_noise)
    ran = f"{len(ranking.ranked)} candidates of equal cost ({in_words(ranking.budget)})"
    description = (
        f"{best.name}, chosen by tokenprune {__version__} tune among {ran} for {setup.model} on {ranking.samples}"
        f" samples of {setup.data}, {labels}, by the {LOSSES[setup.goal][0]}: {quality(best)}; {noise} other"
        f" candidates are within the noise." + (f" {capital(no_winner(ranking))}." if ranking.undecided else "")
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


def report(rankings: Sequence[Ranking], setup: TuneSetup, skipped: Mapping[str, str]) -> str:
    """Write the report in Markdown."""
    out = [f"# Methods for {setup.model}", "", *race_sentences(rankings, setup)]
    out += copies_sentence(rankings[0].samples, setup.copies)
    for ranking in rankings:
        text = capital(sentence(ranking, setup.goal))
        out += [
            "",
            f"## {capital(in_words(ranking.budget))}",
            "",
            text,
            "",
            *lines(ranking_table([ranking], setup.goal)),
        ]
    for table in further_tables(rankings, setup.goal):
        out += ["", f"## {table.title}", "", *([table.note, ""] if table.note else []), *lines(table)]
    if skipped:
        out += ["", "Samples that could not be used:", "", *(f"- `{name}`: {why}" for name, why in skipped.items())]
    return "\n".join(out) + "\n"
