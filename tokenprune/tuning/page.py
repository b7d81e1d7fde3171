"""The page of a tune: the best candidates of each budget, their losses with intervals, and what they cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenprune.budgets.label import in_words
from tokenprune.engine.trials.race import Goal
from tokenprune.output.folder import CONFIG, OutputFolder
from tokenprune.report.page import Document, Finding, Page
from tokenprune.tuning.plot import aliases, charts_of
from tokenprune.tuning.ranking import Ranking
from tokenprune.tuning.sentences import capital, copies_sentence, race_sentences, sentence
from tokenprune.tuning.setup import TuneSetup
from tokenprune.tuning.tables import further_tables, ranking_table
from tokenprune.version import __version__

#: Candidates that the charts show of each budget, beside the best random one.
SHOWN = 15
#: Losses that differ by more than this factor are drawn on a logarithmic axis.
WIDE = 20.0


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
