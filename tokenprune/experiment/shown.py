"""The result of an experiment as notebooks show it."""

from dataclasses import dataclass

from tokenprune.experiment.plot import charts_of, comparison_figure
from tokenprune.experiment.report_data import ReportData
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.tables import main_table
from tokenprune.report.extra import drawn
from tokenprune.tables.html import parts_html


@dataclass(frozen=True)
class ShownResult(ExperimentResult):
    """A finished experiment that a notebook shows as its main table, what to know about it, and its chart."""

    def _repr_html_(self) -> str:
        data = ReportData.of(self)
        charts = charts_of(data.summaries, self.label_free)
        chart = [drawn(comparison_figure({"": charts}))] if charts.points else []
        return parts_html(main_table(data.summaries, data.size), *data.sentences, *chart)
