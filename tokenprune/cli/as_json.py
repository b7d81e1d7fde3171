"""What the commands print with ``--json``: the numbers of their tables in full precision, and the sentences beside.

Rows of experiments have the names of CSV files; those of tunes, profiles and benches are the rows of their files.
Unknown numbers are null.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tokenprune.experiment.comparison import Compared, numbers
from tokenprune.experiment.dry_run import Plan
from tokenprune.experiment.model_checks import model_checks
from tokenprune.experiment.profiling import ProfiledModel
from tokenprune.experiment.report_data import notes
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.summary import summarise
from tokenprune.experiment.tables import COLUMNS
from tokenprune.methods.named import NamedMethod
from tokenprune.methods.published import Published
from tokenprune.pictures.look import Look
from tokenprune.tables import csv
from tokenprune.tasks.understood import Understood
from tokenprune.tuning import TuneResult
from tokenprune.tuning.report import rows

Data = dict[str, Any]


def experiment_data(result: ExperimentResult, written: Sequence[Path]) -> Data:
    """The main table of an experiment: ``folder``, ``results``, ``notes``, ``files``."""
    summaries = summarise(result)
    return {
        "folder": result.folder,
        "results": csv.rows(COLUMNS, summaries),
        "notes": plain((*notes(result), *model_checks(result, summaries))),
        "files": list(map(str, written)),
    }


def comparison_data(compared: Sequence[Compared], written: Sequence[Path]) -> Data:
    """The table of several experiments: as :func:`experiment_data`, with ``folders`` and the notes of each."""
    return {
        "folders": {item.name: item.result.folder for item in compared},
        "results": numbers(compared),
        "notes": {item.name: plain(notes(item.result)) for item in compared},
        "files": list(map(str, written)),
    }


def tune_data(result: TuneResult, written: Sequence[Path]) -> Data:
    """A tune: ``setup``, the ``sentence``, ``candidates`` as in ``tune.jsonl``, ``skipped`` samples, ``files``."""
    candidates = ({name: value for name, value in row.items() if name != "samples"} for row in rows(result.rankings))
    return {
        "folder": result.folder,
        "setup": asdict(result.setup),
        "sentence": result.sentence,
        "candidates": list(candidates),
        "skipped": dict(result.skipped),
        "files": list(map(str, written)),
    }


def plan_data(plan: Plan) -> Data:
    """A dry run: the fields of :class:`Plan`, and ``seconds``, its whole time."""
    rest = asdict(replace(plan, understood=None))
    return {**rest, "understood": plan.understood and understood_data(plan.understood), "seconds": plan.seconds}


def understood_data(found: Understood) -> Data:
    """The samples of a task: ``total``, ``read``, ``used``, ``rows`` in words, ``left_out`` by reason, ``remarks``."""
    return {
        "total": found.total,
        "read": found.count,
        "used": found.used,
        "used_without_choices": found.open,
        "rows": [asdict(row) for row in found.rows],
        "left_out": [
            {
                "reason": reason.example.what,
                "fix": reason.example.fix,
                "count": reason.count,
                "first": list(reason.places),
            }
            for reason in found.left_out
        ],
        "remarks": list(found.remarks),
    }


def profile_data(measured: ProfiledModel) -> Data:
    """A profile: as in its file, its ``mean``, the whole ``path``, ``sentences``, ``reasons``, ``verdicts``."""
    return {
        "profile": measured.profile.model_dump(mode="json"),
        "mean": measured.profile.mean,
        "path": measured.profile.path_mean,
        "sentences": measured.sentences,
        "reasons": measured.reasons,
        "verdicts": {key: verdict.model_dump(mode="json") for key, verdict in measured.verdicts.items()},
    }


def looks_data(shown: Sequence[Look], sentences: Sequence[str], written: Sequence[Path]) -> Data:
    """The ``looks`` at one prompt: what each method kept after every stage, its answer, a sentence; ``files``."""
    return {
        "question": shown[0].question,
        "expected": shown[0].expected,
        "looks": [
            {
                "method": look.method,
                "budget": look.budget,
                "tokens": look.tokens,
                "stages": [
                    {"layer": stage.layer, "kept": int(stage.kept.sum()), "reason": stage.reason}
                    for stage in look.stages
                ],
                "answer": look.answer,
                "right": look.right,
                "sentence": sentence,
            }
            for look, sentence in zip(shown, sentences, strict=True)
        ],
        "files": list(map(str, written)),
    }


def bench_data(result: Mapping[str, Any], written: Sequence[Path]) -> Data:
    """A bench: what ``--output`` writes, and ``files``."""
    return {**result, "files": list(map(str, written))}


def method_data(shipped: NamedMethod, settings: Published | None) -> Data:
    """A method, and what was ``published`` for single models.

    Args:
        shipped: The method.
        settings: The published settings that it shall have; None for its own.
    """
    return {
        "name": shipped.name,
        "distribution": shipped.distribution,
        **{name: str(shipped.data.get(name, "")) for name in ("description", "paper", "differs")},
        "settings": None if settings is None else settings.sentence,
        "method": shipped.method(model=None if settings is None else settings.model).model_dump(mode="json"),
        "published": [
            {"model": item.model, "condition": item.condition, "settings": item.settings, "source": item.source}
            for item in shipped.published
        ],
    }


def plain(sentences: Iterable[str]) -> list[str]:
    """Sentences without the marks of Markdown."""
    return [sentence.replace("**", "") for sentence in sentences]
