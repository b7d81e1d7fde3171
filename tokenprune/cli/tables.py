"""What the commands print of results."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from tokenprune.cli.printing import REPORT, console, duration, print_lines, print_table
from tokenprune.core.text import one_line
from tokenprune.experiment.dry_run import Plan, PlannedSeries
from tokenprune.experiment.model_checks import model_checks
from tokenprune.experiment.profiling import ProfiledModel
from tokenprune.experiment.report_data import notes
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.summary import summarise
from tokenprune.experiment.tables import main_table
from tokenprune.measure import bench_table
from tokenprune.selectors.verdict import Verdict, VerdictRow
from tokenprune.tables.column import Column, fill, number, text
from tokenprune.tables.table import Cell, Heading, Table
from tokenprune.tasks.understood import Understood
from tokenprune.tuning import TuneResult


def print_result(result: ExperimentResult) -> None:
    """Print the main table of an experiment, and what to know about it."""
    summaries = summarise(result)
    print_table(main_table(summaries), REPORT)
    print_lines(*notes(result), *model_checks(result, summaries))


def print_tune(result: TuneResult) -> None:
    """Print the ranked candidates of a tune, those that cannot run, and the result in words."""
    for part in result.shown:
        if isinstance(part, Table):
            print_table(part, REPORT)
        else:
            print_lines(part)
    if result.setup.seconds:  # unknown of a tune that an older version ran
        print_lines(f"measured in {duration(result.setup.seconds)}")


def print_plan(plan: Plan) -> None:
    """Print what an experiment would run."""
    columns: tuple[Column[PlannedSeries], ...] = (
        text("series", lambda item: item.key),
        text("before layer", lambda item: ", ".join(map(str, item.layers))),
        number("batches", lambda item: item.batches, "{:.0f}"),
        number("forwards", lambda item: item.forwards, "<= {:.0f}"),
        Column("about", lambda item: Cell(duration(item.seconds)), "number"),
    )
    if plan.understood is not None:
        print_understood(plan.understood)
    print_table(fill("Plan", columns, plan.series))
    print_lines(*(f"The method `{title}` has the {settings}." for title, settings in plan.settings.items()))
    for key, (samples, seconds) in plan.tunes.items():
        print_lines(
            f"{key}: a tune on {samples} samples chooses it first, with at most {duration(seconds)} for each candidate;"
            " that is not in the table, and its answers count as the unpruned model's."
        )
    print_lines(
        f"{plan.questions} questions; the times are those of the first batch ({plan.batch_size} questions), times"
        f" the batches. Prefill timings: about {duration(plan.timing_seconds)}; the report's examples: about"
        f" {duration(plan.example_seconds)}. In all about {duration(plan.seconds)}. Nothing was written."
    )


def print_understood(found: Understood) -> None:
    """Print the first samples of a task as they are understood, and which samples are left out."""
    for row in found.rows:
        print_lines(f"{row.where} (id {row.id}, type {row.type})")
        parts = {
            "pictures": row.pictures,
            "question": row.question.splitlines(),
            "choices": row.choices,
            "expected": row.expected or ("the unpruned model's answer",),
        }
        for name, lines in parts.items():
            print_lines(*(f"  {name if not place else '':<10}{line}" for place, line in enumerate(lines)))
    of = f" of {found.total}" if found.count < found.total else ""
    print_lines(f"{found.count}{of} samples read: {found.used} used, {found.count - found.used} left out.")
    if 0 < found.open < found.used:
        print_lines(f"  used without choices, as open questions: {found.open}")
    for reason in found.left_out:
        more = ", ..." if reason.count > len(reason.places) else ""
        print_lines(f"  {reason.count} left out: {one_line(reason.example.what)}", f"      {reason.example.fix}")
        if reason.count > 1:
            print_lines(f"      these: {', '.join(reason.places)}{more}")
    print_lines(*found.remarks)


def print_profile(measured: ProfiledModel) -> None:
    """Print the entropy along the visual path, what is found in it, and the candidates of every verdict."""
    mean = measured.profile.path_mean
    low, high = min(mean.values()), max(mean.values())
    for point, value in mean.items():
        bar = "█" * (1 + round(40 * (value - low) / (high - low or 1)))
        console.print(f"{point:<8}  {value:8.4f}  {bar}", highlight=False)
    print_lines(*measured.sentences)
    for key, reason in measured.reasons.items():
        print_lines(f"\n{reason}")
        if key in measured.verdicts:
            _print_candidates(measured.verdicts[key])


def _print_candidates(verdict: Verdict) -> None:
    """Agreement with the unpruned model: a row per layer, a column per setting of the pruner before single layers.

    Candidates before layer 0, whose pruners are other ones, have a row each.
    """
    most = max(item.samples for item in verdict.candidates)
    early = [item for item in verdict.candidates if item.layers[0] == 0]
    single = [item for item in verdict.candidates if item.layers[0] > 0]
    if early:
        headings = [Heading("pruner"), Heading("layers"), Heading("agreement", "number")]
        lines = ([item.setting, " and ".join(map(str, item.layers)), _agreement(item, verdict, most)] for item in early)
        print_table(Table.of_texts("Candidates", headings, lines))
    if single:
        names = list(dict.fromkeys(item.setting for item in single))
        rows: dict[int, dict[str, str]] = defaultdict(dict)
        for item in sorted(single, key=lambda item: item.layers):
            rows[item.layers[0]][item.setting] = _agreement(item, verdict, most)
        titles = ("before layer", *(name or "agreement" for name in names))
        headings = [Heading(title, "number", rank=place) for place, title in enumerate(titles)]
        cells = ([str(layer), *(found.get(name, "") for name in names)] for layer, found in rows.items())
        print_table(Table.of_texts("Candidates", headings, cells))
    print_lines(f"agreement in percent, * chosen; (n) left after n of {most} samples; - cannot run")


def _agreement(row: VerdictRow, verdict: Verdict, most: int) -> str:
    """The agreement of a candidate, marked if it was chosen or left early."""
    if row.agreement is None:
        return "-"
    chosen = (row.layers, row.setting) == (verdict.layers, verdict.setting)
    early = f" ({row.samples})" if row.samples < most else ""
    return f"{'* ' if chosen else ''}{100 * row.agreement:.1f}{early}"


def print_estimate(result: dict[str, Any]) -> None:
    """Print the table of :func:`tokenprune.measure.estimate.estimate`."""
    rows = {**result["parts"], "total": result["total"], "decode step": result["decode_step"]}
    rows["output head (not in the total)"] = rows.pop("head")
    rows |= {f"counted: {name.replace('_', ' ')}": row for name, row in result.get("counted", {}).items()}
    lines = [[name, *_flops(row)] for name, row in rows.items()]
    cache = result["kv_cache_bytes"]
    sizes = (f"{cache[name] / 2**20:.1f} MiB" for name in ("unpruned", "pruned"))
    lines.append(["KV cache (16 bit)", *sizes, f"{100 * (1 - cache['pruned'] / cache['unpruned']):.2f} %"])
    kept = " -> ".join(map(str, [result["visual_tokens"], *result["kept"]]))
    print_lines(
        f"{result['model']}, {result['method']} ({result['budget']}): visual tokens {kept} before layer"
        f" {', '.join(map(str, result['layers']))}, {result['text_tokens']} text tokens; TFLOPs of one prompt"
    )
    headings = [Heading(""), *(Heading(title, "number") for title in ("unpruned", "pruned", "reduction"))]
    print_table(Table.of_texts("FLOPs", headings, lines))
    if "settings" in result:
        print_lines(f"{result['method']} has the {result['settings']}.")


def _flops(row: Mapping[str, float]) -> list[str]:
    whole = [f"{row['flops_unpruned'] / 1e12:.5f}"]
    if "flops_pruned" not in row:
        return whole
    return [*whole, f"{row['flops_pruned'] / 1e12:.5f}", f"{row['reduction_percent']:.2f} %"]


def print_bench(result: Mapping[str, Any]) -> None:
    """Print the tables of a bench, one per batch size."""
    for table in bench_table.tables(result):
        print_lines(table.title)
        print_table(table)
    print_lines(*bench_table.sentences(result))
