"""The page of a tune: all candidates in the table, the best in the charts, and the sentence of the ranking."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tuning.planted import BUDGET, Place, method, planted
from tests.tuning.test_ranking import GOOD, NOISE, chance, measured, ranking
from tokenprune import tune
from tokenprune.budgets.label import in_words
from tokenprune.report.html import render
from tokenprune.tuning.report import SHOWN, tune_page
from tokenprune.tuning.result import TuneResult
from tokenprune.tuning.tables import ranking_table


@pytest.fixture(scope="module")
def result() -> TuneResult:
    model, samples = planted(16)
    candidates = [method(Place(keep="matter"), "planted"), method(Place(), "opposite"), "visionzip"]
    budgets = [BUDGET, {"name": "layer_average", "tokens": 6}]
    one, other = (tune(model, samples, budget, [*candidates, "oracle"]) for budget in budgets)
    return replace(one, rankings=(*one.rankings, *other.rankings))


def test_every_candidate_is_in_the_table(result: TuneResult) -> None:
    page = tune_page(result.rankings, result.setup, {})
    rows = [row for ranking in result.rankings for row in ranking.ranked]
    assert [(row.method, row.budget) for row in page.table.rows] == [(row.name, row.budget) for row in rows]
    loss = [column.title for column in page.table.columns].index("loss")
    assert [row.cells[loss].value for row in page.table.rows] == [row.loss.mean for row in rows]
    assert all(len(row.cells) == len(page.table.columns) for row in page.table.rows)
    refused = next(table for table in page.tables if table.title == "Candidates that cannot run")
    assert {row.cells[0].text for row in refused.rows} == {"oracle: layer 1"}


def test_candidates_are_sorted_by_the_samples_that_they_saw() -> None:
    """Also those that left early, whose cell has words."""
    early = ranking(GOOD, measured("dart", 0.8 + NOISE[:8], left=8), chance(0.9 + NOISE))
    table = ranking_table([early], "divergence")
    place = [column.title for column in table.columns].index("samples")
    found = {row.method: row.cells[place] for row in table.rows}
    assert table.columns[place].kind == "number"
    assert (found["dart"].text, found["dart"].value) == ("left after 8", 8)
    assert (found["good"].text, found["good"].value) == (str(len(NOISE)), len(NOISE))


def test_the_finding_is_the_sentence_of_the_ranking(result: TuneResult) -> None:
    page = tune_page(result.rankings, result.setup, {})
    assert page.finding.tone == "better"
    assert page.finding.text.startswith("50 % of the tokens, layer average: The best is `planted` (agreement 100.0 %")
    assert page.finding.text.endswith("Random is beaten beyond the noise with 2 of 2 budgets.")
    alone = tune_page(result.rankings[:1], result.setup, {})
    assert alone.finding.text == f"The best is `planted`{result.sentence.splitlines()[0].partition('planted')[2]}"


def test_nothing_that_beats_random_is_no_success() -> None:
    model, samples = planted(16)
    found = tune(
        model, samples, BUDGET, [method({"name": "random", "seed": seed}, f"chance {seed}") for seed in (1, 2)]
    )
    finding = tune_page(found.rankings, found.setup, {}).finding
    assert finding.tone in ("worse", "open")
    assert finding.text.startswith("Nothing beats random at equal cost: ")


def test_charts_show_the_best_and_random(result: TuneResult) -> None:
    charts = tune_page(result.rankings, result.setup, {}).charts
    assert charts is not None
    random = {row.name for ranking in result.rankings for row in ranking.ranked if row.random}
    assert random
    style_of = {alias.name: alias.method for alias in tune_page(result.rankings, result.setup, {}).style_of}
    assert {name for name, method in style_of.items() if method == "random"} == random  # which is drawn in grey
    for one in result.rankings:
        names = [point.method for point in charts.points if point.budget == in_words(one.budget)]
        assert names[0] == one.best.name
        assert len(names) <= SHOWN + 1
        assert one.random is None or one.random.name in names
    assert {point.method for point in charts.front} <= {row.name for row in result.front}
    assert all(point.low <= point.mean <= point.high for point in charts.points)


def test_it_is_drawn_with_samples_that_could_not_be_used(result: TuneResult) -> None:
    html = render(tune_page(result.rankings, result.setup, {"s<1>": "its picture is broken"}))
    assert "The sample <code>s&lt;1&gt;</code> could not be used: its picture is broken." in html
    assert html.count('class="chart"') == 3  # a ranking per budget, and loss against cost
