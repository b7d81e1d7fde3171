"""A finished experiment, or an unfinished one, read from its folder. No model is loaded."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tokenprune.errors import MissingDataError, OutputError
from tokenprune.experiment.answers import Answers
from tokenprune.experiment.batches import several_sizes
from tokenprune.experiment.report import ShownResult
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.results import RUN, Flags, Results, own_settings_unused
from tokenprune.output.lines import Row


class _Stored(BaseModel):
    """The file that a run writes beside its rows.

    Attributes:
        series: Keys of the series that it asked for.
        limit: Positions below this were asked for.
        questions: How many these are.
        label_free: Whether scores are agreement with the unpruned model.
        settings: Name of every method with published settings -> what they are.
        batch_sizes: The sizes of the batches that were asked, the first one first.
        set_aside: The checkpoint's own settings of ``generate`` that answers do not use.
    """

    model_config = ConfigDict(extra="ignore")

    series: list[str]
    limit: int = Field(ge=1)
    questions: int = Field(ge=1)
    label_free: bool
    settings: dict[str, str]
    batch_sizes: list[int] = Field(default_factory=list)
    set_aside: dict[str, Any] = Field(default_factory=dict)


class _Tuned(BaseModel):
    """The parts of a tune's choice that a report shows."""

    sentence: str


class _Choice(BaseModel):
    """The parts of the choice of a method's layers that a report shows."""

    layers: list[int]
    reason: str
    tuned: _Tuned | None = None


def read_result(folder: str | Path) -> ExperimentResult:
    """Read the experiment that a folder holds, as :func:`tokenprune.run_experiment` returned it.

    Args:
        folder: The output folder of a run.

    Returns:
        The result. Its remarks say if it is not finished, and what an older version did not store.

    Raises:
        MissingDataError: There is no such folder.
        OutputError: It holds no experiment, no answers, or damaged ones.
    """
    results = check_folder(folder)
    stored, remarks = _stored(results), []
    skipped = results.skipped_samples()
    try:
        answers = Answers.read(_rows(results, stored, skipped), None if stored is None else stored.series)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise OutputError(
            f"{results.samples} holds a line that is no answer ({type(error).__name__}: {error})",
            "restore the file, or run the experiment again into a new folder",
        ) from None
    if not len(answers.unpruned):
        raise OutputError(
            f"{results.folder} has no answers{' of the unpruned model' if answers.series else ''}",
            "run the experiment again: it continues",
        )
    if stored is None:
        remarks.append(
            f"`{results.folder.name}` was written by an older version of tokenprune, which did not record published"
            " settings, nor whether scores are agreement with the unpruned model: they are shown as accuracy."
        )
    else:
        remarks += [*several_sizes(stored.batch_sizes), *own_settings_unused(stored.set_aside)]
    wanted = _wanted(results, stored, answers, skipped)
    there = sum(map(len, answers.series.values()))
    if there < wanted:
        remarks.append(
            f"**Not finished:** {there} of {wanted} answers ({100 * there / wanted:.0f} %) are there."
            " `tokenprune run` continues."
        )
    keys = answers.keys
    return ShownResult(
        folder=str(results.folder),
        answers=answers,
        timing=_read(results, "timing.json", keys, TypeAdapter(list[float])),
        choices=_read(results, "choices.json", keys, TypeAdapter(_Choice)),
        skipped=skipped,
        left_out=results.read_mapping("left_out.json"),
        label_free=stored is not None and stored.label_free,
        settings={} if stored is None else stored.settings,
        remarks=tuple(remarks),
    )


def check_folder(folder: str | Path) -> Results:
    """The files of a folder that should hold an experiment.

    Raises:
        MissingDataError: There is no such folder.
        OutputError: It holds no experiment.
    """
    results = Results(folder)
    if not results.folder.is_dir():
        what = "is a file, not a folder of results" if results.folder.exists() else "does not exist"
        raise MissingDataError(f"{results.folder} {what}", "name the output folder of a run")
    if not results.samples.is_file():
        raise OutputError(
            f"{results.folder} is no results folder: it has no samples.jsonl", "name the output folder of a run"
        )
    return results


def _stored(results: Results) -> _Stored | None:
    """Read what the run wrote beside its rows; None in a folder of an older version."""
    try:
        return _Stored.model_validate(results.read_json(RUN))
    except ValidationError:
        return None


def _rows(results: Results, stored: _Stored | None, skipped: Mapping[int, str]) -> Iterator[Row]:
    """The rows of the run, each once. A run that was killed may have left a part of a batch, which counts, too."""
    seen: dict[str, Flags] = {}
    for row in results.rows():
        used = row["position"] not in skipped and (stored is None or row["position"] < stored.limit)
        if used and seen.setdefault(row["series"], Flags()).set(row["position"]):
            yield row


def _wanted(results: Results, stored: _Stored | None, answers: Answers, skipped: Mapping[int, str]) -> int:
    """Number of answers of a finished run."""
    if stored is not None:
        return len(stored.series) * (stored.questions - sum(position < stored.limit for position in skipped))
    left_out = results.read_mapping("left_out.json")
    series = [key for key in results.read_mapping("series.json") if key.partition(" / ")[0] not in left_out]
    return max(len(series), len(answers.series)) * max(map(len, answers.series.values()))


def _read(results: Results, name: str, keys: set[str], kind: TypeAdapter[Any]) -> dict[str, Any]:
    """The entries of a file that are of these series, as they stand there.

    Raises:
        OutputError: One of them is of another kind.
    """
    entries = {key: entry for key, entry in results.read_mapping(name).items() if key in keys}
    for key, entry in entries.items():
        try:
            kind.validate_python(entry, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, (key, *first["loc"])))
            raise OutputError(
                f"{results.folder / name} is damaged ({place}: {first['msg']})",
                "restore the file, or run the experiment again into a new folder",
            ) from None
    return entries
