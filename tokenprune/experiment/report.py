"""The report of an experiment: tables, and a picture where matplotlib is installed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tokenprune.experiment.answers import Answers, difference
from tokenprune.experiment.config import UNPRUNED
from tokenprune.experiment.results import Results
from tokenprune.experiment.runner import ExperimentResult
from tokenprune.experiment.summary import SeriesSummary, by_budget, is_random, summarise
from tokenprune.experiment.tuned import TUNED

#: Questions that an experiment needs before its gates say anything about a model.
GATE_QUESTIONS = 2000
#: Layer averages that differ by more than this share are not the same cost.
SAME_COST = 0.05
#: Samples that could not be used and are named in the report.
MOST_NAMED = 5


def columns(result: ExperimentResult) -> list[str]:
    """The columns of the main table."""
    names = [
        "method",
        "budget",
        "agreement %" if result.label_free else "accuracy %",
        "% of unpruned",
        "minus unpruned",
        "same answer %",
        "visual tokens",
        "layer average",
        "FLOPs",
        "KV cache",
        "prefill time",
    ]
    if any(item.divergences for item in result.answers.series.values()):
        names.insert(names.index("same answer %") + 1, "KL, nats")
    return names


def format_row(summary: SeriesSummary) -> list[str]:
    """One row of the table as text, in the order of :func:`columns`."""
    unpruned = summary.method == UNPRUNED
    name = summary.method + (f" ({summary.seeds} seeds)" if summary.seeds > 1 else "")
    saved = "unknown" if math.isnan(summary.flops_reduction) else f"-{100 * summary.flops_reduction:.1f} %"
    low, high = summary.time_spread
    spread = "" if math.isnan(low) else f" ({low:.2f}-{high:.2f})"
    divergence = summary.divergence
    return [
        name,
        summary.budget,
        str(summary.accuracy),
        "unknown" if math.isnan(summary.kept) else f"{100 * summary.kept:.1f}",
        "" if unpruned else f"{100 * summary.gain.mean:+.1f} ± {100 * summary.gain.half:.1f}",
        "" if unpruned else f"{100 * summary.agreement.mean:.1f}",
        *([] if divergence is None else ["" if unpruned else f"{divergence.mean:.4f} ± {divergence.half:.4f}"]),
        f"{summary.visual:.1f}",
        f"{summary.average:.1f}",
        "" if unpruned else saved,
        "unknown" if math.isnan(summary.kv_bytes) else f"{summary.kv_bytes / 2**20:.2f} MiB",
        "" if math.isnan(summary.time_ratio) else "1" if unpruned else f"x {summary.time_ratio:.2f}{spread}",
    ]


def markdown(result: ExperimentResult) -> str:
    """The report as Markdown: gates, main table, comparison with random, layers, accuracy per question type."""
    return _markdown(result, summarise(result))


def _markdown(result: ExperimentResult, summaries: Sequence[SeriesSummary]) -> str:
    names = columns(result)
    sentences = [*notes(result), *gates(result, summaries)]
    out = [
        "# Results",
        "",
        *sentences,
        *([""] if sentences else []),
        "| " + " | ".join(names) + " |",
        "|" + "---|" * len(names),
    ]
    out += ["| " + " | ".join(format_row(item)) + " |" for item in summaries]
    questions = result.answers.questions
    pictures = len(set(questions.groups.values()))
    out += ["", f"{len(questions.groups)} questions on {pictures} pictures; intervals are 95 %, clustered by picture."]
    out += _against_random(result.answers, summaries)
    reasons = {
        f"{key}: {choice['reason']}" if "pruner" in choice else choice["reason"]: choice["layers"]
        for key, choice in result.choices.items()
    }
    out += ["", "Layers:", *(f"- before layer {', '.join(map(str, layers))}: {why}" for why, layers in reasons.items())]
    if len(set(questions.types.values())) > 1:
        out += ["", "Accuracy per question type, %:", "", *_accuracy_per_type(result.answers, summaries)]
    return "\n".join(out) + "\n"


def notes(result: ExperimentResult) -> list[str]:
    """What a reader must know before the table: unusable samples, methods left out, published settings."""
    out = list(result.remarks)
    if result.label_free:
        out.append("The task has no answers: scores are the agreement with the unpruned model's own answers.")
    if result.skipped:
        named = [f"{result.skipped[position]}" for position in sorted(result.skipped)[:MOST_NAMED]]
        more = len(result.skipped) - len(named)
        rest = f"; and {more} more, see skipped.jsonl" if more else ""
        count = "1 sample" if len(result.skipped) == 1 else f"{len(result.skipped)} samples"
        out.append(f"**{count} could not be used; no figure counts them:** {'; '.join(named)}{rest}.")
    for method, budget in result.answers.methods():
        answers = result.answers.of(method, budget)
        if method != UNPRUNED and answers.whole:
            out.append(
                f"`{method}` with `{budget}` dropped nothing of {answers.whole} of {len(answers)} samples: they have no"
                " more visual tokens than the budget keeps."
            )
    out += [f"The method `{title}` was left out: {why}." for title, why in result.left_out.items()]
    out += [f"The method `{title}` has the {settings}." for title, settings in result.settings.items()]
    tuned = {key: choice[TUNED] for key, choice in result.choices.items() if TUNED in choice}
    out += [f"The tune for `{key}`: {found['sentence']}" for key, found in tuned.items()]
    return out


def _against_random(answers: Answers, summaries: Sequence[SeriesSummary]) -> list[str]:
    """Every method minus the random method with the nearest layer average, paired by question."""
    table = by_budget(summaries)
    if not any(is_random(method) for methods in table.values() for method in methods):
        return []
    out = ["| method | " + " | ".join(table) + " | compared with |", "|---|" + "---|" * (len(table) + 1)]
    other_cost = False
    for method in sorted({item.method for item in summaries if item.budget and not is_random(item.method)}):
        gains, rivals = [], []
        for budget, methods in table.items():
            random_methods = [item for name, item in methods.items() if is_random(name)]
            if method not in methods or not random_methods:
                gains.append("")
                continue
            average = methods[method].average
            rival = min(random_methods, key=lambda item: (abs(item.average - average), item.method))
            gain = difference(
                answers.of(method, budget).by_question(),
                answers.of(rival.method, budget).by_question(),
                answers.questions.groups,
            )
            text = f"{100 * gain.mean:+.1f} ± {100 * gain.half:.1f}"
            text = f"**{text}**" if gain.mean + gain.half < 0 else text
            if abs(rival.average - average) > SAME_COST * max(rival.average, average):
                text += f" († {average:.0f} : {rival.average:.0f})"
                other_cost = True
            gains.append(text)
            rivals.append(rival.method)
        out.append(f"| {method} | " + " | ".join(gains) + f" | {', '.join(dict.fromkeys(rivals))} |")
    if other_cost:
        out += [
            "",
            "† Not the same cost: the layer averages of the method and of random differ by more than"
            f" {100 * SAME_COST:.0f} %. A random choice at the method's own layers would be comparable.",
        ]
    return [
        "",
        "Points above random pruning on the same questions; **bold where random wins** beyond the interval. Compared is"
        " the random choice whose layer average is the nearest:",
        "",
        *out,
    ]


def _accuracy_per_type(answers: Answers, summaries: Sequence[SeriesSummary]) -> list[str]:
    types = sorted(set(answers.questions.types.values()))
    out = ["| method | budget | " + " | ".join(types) + " |", "|---|---|" + "---|" * len(types)]
    for item in summaries:
        per_type = [answers.of(item.method, item.budget).accuracy_of_type(kind) for kind in types]
        shown = " | ".join("" if math.isnan(value) else f"{100 * value:.1f}" for value in per_type)
        out.append(f"| {item.method} | {item.budget} | {shown} |")
    return out


def gates(result: ExperimentResult, summaries: Sequence[SeriesSummary]) -> list[str]:
    """Check on the experiment's own data whether the model can tell methods apart.

    The unpruned model must reach 85 %, and on every question type 20 points more than the most frequent answer would.
    With the true foreground alone, at about 11 % of the tokens, the model must reach 95 % of its unpruned accuracy and
    beat random pruning by three half-widths of the interval. An experiment without the foreground has no gates.

    Args:
        result: The experiment.
        summaries: Its summary, see :func:`~tokenprune.experiment.summary.summarise`.

    Returns:
        Sentences: the verdict with the checks that failed, and a note where the experiment has too few questions.
    """
    unpruned = result.answers.unpruned
    if not len(unpruned) or result.label_free or all(item.method != "oracle" for item in summaries):
        return []
    failures = []
    reached = unpruned.accuracy()
    if reached.mean < 0.85:
        failures.append(f"unpruned accuracy {reached} % is below 85 %")
    for kind, expected in sorted(result.answers.questions.answers.items()):
        majority = expected.most_common(1)[0][1] / expected.total()
        reached_here = unpruned.accuracy_of_type(kind)
        if reached_here < majority + 0.2:
            failures.append(f"type {kind}: {100 * reached_here:.1f} %, most frequent answer {100 * majority:.1f} %")
    failures += _oracle_failures(summaries)
    enough = len(unpruned) >= GATE_QUESTIONS
    if not failures:
        verdict = (
            f"Gates {'passed' if enough else 'met on this sample'}: unpruned {reached} %, every type 20 points above"
            " its most frequent answer, and the foreground at about 11 % holds 95 % of it and beats random by three"
            " half-widths."
        )
        few = f"The gates need {GATE_QUESTIONS} questions; this run has {len(unpruned)}."
        return [verdict] if enough else [verdict, few]
    if not enough:
        return [
            f"{len(unpruned)} questions are too few to say whether this model can tell methods apart (the gates need"
            f" {GATE_QUESTIONS}). Noticed on these: {'; '.join(failures)}."
        ]
    return ["**This model cannot separate methods yet:** " + "; ".join(failures) + "."]


def _oracle_failures(summaries: Sequence[SeriesSummary]) -> list[str]:
    """What is wrong with the oracle, compared with random pruning, at the budget nearest to 11 % of the tokens."""
    unpruned = next((item for item in summaries if item.method == UNPRUNED), None)
    oracles = {item.budget: item for item in summaries if item.method == "oracle"}
    randoms = {item.budget: item for item in summaries if item.method == "random"}
    budgets = set(oracles) & set(randoms)
    if unpruned is None or not budgets:
        return ["no budget has both oracle and random"]
    all_tokens = unpruned.visual
    budget = min(sorted(budgets), key=lambda name: abs(oracles[name].visual / all_tokens - 0.11))
    oracle, random = oracles[budget], randoms[budget]
    share = 100 * oracle.visual / all_tokens
    failures = []
    if oracle.kept < 0.95:
        failures.append(
            f"the foreground at {share:.0f} % of the tokens holds {100 * oracle.kept:.1f} % of the unpruned accuracy"
        )
    half = max(oracle.accuracy.half, random.accuracy.half)
    gain = oracle.accuracy.mean - random.accuracy.mean
    if gain < 3 * half:
        failures.append(
            f"the foreground at {share:.0f} % beats random by {100 * gain:.1f} points, less than three half-widths"
            f" ({300 * half:.1f})"
        )
    return failures


def write_report(result: ExperimentResult, folder: str | Path | None = None) -> list[Path]:
    """Write ``report.md``, ``summary.json`` and, where matplotlib is installed, the pictures.

    Args:
        result: The experiment.
        folder: Where to write; the experiment's own folder by default.

    Returns:
        The paths of the files.
    """
    results, summaries = Results(folder or result.folder), summarise(result)
    written = [
        results.write("report.md", _markdown(result, summaries)),
        results.write_json("summary.json", [asdict(item) for item in summaries]),
    ]
    try:
        from tokenprune.experiment.plot import accuracy_plot
    except ImportError:
        return written  # matplotlib is optional: pip install 'tokenprune-mllm[plot]'
    quality = "agreement" if result.label_free else "accuracy"
    return [*written, *accuracy_plot(summaries, results.folder / "accuracy.png", quality)]
