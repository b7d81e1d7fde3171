"""Putting the shards of an experiment together: the files are those of an experiment that ran in one go."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenprune.errors import OutputError, TokenPruneWarning
from tokenprune.experiment import examples
from tokenprune.experiment.batches import Shard
from tokenprune.experiment.choosing import Choices
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.order import write_in_order
from tokenprune.experiment.part import Part, chosen_series
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.results import Results
from tokenprune.experiment.runner import finished, run_experiment
from tokenprune.experiment.series import definitions
from tokenprune.experiment.tuned import TUNED
from tokenprune.fingerprint.origin import ORIGIN, Origin
from tokenprune.output.folder import CONFIG
from tokenprune.output.lines import line


def merge_shards(config: ExperimentConfig, part: Part | None = None) -> ExperimentResult:
    """Put the results of all shards into the experiment's output folder.

    The rows are written in the order of an experiment that ran in one go. Times are not merged: shards measure none.

    Args:
        config: The experiment that the shards ran.
        part: ``limit`` and ``only`` that the shards ran with.

    Raises:
        OutputError: There are no shards, one is missing or has not finished, or their settings differ.
    """
    part = part or Part()
    shards = _shards(Path(config.output))
    parts = [Part(part.limit, part.only, shard) for shard in shards]
    for shard in parts:
        if not finished(config, shard):
            assert shard.shard is not None
            raise OutputError(
                f"shard {shard.shard.number}/{shard.shard.of} of {config.output} has not finished",
                f"run it again with --shard {shard.shard.number}/{shard.shard.of}",
            )
    sources = [Results(Path(config.output) / shard.folder) for shard in shards]
    target = Results(config.output)
    wanted = definitions(chosen_series(config, part))
    with target.locked():
        target.check_settings(config.settings(), config.free())
        target.check_definitions(wanted)
        _check_choices(sources)
        for name in ("left_out.json", "series.json", "fingerprints.json"):
            _check_same(sources, name, [source.read_json(name) for source in sources])
        target.write_json(ORIGIN, _merged_origin(sources).stored())
        for name in ("choices.json", "left_out.json", "environment.json", "series.json", "fingerprints.json"):
            target.write_json(name, sources[0].read_json(name))
        write_in_order(target, sources, list(wanted), config.batch_size)
        skipped = sorted((row for source in sources for row in source.skipped_rows()), key=lambda row: row["position"])
        if skipped:
            target.write(target.skipped.name, "".join(map(line, skipped)))
        shown: examples.Stored = {}
        for source in sources:  # the worst of all shards are among the worst of each
            shown |= examples.stored(source)[0]
        examples.write(target, shown, list(shown), examples.stored(sources[0])[1])
        tunes = sources[0].folder / TUNED
        if tunes.is_dir():
            shutil.copytree(tunes, target.folder / TUNED, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
        target.write(CONFIG, config.to_yaml())
    return run_experiment(config, part=replace(part, timed=False))  # everything is there: it only reads


def _shards(folder: Path) -> list[Shard]:
    found = []
    for path in sorted(folder.glob("shards/*-of-*")):
        number, _, of = path.name.partition("-of-")
        found.append(Shard.parse(f"{number}/{of}"))
    if not found:
        raise OutputError(f"{folder} has no shards", "run the experiment with --shard 1/2, then with --shard 2/2")
    counts = {shard.of for shard in found}
    if len(counts) > 1:
        raise OutputError(
            f"{folder}/shards holds shards of different numbers ({', '.join(map(str, sorted(counts)))})",
            "delete those of the number that is not wanted",
        )
    (count,) = counts
    missing = sorted(set(range(1, count + 1)) - {shard.number for shard in found})
    if missing:
        raise OutputError(
            f"{folder} lacks shard {', '.join(f'{number}/{count}' for number in missing)}",
            f"run the experiment with --shard {missing[0]}/{count}",
        )
    return sorted(found, key=lambda shard: shard.number)


def _check_choices(sources: list[Results]) -> None:
    """Check that the shards chose alike. Each tunes for itself, and sentences may differ by rounding.

    Raises:
        OutputError: They did not.
    """
    choices = [source.read_json("choices.json") for source in sources]
    for key, choice in choices[0].items():
        for source, others in zip(sources[1:], choices[1:], strict=True):
            first, other = choice.get(TUNED), others.get(key, {}).get(TUNED)
            if first is not None and other is not None and first["method"] != other["method"]:
                raise OutputError(
                    f"the tune for {key!r} took {first['name']!r} in {sources[0].folder}, and {other['name']!r} in"
                    f" {source.folder}",
                    "run `tokenprune tune` once, and name its tuned.yaml as the method",
                )
    _check_same(sources, "choices.json", [_without_words(items) for items in choices])


def _without_words(choices: Choices) -> Choices:
    return {
        key: choice | ({TUNED: choice[TUNED]["method"]} if TUNED in choice else {}) for key, choice in choices.items()
    }


def _merged_origin(sources: list[Results]) -> Origin:
    """The origin of all answers; what is unknown of a shard is unknown of all.

    Raises:
        OutputError: Two shards ran with different weights or code.

    Warns:
        TokenPruneWarning: It is unknown whether they did.
    """
    first, *others = (Origin.read(source.read_json(ORIGIN)) for source in sources)
    unknown = first.unknown(first)
    for source, other in zip(sources[1:], others, strict=True):
        found = first.difference(other)
        if found is not None:
            what, mine, theirs = found
            raise OutputError(
                f"the shards ran with another {what}: {mine} in {sources[0].folder}, {theirs} in {source.folder}",
                "run both shards with the same one, into a new folder",
            )
        unknown += first.unknown(other)
    if unknown:
        names = " and ".join(dict.fromkeys(unknown))
        what = f"whether the shards in {sources[0].folder.parent} ran with the same {names} is unknown"
        warnings.warn(what, TokenPruneWarning, stacklevel=3)
    code = {name: None if f"code of the {name}" in unknown else version for name, version in first.code.items()}
    return replace(first, model=None if "weights" in unknown else first.model, code=code)


def _check_same(sources: list[Results], name: str, contents: list[Any]) -> None:
    for source, content in zip(sources, contents, strict=True):
        if content != contents[0]:
            raise OutputError(
                f"{source.folder / name} differs from that of {sources[0].folder}",
                "run both shards with the same versions and methods, into a new folder",
            )
