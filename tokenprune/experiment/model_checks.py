"""Whether a model can tell methods apart, checked on the experiment's own data."""

from collections.abc import Sequence

from tokenprune.core.references import ORACLE, UNPRUNED
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.summary import SeriesSummary

#: Questions that an experiment needs before its gates say anything about a model.
GATE_QUESTIONS = 2000


def model_checks(result: ExperimentResult, summaries: Sequence[SeriesSummary]) -> list[str]:
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
    if not len(unpruned) or result.label_free or all(item.method != ORACLE for item in summaries):
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
    """Compare the oracle with random pruning at the budget nearest to 11 % of the tokens, and say where it fails."""
    unpruned = next((item for item in summaries if item.method == UNPRUNED), None)
    oracles = {item.budget: item for item in summaries if item.method == ORACLE}
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
