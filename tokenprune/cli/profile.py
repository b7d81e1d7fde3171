"""``tokenprune profile``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tokenprune.cli.outputs import check_writable
from tokenprune.cli.printing import AsJson, console, print_json, print_written


def profile(
    config: Annotated[
        Path, typer.Argument(help="An experiment file (YAML); its model, task and calibration are used.")
    ],
    output: Annotated[Path, typer.Option(help="File to write the profile to.")] = Path("profile.json"),
    as_json: AsJson = False,
) -> None:
    """Measure a model's entropy curve, find where it collapses, and verify the methods whose layer selector does so."""
    from tokenprune.cli.as_json import profile_data
    from tokenprune.cli.tables import print_profile
    from tokenprune.experiment import ExperimentConfig
    from tokenprune.experiment.profile_plot import profile_plot
    from tokenprune.experiment.profiling import profile_model

    experiment = ExperimentConfig.from_yaml(config)
    check_writable(output)
    for end in (".png", ".svg", ".pdf"):
        check_writable(output.with_suffix(end))
    measured = profile_model(experiment)
    if as_json:  # first: it took long, and the disk may be full
        print_json(profile_data(measured))
    else:
        print_profile(measured)
    measured.profile.save(output)
    if not as_json:
        console.print(f"written: {output} ({len(measured.profile.curves)} samples)", highlight=False)
    try:
        drawn = profile_plot(measured, output.with_suffix(".png"))
        if not as_json:
            print_written(drawn)
    except ImportError as error:
        print(f"no picture was drawn ({error}); pip install 'tokenprune-mllm[report]'", file=sys.stderr)
