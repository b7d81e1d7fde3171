"""What a finished tune writes: the chosen method, a line per candidate, and the report as text, page and picture."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from tokenprune.budgets.label import in_words
from tokenprune.drawing import ranking as chart
from tokenprune.drawing.against import AVERAGE
from tokenprune.drawing.palette import StyleAlias, styles
from tokenprune.drawing.points import Charts, Point
from tokenprune.drawing.vega import Json, save
from tokenprune.engine.trials.race import Goal
from tokenprune.methods.named import method_names, shipped_method
from tokenprune.output.folder import CONFIG, OutputFolder
from tokenprune.output.lines import Row
from tokenprune.report.page import Document, Finding, Page
from tokenprune.tables.markdown import lines
from tokenprune.tuning.ranking import Ranked, Ranking, pareto_front
from tokenprune.tuning.sentences import (
    LOSSES,
    capital,
    copies_sentence,
    method_of,
    no_winner,
    quality,
    race_sentences,
    sentence,
)
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


#: Candidates that the charts show of each budget, beside the best random one.
SHOWN = 15
#: Losses that differ by more than this factor are drawn on a logarithmic axis.
WIDE = 20.0


def charts_of(rankings: Sequence[Ranking], goal: Goal) -> Charts:
    """Make charts of the best candidates; the best of each budget has a band.

    Args:
        rankings: The rankings.
        goal: What the tune makes small.
    """
    _, factor, unit = LOSSES[goal]
    points = {id(row): _point(row, factor) for ranking in rankings for row in shown(ranking)}
    means = [point.mean for point in points.values()]
    front = pareto_front([row for ranking in rankings for row in ranking.ranked])
    return Charts(
        quantity=f"loss, {unit}",
        points=tuple(points.values()),
        kinds=(chart.Ranking(), AVERAGE),
        references=tuple(points[id(ranking.best)] for ranking in rankings),
        front=tuple(points[id(row)] for row in front if id(row) in points),
        log=min(means) > 0 and max(means) > WIDE * min(means),
        bounds=(0.0, 100.0 if goal in ("agreement", "score") else None),
    )


def _point(row: Ranked, factor: float) -> Point:
    low, high = row.loss.drawn
    return Point(
        method=row.name,
        budget=in_words(row.budget),
        mean=factor * row.loss.mean,
        low=factor * max(low, 0.0),
        high=factor * high,
        average=row.average,
        flops_reduction=1 - row.flops,
        role="random" if row.random else "method",
        hollow=row.left is not None,
        strong=row.tied,
    )


def aliases(rankings: Sequence[Ranking]) -> tuple[StyleAlias, ...]:
    """The candidates' styles: a variant has that of its method."""
    return tuple(dict.fromkeys(StyleAlias(row.name, method_of(row)) for ranking in rankings for row in ranking.ranked))


def tune_plot(rankings: Sequence[Ranking], goal: Goal, path: Path) -> list[Path]:
    """Draw a tune into files.

    Args:
        rankings: The rankings.
        goal: What the tune makes small.
        path: The PNG file to write; SVG and PDF are written beside it.

    Returns:
        The paths of the files.
    """
    return save(tune_figure(rankings, goal), path)


def tune_figure(rankings: Sequence[Ranking], goal: Goal) -> Json:
    """Draw the losses of the best candidates with their intervals, a panel per budget, the best on top.

    Args:
        rankings: The rankings.
        goal: What the tune makes small.
    """
    charts = charts_of(rankings, goal)
    titles = {
        words: f"{words}, {ranking.samples} samples" for ranking in rankings for words in [in_words(ranking.budget)]
    }
    loss = f"{'100 % minus the ' if goal in ('agreement', 'score') else ''}{LOSSES[goal][0]}"
    notes = [
        f"Loss: {loss}; less is better. Bars: 95 % intervals; band: that of the best; dotted: random.",
        "Hollow: left the race early. Bold: within the noise of the best. Cost: visual tokens, mean over the decoder's"
        " layers.",
    ]
    style = styles(charts.methods, aliases(rankings))
    return chart.Ranking().figure(charts, style, notes, columns=1, titles=titles)


def shown(ranking: Ranking) -> list[Ranked]:
    """The first candidates of a ranking, and the best random one below them."""
    first = list(ranking.ranked[:SHOWN])
    chance = ranking.random
    return first if chance is None or chance in first else [*first, chance]


def tune_page(
    rankings: Sequence[Ranking], setup: TuneSetup, skipped: Mapping[str, str], folder: Path | None = None
) -> Page:
    """The page of a finished tune.

    Args:
        rankings: The ranking of each budget.
        setup: What was tuned, and on what.
        skipped: Id of every sample that could not be used -> why.
        folder: Folder of the tune; its ``config.yaml`` says what ran. None for none.
    """
    config = "" if folder is None else OutputFolder(folder).read_text(CONFIG)
    return Page(
        title=f"Methods for {setup.model}",
        ran=race_sentences(rankings, setup),
        finding=_finding(rankings, setup.goal),
        table=ranking_table(rankings, setup.goal),
        notes=(
            *copies_sentence(rankings[0].samples, setup.copies),
            *(f"The sample `{name}` could not be used: {why}." for name, why in skipped.items()),
        ),
        charts=charts_of(rankings, setup.goal),
        tables=tuple(further_tables(rankings, setup.goal)),
        documents=(Document("Configuration (config.yaml)", config),) if config else (),
        versions=(("tokenprune", __version__),),
        style_of=aliases(rankings),
        repeat=("tokenprune tune config.yaml --output repeated",) if config else (),
    )


def _finding(rankings: Sequence[Ranking], goal: Goal) -> Finding:
    """The sentence of the only budget, or of the first at which random is beaten, and how many those are."""
    beaten = [ranking for ranking in rankings if ranking.beats_random]
    top = (beaten or list(rankings))[0]
    text = sentence(top, goal)
    name = top.best.name
    text = f"The best is `{name}`{text[len(name) :]}" if text.startswith(name) else capital(text)
    if len(rankings) > 1:
        count = f"{len(beaten)} of {len(rankings)} budgets"
        text = f"{capital(in_words(top.budget))}: {text} Random is beaten beyond the noise with {count}."
    return Finding(text, "better" if beaten else "worse" if top.best.random else "open")
