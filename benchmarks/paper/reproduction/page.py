"""The part of docs/paper.md that a command writes: cost, budgets, published figures, and results beside them."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from tokenprune.errors import ConfigError

from .architecture import architecture
from .cost import BANDWIDTH, COMPUTE, GPUS, cost_of
from .jobs import Plan, plan_of
from .plan import read_catalogue, read_table, table_names
from .published import Figures, read_figures
from .results import Result, finished

#: Row -> benchmark -> result.
Found = Mapping[str, Mapping[str, Result]]


def plans(output: Path, calibration: str | None = None) -> dict[str, Plan]:
    """The complete plan of every table, with the folders below ``output``; errors as for :func:`plan_of`."""
    made = {}
    for name in table_names():
        table = read_table(name)
        made[name] = plan_of(name, table, architecture(table.architecture), output, calibration=calibration)
    return made


def generated(made: Mapping[str, Plan], compare: bool = False) -> str:
    """The generated part of the page.

    Args:
        made: The plan of every table.
        compare: Whether the results in the folders of the plans are compared with published figures.

    Raises:
        TokenPruneError: A published figure is of a row that no table has, or a folder has results of other settings.
    """
    figures = read_figures()
    _check(figures, made)
    parts = ["## What it costs", *_costs(made), "## Benchmarks", *_benchmarks(made)]
    for name, plan in made.items():
        parts += [f"## {plan.table.title}", plan.table.paper, _command(name), *_averages(plan), *_cannot(plan)]
        parts += [*_figures(name, figures)]
        if compare:
            parts += [*_compared(name, plan, figures, found_results(plan))]
    return "\n\n".join(parts) + "\n"


def found_results(plan: Plan) -> Found:
    """The results of all finished jobs of a plan.

    Raises:
        OutputError: A folder has results of other settings.
    """
    found: dict[str, dict[str, Result]] = {}
    for job in plan.jobs:
        result = finished(job)
        if result is not None:
            found.setdefault(job.row.name, {})[job.name.rpartition("/")[2]] = result
    return found


def share(row: Mapping[str, Result], unpruned: Mapping[str, Result]) -> float | None:
    """The mean share in percent of the unpruned scores that a row keeps; None if it lacks one of the benchmarks."""
    if not unpruned or row.keys() != unpruned.keys() or any(result.score == 0 for result in unpruned.values()):
        return None
    return statistics.fmean(100 * row[name].score / unpruned[name].score for name in unpruned)


def _check(figures: Figures, made: Mapping[str, Plan]) -> None:
    stated = [(item.table, item.row) for item in figures.scores] + [(item.table, item.row) for item in figures.shares]
    for table, name in stated:
        if table not in made or name not in {row.name for row in made[table].rows}:
            raise ConfigError(f"published.yaml has figures of {table!r}, {name!r}, and no table has this row")
    for scores in figures.scores:
        for benchmark in scores.values:
            if benchmark not in made[scores.table].table.benchmarks:
                raise ConfigError(f"published.yaml: table {scores.table!r} has no benchmark {benchmark!r}")


def _costs(made: Mapping[str, Plan]) -> Iterator[str]:
    sources = "; ".join(f"{name}: {gpu.source}" for name, gpu in GPUS.items())
    yield (
        f"Estimates of `--dry-run` in GPU hours. Nothing is measured: {COMPUTE:.0%} of the peak FLOP/s and"
        f" {BANDWIDTH:.0%} of the bandwidth are assumed, and so are the lengths of prompts and answers."
        " Reading pictures and videos, downloads, loading and calibration do not count."
        f" Sources of the GPUs' numbers: {sources}."
    )
    lines = []
    sums = dict.fromkeys(GPUS, 0.0)
    jobs = 0
    for name, plan in made.items():
        hours, memory = dict.fromkeys(GPUS, 0.0), 0.0
        for job in plan.jobs:
            for gpu_name, gpu in GPUS.items():
                cost = cost_of(job.row, job.benchmark, plan.model, gpu, plan.table.batch_size, job.samples)
                hours[gpu_name] += cost.seconds / 3600
                memory = max(memory, cost.memory)
        jobs += len(plan.jobs)
        sums = {gpu: sums[gpu] + hours[gpu] for gpu in GPUS}
        cells = [name, str(len(plan.rows)), str(len(plan.jobs)), f"{memory / 1e9:.1f} GB"]
        lines.append([*cells, *(f"{hours[gpu]:.1f}" for gpu in GPUS)])
    lines.append(["all", "", str(jobs), "", *(f"{sums[gpu]:.1f}" for gpu in GPUS)])
    yield _table(["table", "rows", "jobs", "memory", *GPUS], lines, right=5)


def _benchmarks(made: Mapping[str, Plan]) -> Iterator[str]:
    used = {name for plan in made.values() for name in plan.table.benchmarks}
    lines = [
        [name, f"`{item.task}`", str(item.samples), item.samples_source, _joined(item.note, item.judge)]
        for name, item in read_catalogue().items()
        if name in used
    ]
    yield _table(["benchmark", "task of lmms-eval", "samples", "source of the number", "what to know"], lines)


def _joined(note: str, judge: bool) -> str:
    return " ".join(part for part in (note, "Asks a judge: needs `OPENAI_API_KEY`." if judge else "") if part)


def _command(name: str) -> str:
    return f"```bash\npython benchmarks/paper/run.py {name} --calibration PICTURES\n```"


def _averages(plan: Plan) -> Iterator[str]:
    rows = [row for row in plan.rows if row.kind in ("published", "also")]
    equal = "; ".join(dict.fromkeys(row.words for row in plan.rows if row.kind == "equal"))
    own = " These rows have budgets of their own:" if rows else ""
    yield f"Budgets of all methods: {equal}.{own}"
    if not rows:
        return
    whole = plan.table.visual_tokens
    seen = {row.name.partition("-seed-")[0]: row for row in rows}
    lines = [
        [name, row.words, f"{row.average:.1f}", f"{100 * row.average / whole:.1f} %", row.source]
        for name, row in seen.items()
    ]
    yield _table(["row", "budget", "layer average", f"of {whole}", "source"], lines)


def _cannot(plan: Plan) -> Iterator[str]:
    if plan.cannot:
        names = ", ".join(f"`{item.name}`" for item in plan.cannot)
        yield f"Rows that there cannot be (`--dry-run` says why of each): {names}."


def _figures(name: str, figures: Figures) -> Iterator[str]:
    lines = [
        [item.row, benchmark, f"{value:g}", item.source]
        for item in figures.scores
        if item.table == name
        for benchmark, value in item.values.items()
    ]
    lines += [
        [
            item.row,
            "share of the unpruned scores",
            f"{item.percent:g} %",
            " ".join((f"{item.source}.", item.note)).strip(),
        ]
        for item in figures.shares
        if item.table == name
    ]
    if lines:
        yield "Published figures:"
        yield _table(["row", "benchmark", "published", "source"], lines)
    else:
        yield "No published figure of this table was found in a source that we could read."


def _compared(name: str, plan: Plan, figures: Figures, found: Found) -> Iterator[str]:
    jobs = sum(len(row) for row in found.values())
    yield f"Our results: {jobs} of {len(plan.jobs)} jobs have finished."
    if not jobs:
        return
    published = {
        (item.row, key): value for item in figures.scores if item.table == name for key, value in item.values.items()
    }
    shares = {item.row: item.percent for item in figures.shares if item.table == name}
    unpruned = found.get("unpruned/all", {})
    lines = []
    for row in plan.rows:
        scores = found.get(row.name)
        if scores is None:
            continue
        cells = [
            _beside(scores[key].score if key in scores else None, published.get((row.name, key)))
            for key in plan.table.benchmarks
        ]
        kept = _beside(share(scores, unpruned), shares.get(row.name))
        lines.append([row.name, f"{row.average:.1f}", _measured(scores.values()), *cells, kept])
    yield (
        "Ours, and in brackets ours minus the published figure. The share is the mean over the benchmarks that the"
        f" unpruned model has finished ({', '.join(unpruned) or 'none yet'}):"
    )
    heads = ["row", "layer average", "measured", *plan.table.benchmarks, "share %"]
    yield _table(heads, lines, right=len(heads) - 1)
    samples = read_catalogue()
    other = {
        (key, result.samples)
        for row in found.values()
        for key, result in row.items()
        if result.samples != samples[key].samples
    }
    for key, count in sorted(other):
        yield f"{key} had {count} samples, and this page says {samples[key].samples}."


def _measured(results: Collection[Result]) -> str:
    """The lowest and the highest layer average that reports measured."""
    found = [result.layer_average for result in results if result.layer_average is not None]
    ends = dict.fromkeys(f"{end:.1f}" for end in (min(found), max(found))) if found else {}
    return " to ".join(ends)


def _beside(own: float | None, published: float | None) -> str:
    if own is None:
        return ""
    return f"{own:.1f}" if published is None else f"{own:.1f} ({own - published:+.1f})"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], right: int = 0) -> str:
    """A markdown table whose last columns stand on the right."""
    marks = ["---"] * (len(heads) - right) + ["---:"] * right
    rows = [heads, marks, *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
