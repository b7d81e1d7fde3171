"""``tokenprune bench``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokenprune.cli.interrupt import nothing_kept, stoppable
from tokenprune.cli.options import ANY_MODEL, Device, Precision, budget_option
from tokenprune.cli.outputs import check_writable
from tokenprune.cli.printing import AsJson, print_json, print_written
from tokenprune.cli.progress import progress_bar


def bench(
    model: Annotated[str, typer.Option(help=ANY_MODEL)] = "llava-0.5b",
    method: Annotated[
        list[str] | None, typer.Option(help="A named method, a YAML file with one, or all; repeat for several.")
    ] = None,
    average_tokens: Annotated[list[int] | None, budget_option("average_tokens", several=True)] = None,
    average_ratio: Annotated[list[float] | None, budget_option("average_ratio", several=True)] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size; repeat for several.")] = None,
    text_tokens: Annotated[int, typer.Option(help="Text tokens per prompt.")] = 60,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="Use prompts of different lengths, with one or two images.")
    ] = False,
    decode: Annotated[int, typer.Option(help="Decode steps after each prefill.")] = 16,
    rounds: Annotated[int, typer.Option(help="Timed rounds.")] = 7,
    warmup: Annotated[int, typer.Option(help="Untimed rounds before these.")] = 1,
    device: Device = None,
    dtype: Precision = None,
    attention: Annotated[str, typer.Option(help="sdpa, eager, flash_attention_2.")] = "sdpa",
    cache: Annotated[str, typer.Option(help="dynamic, or static: with room for the prompt and the steps.")] = "dynamic",
    compile_steps: Annotated[
        bool, typer.Option("--compile", help="Time every series with compiled decode steps, too; needs --cache static.")
    ] = False,
    image_size: Annotated[int, typer.Option(help="Side in pixels of the images for a checkpoint.")] = 448,
    output: Annotated[Path | None, typer.Option(help="Write all measurements to this JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time methods against the unpruned model: prefill, decode, memory; paired rounds, medians with quartiles."""
    from tokenprune.cli.as_json import bench_data
    from tokenprune.cli.tables import print_bench
    from tokenprune.measure import bench_table
    from tokenprune.measure.bench import BenchConfig, run_bench

    lists = {"methods": method, "average_tokens": average_tokens, "average_ratio": average_ratio, "batches": batch}
    config = BenchConfig.from_dict(
        {
            "model": model,
            **{name: values for name, values in lists.items() if values},
            "text_tokens": text_tokens,
            "ragged": ragged,
            "decode": decode,
            "rounds": rounds,
            "warmup": warmup,
            "device": device or "auto",
            "dtype": dtype or "auto",
            "attention": attention,
            "cache": cache,
            "compile": compile_steps,
            "image_size": image_size,
        },
        "bench",
    )
    if output is not None:
        check_writable(output)
        check_writable(output.with_suffix(".md"))
    with stoppable(nothing_kept), progress_bar(Console(stderr=True), width=20, transient=True) as show_progress:
        result = run_bench(config, show_progress)
    if not as_json:
        print_bench(result)  # first: it took long, and the disk may be full
    written = [] if output is None else [output]
    for path in written:
        bench_table.save(result, path)
    if as_json:
        print_json(bench_data(result, written))
    else:
        print_written(written)
