"""The tables of an experiment, as columns; every report, file and terminal shows these."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tokenprune.core.references import DOWNSAMPLED, UNPRUNED
from tokenprune.experiment.report_data import OTHER_COST, ChosenLayers, Gain, Promised, ReportData
from tokenprune.experiment.summary import SeriesSummary
from tokenprune.tables.column import Column, estimate, fill, number, text
from tokenprune.tables.table import Cell, Table


def _is_unpruned(item: SeriesSummary) -> bool:
    return item.method == UNPRUNED


def _is_downsampled(item: SeriesSummary) -> bool:
    return item.method == DOWNSAMPLED


def _name(item: SeriesSummary) -> str:
    return item.method + (f" ({item.seeds} seeds)" if item.seeds > 1 else "")


def _time(item: SeriesSummary) -> Cell:
    if math.isnan(item.time_ratio) or _is_unpruned(item):
        return Cell("" if math.isnan(item.time_ratio) else "1", item.time_ratio)
    low, high = item.time_spread
    spread = "" if math.isnan(low) else f" ({low:.2f}-{high:.2f})"
    return Cell(f"x {item.time_ratio:.2f}{spread}", item.time_ratio)


METHOD: Column[SeriesSummary] = text("method", lambda item: item.method, csv="method")
BUDGET: Column[SeriesSummary] = text("budget", lambda item: item.budget, csv="budget")
ACCURACY: Column[SeriesSummary] = estimate(
    "accuracy %", lambda item: item.accuracy, csv=("accuracy", "percent"), paper=True
)
SHARE: Column[SeriesSummary] = number(
    "% of unpruned", lambda item: 100 * item.kept, unknown="unknown", csv="share_of_unpruned_percent"
).ranked(5)
#: The columns of the main table.
COLUMNS: tuple[Column[SeriesSummary], ...] = (
    replace(METHOD, cell=lambda item: Cell(_name(item))),
    BUDGET,
    ACCURACY.hidden(lambda item: item.label_free),
    replace(ACCURACY, title="agreement %").hidden(lambda item: not item.label_free),
    SHARE,
    estimate("minus unpruned", lambda item: item.gain, signed=True, csv=("minus_unpruned", "points"))
    .hidden(_is_unpruned)
    .ranked(1),
    estimate("same answer %", lambda item: item.agreement, csv=("same_answer", "percent"))
    .hidden(_is_unpruned)
    .ranked(6),
    estimate("KL, nats", lambda item: item.divergence, 1, most=4, csv=("kl", "nats")).hidden(_is_unpruned).ranked(8),
    estimate("hard %", lambda item: item.hard, csv=("hard", "percent")).hidden(_is_downsampled).ranked(10),
    number("hard questions", lambda item: item.hard_count, "{:.0f}", csv="hard_questions").ranked(10),
    number("visual tokens", lambda item: item.visual, csv="visual_tokens_after_last_stage").ranked(7),
    number("layer average", lambda item: item.average, csv="layer_average_tokens").ranked(3),
    replace(
        number("FLOPs", lambda item: -100 * item.flops_reduction, "{:.1f} %", unknown="unknown").hidden(_is_unpruned),
        csv={"flops_reduction_percent": lambda item: 100 * item.flops_reduction},
    ).ranked(2),
    replace(
        number("KV cache", lambda item: item.kv_bytes / 2**20, "{:.2f} MiB", unknown="unknown"),
        csv={"kv_cache_bytes": lambda item: item.kv_bytes},
    ).ranked(9),
    Column(
        "prefill time",
        _time,
        "number",
        {
            "prefill_time_ratio": lambda item: item.time_ratio,
            "prefill_time_ratio_min": lambda item: item.time_spread[0],
            "prefill_time_ratio_max": lambda item: item.time_spread[1],
        },
        rank=4,
    ),
    Column("seeds", lambda _: Cell(""), csv={"seeds": lambda item: item.seeds}),  # the method's cell says it
)


def _about(item: SeriesSummary) -> tuple[str, str]:
    return item.method, item.budget


def main_table(
    summaries: Iterable[SeriesSummary], note: str = "", columns: Sequence[Column[SeriesSummary]] = COLUMNS
) -> Table:
    """The main table: a row per method and budget."""
    return fill("Results", columns, summaries, note, _about)


def further_tables(data: ReportData) -> list[Table]:
    """The tables behind the main one, those that have rows: gains, question types, timings, promises, layers."""
    return [table for make in (_gains, _types, _timings, _promised, _layers) if (table := make(data)).rows]


def _gains(data: ReportData) -> Table:
    found = [gain for methods in data.gains.values() for gain in methods.values()]
    note = (
        "Points above random pruning on the same questions; **bold where random wins** beyond the interval. Compared is"
        " the random choice whose layer average is the nearest."
    )

    def column(gains: dict[str, Gain], budget: str) -> Column[str]:
        def cell(method: str) -> Cell:
            gain = gains.get(method)
            return Cell("", math.nan) if gain is None else Cell(str(gain), gain.points.mean, gain.points.high < 0)

        return Column(budget, cell, "interval")

    def rivals(method: str) -> str:
        return ", ".join(dict.fromkeys(gain.rival.method for gain in found if gain.own.method == method))

    budgets = dict.fromkeys(item.budget for item in data.summaries if item.budget)
    columns: list[Column[str]] = [
        text("method", str),
        *(column(data.gains.get(budget, {}), budget) for budget in budgets),
        text("compared with", rivals),
    ]
    methods = sorted({gain.own.method for gain in found})
    note += "" if all(gain.same_cost for gain in found) else f" {OTHER_COST}"
    return fill("Gains over random", columns, methods, note, lambda method: (method, ""))


def _types(data: ReportData) -> Table:
    def column(place: int) -> Column[tuple[SeriesSummary, tuple[float, ...]]]:
        return number(data.types[place], lambda row: 100 * row[1][place])

    columns = (*(item.of(_summary) for item in (METHOD, BUDGET)), *map(column, range(len(data.types))))
    rows = zip(data.summaries, data.per_type, strict=True) if data.types else ()
    return fill("Accuracy per question type, %", columns, rows, about=lambda row: _about(row[0]))


def _summary(row: tuple[SeriesSummary, tuple[float, ...]]) -> SeriesSummary:
    return row[0]


def _timings(data: ReportData) -> Table:
    columns: tuple[Column[SeriesSummary], ...] = (
        METHOD,
        BUDGET,
        number("median", lambda item: item.time_ratio, "{:.2f}"),
        number("least", lambda item: item.time_spread[0], "{:.2f}"),
        number("most", lambda item: item.time_spread[1], "{:.2f}"),
    )
    rounds = max(map(len, data.result.timing.values()), default=0)
    note = (
        "Prefill time divided by that of the unpruned model, measured in turns on one batch,"
        f" {rounds} {'round' if rounds == 1 else 'rounds'} per series."
    )
    timed = (item for item in data.summaries if item.budget and not math.isnan(item.time_ratio))
    return fill("Timings", columns, timed, note, _about)


def _promised(data: ReportData) -> Table:
    columns: tuple[Column[Promised], ...] = (
        *(item.of(_promising) for item in (METHOD, BUDGET)),
        number("promised %", lambda item: 100 * item.promise.agreement),
        estimate("corrected %", lambda item: item.corrected),
        estimate("kept %", lambda item: item.summary.agreement),
        number("candidates", lambda item: item.promise.candidates, "{:.0f}"),
        number("calibration samples", lambda item: item.promise.samples, "{:.0f}"),
    )
    note = (
        "Agreement with the unpruned model. Promised: of the first answer token, on the calibration samples"
        " that chose it. Corrected: the same without the gain from having been picked. Kept: of the whole answer, on"
        " the questions of this experiment."
    )
    return fill("Promised and kept", columns, data.promised, note, lambda item: _about(item.summary))


def _promising(item: Promised) -> SeriesSummary:
    return item.summary


def _layers(data: ReportData) -> Table:
    return layers_table(data.layers)


def layers_table(layers: Iterable[ChosenLayers]) -> Table:
    """The chosen layers, by which methods, and why."""
    columns: tuple[Column[ChosenLayers], ...] = (
        text("methods", lambda item: ", ".join(item.methods)),
        text("before layer", lambda item: ", ".join(map(str, item.layers))),
        text("why", lambda item: item.reason),
    )
    return fill("Layers", columns, layers)
