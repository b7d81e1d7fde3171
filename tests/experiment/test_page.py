"""The page of an experiment: the numbers of the table, and a finding that claims no more than they say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.experiment.test_cli import call, write
from tests.support.toy import completed, config
from tokenprune.budgets.label import in_words
from tokenprune.drawing.vega import library
from tokenprune.experiment import ExperimentResult, markdown, run_experiment, write_report
from tokenprune.experiment.answers import Answers
from tokenprune.experiment.report import experiment_page
from tokenprune.experiment.report_data import ReportData
from tokenprune.report.extra import NotWrittenWarning
from tokenprune.report.page import Page

#: Shares of right answers by method; costs by method.
Right = dict[str, list[int]]


def result_of(
    right: Right, average: dict[str, float] | None = None, pictures: int | None = None, folder: str = "nowhere"
) -> ExperimentResult:
    """An experiment with the budget ``few``: one score of 0 or 1 per question, a picture per question by default."""
    rows = []
    for method, scores in right.items():
        unpruned = method == "unpruned"
        for position, score in enumerate(scores):
            rows.append(
                {
                    "series": method,
                    "method": method,
                    "budget": None if unpruned else "few",
                    "seed": None,
                    "sample": str(position),
                    "position": position,
                    "prediction": "yes" if score else "no",
                    "group": str(position if pictures is None else position % pictures),
                    "type": ("odd", "even")[position % 2],
                    "answer": "yes",
                    "score": float(score),
                    "visual_before": 16,
                    "visual_after": 16 if unpruned else 2,
                    "layer_average": 16.0 if unpruned else (average or {}).get(method, 4.0),
                    "flops": 1.0,
                    "flops_unpruned": 1.0 if unpruned else 4.0,
                    "kv_bytes": 1,
                    "kv_bytes_unpruned": 1,
                }
            )
    return ExperimentResult(folder, Answers.read(rows))


def data_of(right: Right) -> ReportData:
    return ReportData.of(result_of(right))


def half(ones: int, count: int = 40) -> list[int]:
    return [1] * ones + [0] * (count - ones)


ALL = half(40)


def test_the_best_method_against_the_best_random_choice() -> None:
    """38 of 40 right, 20 for the better random choice: paired by question, 18 of 40 differ."""
    right = {
        "unpruned": ALL,
        "good": half(38),
        "poor": half(10),
        "random": half(15),
        "random-late": half(20),
        "oracle": ALL,
    }
    finding = experiment_page(result_of(right)).finding
    assert finding.tone == "better"
    assert "`good` scores 95 [83, 99] % at 2 visual tokens: 45 [27, 59] points more than" in finding.text
    assert "`random-late`, the best random choice of the same cost (50 ± 15" in finding.text
    assert "oracle" not in finding.text  # it reads the annotation: it is no method
    assert "luck" not in finding.text  # two methods


def test_many_methods_may_be_lucky() -> None:
    methods = {f"m{number}": half(30 - number) for number in range(3)}
    finding = experiment_page(result_of({"unpruned": ALL, "random": half(10), **methods})).finding
    assert "It is the best of 3 methods on these questions, so a part of its lead may be luck." in finding.text


def test_random_wins() -> None:
    finding = experiment_page(result_of({"unpruned": ALL, "poor": half(10), "random": half(30)})).finding
    assert finding.tone == "worse"
    assert "50 [32, 63] points less" in finding.text
    assert "points less than `random`" in finding.text
    assert "beyond its 95 % interval" in finding.text


def test_too_small_to_tell() -> None:
    right = {"unpruned": half(4, 4), "good": half(3, 4), "random": half(2, 4)}
    finding = experiment_page(result_of(right)).finding
    assert finding.tone == "open"
    assert "4 questions on 4 pictures cannot tell differences below about 44 points" in finding.text


def test_one_picture_has_no_interval() -> None:
    finding = experiment_page(result_of({"unpruned": ALL, "good": half(38), "random": half(2)}, pictures=1)).finding
    assert finding.tone == "open"
    assert "90.0 ± ? points more" in finding.text
    assert "All 40 questions are about one picture" in finding.text


@pytest.mark.parametrize(
    ("averages", "tone", "words"),
    [
        ({"good": 4.0, "random": 4.1}, "better", "of the same cost"),
        ({"good": 4.0, "random": 8.0}, "better", "which costs more"),
        ({"good": 8.0, "random": 4.0}, "open", "No random choice in this run costs the same as a method"),
    ],
)
def test_a_cheaper_random_choice_is_no_fair_rival(averages: dict[str, float], tone: str, words: str) -> None:
    finding = experiment_page(result_of({"unpruned": ALL, "good": half(38), "random": half(10)}, averages)).finding
    assert finding.tone == tone
    assert words in finding.text


def test_a_dearer_random_choice_proves_nothing_by_winning() -> None:
    right = {"unpruned": ALL, "poor": half(10), "random": half(38)}
    assert experiment_page(result_of(right, {"poor": 4.0, "random": 8.0})).finding.tone == "open"


def test_a_loss_against_a_dearer_random_choice_is_not_called_within_the_interval() -> None:
    """10 of 40 right against 38: 70 points, from 52 to 82."""
    right = {"unpruned": ALL, "poor": half(10), "random": half(38)}
    text = experiment_page(result_of(right, {"poor": 4.0, "random": 8.0})).finding.text
    assert "70 [52, 82] points less" in text
    assert "within the 95 % interval" not in text
    assert "a random choice that costs more proves nothing by winning" in text


@pytest.mark.parametrize(("pictures", "tone"), [(2, "open"), (5, "open"), (6, "better")])
def test_a_few_pictures_prove_nothing(pictures: int, tone: str) -> None:
    """Without a single exception, however few the pictures are."""
    right = {"unpruned": half(pictures, pictures), "good": half(pictures, pictures), "random": half(0, pictures)}
    finding = experiment_page(result_of(right)).finding
    assert finding.tone == tone
    assert ("too few to trust" in finding.text) == (pictures == 5)  # with two, it is within the interval


def test_equal_scores_are_no_precise_measurement() -> None:
    finding = experiment_page(result_of({"unpruned": ALL, "good": half(20), "random": half(20)})).finding
    assert finding.tone == "open"
    assert "40 questions on 40 pictures cannot tell differences below about 5 points" in finding.text


def test_an_unknown_score_is_never_the_best() -> None:
    unknown = [float("nan")] * 40
    result = result_of({"aaa": unknown, "unpruned": ALL, "good": half(38), "random": half(10), "zzz": unknown})
    page = experiment_page(result)
    assert page.finding.tone == "better"
    assert "`good` scores 95 " in page.finding.text
    assert [row.method for row in page.table.rows] == ["unpruned", "good", "random", "aaa", "zzz"]


def test_without_random_nothing_is_claimed() -> None:
    finding = experiment_page(result_of({"unpruned": ALL, "good": half(38)})).finding
    assert finding.tone == "open"
    assert "-5.0 ± 8.2 points from the unpruned model" in finding.text
    assert "nothing is compared with chance" in finding.text
    alone = experiment_page(result_of({"unpruned": ALL}))
    assert alone.finding.tone == "open"
    assert alone.charts is None


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first Markdown table whose heading has a word, without ``**``."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|") and heading in line)
    rows = []
    for line in [lines[start], *lines[start + 2 :]]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("**", "") for cell in line.strip("|").split("|")])
    return rows


def texts(page: Page, title: str) -> list[list[str]]:
    found = next(table for table in (page.table, *page.tables) if table.title == title)
    return [[column.title for column in found.columns], *([cell.text for cell in row.cells] for row in found.rows)]


def test_markdown_and_page_show_the_same_numbers(tmp_path: Path) -> None:
    result = run_experiment(config(str(tmp_path), timing=2, divergence=True))
    text, page = markdown(result), experiment_page(result)
    assert texts(page, "Results") == table(text, "same answer")
    assert texts(page, "Gains over random") == table(text, "compared with")
    assert texts(page, "Accuracy per question type, %") == table(text, "| even")
    assert all(note in text for note in page.notes)
    assert page.charts is not None
    for point in page.charts.points:
        row = next(row for row in page.table.rows if (row.method, in_words(row.budget)) == (point.method, point.budget))
        assert row.cells[2].value == pytest.approx(point.mean)
        assert point.low <= point.mean <= point.high
    assert {row.cells[2].text for row in next(t for t in page.tables if t.title == "Timings").rows} > set()
    assert page.ran[0].startswith("3 methods and the unpruned model answered 24 questions on 12 pictures")
    assert dict(page.versions)["tokenprune"]
    assert yaml.safe_load(page.documents[0].text)["max_new_tokens"] == 2
    assert page.repeat == ("tokenprune run config.yaml --output repeated",)


@pytest.mark.slow
def test_columns_without_anything_are_left_out(tmp_path: Path) -> None:
    page = experiment_page(completed(tmp_path))
    assert "prefill time" not in [column.title for column in page.table.columns]
    assert "Timings" not in [table.title for table in page.tables]


def test_a_folder_without_its_files_has_a_page() -> None:
    page = experiment_page(result_of({"unpruned": ALL, "good": half(38)}))
    assert page.title == "Visual token pruning: model unknown, task unknown"
    assert page.documents == ()


def test_the_share_of_the_unpruned_score_is_paired_where_a_run_is_not_finished() -> None:
    """The method has answered the ten questions that the unpruned model gets right, and not the thirty others."""
    table = data_of({"unpruned": half(10), "good": half(8, 10), "random": half(5)})
    shares = {item.method: item.kept for item in table.summaries}
    assert shares == {"unpruned": 1.0, "good": 0.8, "random": 0.5}


def test_every_layer_is_named_where_several_methods_give_the_same_reason() -> None:
    result = replace(
        result_of({"unpruned": ALL, "early": ALL, "late": ALL, "random": ALL}),
        choices={
            name: {"layers": layers, "reason": "fixed by the config"}
            for name, layers in (("early", [2]), ("late", [3, 4]), ("random", [2]))
        },
    )
    assert "| early, random | 2 | fixed by the config |\n" in markdown(result)
    assert "| late | 3, 4 | fixed by the config |\n" in markdown(result)
    assert texts(experiment_page(result), "Layers")[1:] == [
        ["early, random", "2", "fixed by the config"],
        ["late", "3, 4", "fixed by the config"],
    ]


def test_bars_in_question_types_break_no_table() -> None:
    result = result_of({"unpruned": ALL, "good": ALL})
    result.answers.questions.types.update(dict.fromkeys(range(0, 40, 2), "a|b\nc"))
    lines = markdown(result).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(r"| method | budget | a\|b"))
    assert lines[start] == r"| method | budget | a\|b c | even |"
    assert lines[start + 1] == "|---|---|---:|---:|"


def test_bold_where_random_wins() -> None:
    page = experiment_page(result_of({"unpruned": ALL, "poor": half(10), "good": half(38), "random": half(30)}))
    gains = next(table for table in page.tables if table.title == "Gains over random")
    assert {row.method: row.cells[1].strong for row in gains.rows} == {"good": False, "poor": True}


def test_a_missing_package_is_a_warning_and_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "tokenprune.report.html", raising=False)
    result = completed(tmp_path)
    with pytest.warns(NotWrittenWarning, match=r"not written: report.html \(.*jinja2") as found:
        names = {path.name for path in write_report(result)}
    assert names == {"report.md", "summary.json", "accuracy.png", "accuracy.svg", "accuracy.pdf"}
    assert found[0].filename == __file__  # whoever asked for the report


@pytest.mark.usefixtures("toy_installed")
@pytest.mark.parametrize("command", ["run", "tune"])
def test_the_command_line_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    library.cache_clear()
    if command == "run":
        path, plot = write(tmp_path, timing=0), "accuracy.png"
    else:
        path, plot = str(tmp_path / "tune.yaml"), "tune.png"
        settings = {"model": "toy", "task": "toy", "methods": ["fastv"], "samples": 4, "output": str(tmp_path / "out")}
        Path(path).write_text(yaml.safe_dump({**settings, "budget": {"name": "layer_average", "ratio": 0.5}}))
    assert call(monkeypatch, command, path) == 0
    printed = capsys.readouterr()
    *progress, line = printed.err.splitlines()
    assert all(text.startswith("after ") for text in progress)
    assert line.startswith(f"not written: report.html and {plot} (")
    assert line.endswith("pip install 'tokenprune-mllm[report]' and run the same command again")
    assert "report.md" in printed.out
    assert "report.html" not in printed.out
