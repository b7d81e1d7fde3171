"""Tables for papers: the best is bold, references are not, LaTeX finds no commands in names, CSV holds all numbers."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace

import pytest

from tests.support.summaries import around, summary, unpruned
from tokenprune.experiment.paper_table import csv_table, latex_table
from tokenprune.experiment.summary import SeriesSummary
from tokenprune.stats.estimate import Estimate


def cells(text: str) -> dict[str, list[str]]:
    """The cells of every line of a LaTeX table behind its first, by the first."""
    lines = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r"\\")]
    return {line[0]: line[1:] for line in lines}


def rows(**accuracies: tuple[float, ...]) -> list[SeriesSummary]:
    found = [unpruned()]
    for method, values in accuracies.items():
        for number, value in enumerate(values):
            found.append(summary(method.replace("_", "-"), f"keep_ratio 0.{number + 1}", value))
    return found


def test_the_best_is_bold_and_the_second_underlined_in_every_column() -> None:
    table = cells(latex_table({"": rows(a=(0.8, 0.1), b=(0.7, 0.3), c=(0.6, 0.2))}))
    assert table["Method"] == [r"10 \% of the tokens kept", r"20 \% of the tokens kept"]
    half = r" {\scriptsize$\pm$ 2.0}"
    assert table["a"] == [r"\textbf{80.0}" + half, "10.0" + half]
    assert table["b"] == [r"\underline{70.0}" + half, r"\textbf{30.0}" + half]
    assert table["c"] == ["60.0" + half, r"\underline{20.0}" + half]


def test_what_shows_the_same_number_shares_the_place() -> None:
    table = cells(latex_table({"": rows(a=(0.80001,), b=(0.8,), c=(0.7,), d=(0.70004,), e=(0.6,))}))
    marks = {name: re.findall(r"\\(textbf|underline)", " ".join(table[name])) for name in "abcde"}
    assert marks == {"a": ["textbf"], "b": ["textbf"], "c": ["underline"], "d": ["underline"], "e": []}


def test_a_name_is_no_argument_of_the_end_of_the_line_before() -> None:
    """After ``\\\\`` LaTeX looks for ``[length]`` and ``*``, in the next line, too."""
    found = [unpruned(), summary("[x] mine", "b", 0.5), summary("*other", "b", 0.4), summary("a < b | c > d", "b", 0.3)]
    text = latex_table({"": found})
    assert not re.search(r"\\\\\s*[\[*]", text)
    assert "{}[x] mine & " in text
    assert "{}*other & " in text
    assert r"a \textless{} b \textbar{} c \textgreater{} d & " in text


def test_the_comment_says_among_whom_the_best_is_bold() -> None:
    assert "Bold: best of its column;" in latex_table({"": rows(a=(0.8,))})
    several = latex_table({"one": rows(a=(0.8,)), "two": rows(b=(0.7,))})
    assert "Bold: best of its column among the methods of one result;" in several


def test_headings_are_in_words_and_long_ones_on_two_lines() -> None:
    text = latex_table({"": [unpruned(), summary("a", "layer_average 0.222", 0.5), summary("a", "mine_0.1", 0.4)]})
    heading = r"\shortstack[r]{22.2 \% of the tokens,\\layer average}"
    assert cells(text)["Method"] == [heading, r"mine\_0.1"]
    assert re.search(r"^unpruned & \\multicolumn\{2\}\{c\}\{90\.0 ", text, re.M)


def test_references_are_never_marked() -> None:
    found = rows(oracle=(0.99,), random=(0.98,), random_layer_2=(0.97,), mine=(0.5,), other=(0.4,))
    text = latex_table({"": found})
    assert re.findall(r"^(\S+) & \\textbf", text, re.M) == ["mine"]
    assert re.findall(r"^(\S+) & \\underline", text, re.M) == ["other"]
    assert re.search(r"^unpruned & 90\.0 ", text, re.M)  # one column, so nothing to span
    order = re.findall(r"^([a-z0-9-]+) &", text, re.M)
    assert order == ["unpruned", "oracle", "random", "random-layer-2", "mine", "other"]


@pytest.mark.parametrize("share", [False, True])
def test_every_line_has_as_many_columns_as_the_table(share: bool) -> None:
    found = {"one_result": rows(a=(0.8, 0.1), b=(0.7,)), "100 %": rows(c=(0.5, 0.5))}
    text = latex_table(found, share=share)
    (layout,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    for line in text.splitlines():
        if line.endswith(r"\\"):
            spans = [int(count) for count in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            assert len(line.split(" & ")) - len(spans) + sum(spans) == len(layout), line
    assert text.count("{") == text.count("}") - text.count(r"\}") + text.count(r"\{")
    for first, last in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", text):
        assert 2 <= int(first) < int(last) <= len(layout)
    for command in (r"\toprule", r"\bottomrule", r"\end{tabular}", r"\textit{one\_result}", r"\textit{100 \%}"):
        assert text.count(command) == 1
    assert cells(text)["b"][-1] == ""  # it lacks the second budget


def test_the_share_of_the_unpruned_accuracy() -> None:
    table = cells(latex_table({"": rows(a=(0.45,))}, share=True))
    assert table["a"] == [r"\textbf{45.0} {\scriptsize$\pm$ 2.0}", "50.0"]


def test_agreement_is_called_agreement() -> None:
    found = [replace(row, label_free=True) for row in rows(a=(0.5,))]
    assert "% Agreement with the unpruned model in %" in latex_table({"": found})


def test_csv_holds_every_number_with_its_interval() -> None:
    row = summary(
        "fastv",
        "keep_ratio 0.1",
        0.99,
        agreement=Estimate(0.99, 0.96, 1.0),
        gain=around(-0.1, 0.05),
        divergence=around(0.25, 0.125),
        flops_reduction=math.nan,
        seeds=3,
    )
    row = replace(row, accuracy=Estimate(0.99, 0.97, 1.0))
    (first, second) = csv.DictReader(io.StringIO(csv_table({"run, one": [unpruned(), row]})))
    assert (second["results"], second["method"], second["budget"]) == ("run, one", "fastv", "keep_ratio 0.1")
    words = ("results", "method", "budget")
    numbers = {name: float(text) for name, text in second.items() if text and name not in words}
    assert numbers == pytest.approx(
        {
            "accuracy_percent": 99,
            "accuracy_low_percent": 97,
            "accuracy_high_percent": 100,
            "share_of_unpruned_percent": 110,
            "minus_unpruned_points": -10,
            "minus_unpruned_low_points": -15,
            "minus_unpruned_high_points": -5,
            "same_answer_percent": 99,
            "same_answer_low_percent": 96,
            "same_answer_high_percent": 100,
            "kl_nats": 0.25,
            "kl_low_nats": 0.125,
            "kl_high_nats": 0.375,
            "visual_tokens_after_last_stage": 16,
            "layer_average_tokens": 24,
            "kv_cache_bytes": 1024,
            "prefill_time_ratio": 0.5,
            "prefill_time_ratio_min": 0.4,
            "prefill_time_ratio_max": 0.6,
            "seeds": 3,
        }
    )
    assert second["flops_reduction_percent"] == ""
    assert first["kl_nats"] == ""


def test_a_single_picture_has_no_interval() -> None:
    row = summary("fastv").__class__(**{**vars(summary("fastv")), "accuracy": Estimate.unknown(0.5)})
    (found,) = csv.DictReader(io.StringIO(csv_table({"": [row]})))
    assert (found["accuracy_percent"], found["accuracy_low_percent"], found["accuracy_high_percent"]) == ("50", "", "")
    assert cells(latex_table({"": [row]}))["fastv"] == [r"\textbf{50.0} {\scriptsize$\pm$ ?}"]
