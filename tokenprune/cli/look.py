"""``tokenprune look``: methods on one prompt, drawn side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenprune.cli.options import MODEL, Device, Precision, takes_one_budget
from tokenprune.cli.outputs import check_writable
from tokenprune.cli.printing import AsJson, console, print_json
from tokenprune.core.optional import optional


@takes_one_budget
def look(
    *,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Pictures and videos of one prompt.")],
    question: Annotated[str, typer.Option(help="The question about them.")],
    model: Annotated[str, typer.Option(help=MODEL)],
    method: Annotated[
        list[str] | None, typer.Option(help="A named method, or a YAML file with one; repeat to compare several.")
    ] = None,
    budget: dict[str, Any],
    expected: Annotated[str | None, typer.Option(help="The expected answer, to mark right and wrong ones.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 32,
    frames: Annotated[int, typer.Option(min=1, help="Frames taken from a video, at even distances.")] = 8,
    output: Annotated[
        list[Path] | None, typer.Option("--output", "-o", help="The figure: .png, .svg or .pdf; repeat for several.")
    ] = None,
    device: Device = None,
    dtype: Precision = None,
    as_json: AsJson = False,
) -> None:
    """Draw which patches methods keep of a picture, what their scores saw, and what the model answers."""
    from tokenprune.cli.as_json import looks_data
    from tokenprune.cli.looking import in_words, look_methods, looks, read_sample
    from tokenprune.models.named import find_model
    from tokenprune.pictures.describe import describe
    from tokenprune.pictures.draw import EXTRA, check_format, draw, save

    methods = look_methods(method or (), budget)
    paths = output or [Path("look.png")]
    for path in paths:
        check_format(path)
        check_writable(path)
    optional("matplotlib", "drawing", EXTRA)
    spec = find_model(model, "look", {"device": device, "dtype": dtype}, instruction="")  # the question as it is
    sample = read_sample(images, question, expected, frames)
    shown = looks(spec.load(), methods, sample, max_new_tokens)
    figure = draw(shown)
    for path in paths:
        save(figure, path, title=shown[0].question, description=" ".join(map(describe, shown)))
    if as_json:
        print_json(looks_data(shown, [in_words(item) for item in shown], paths))
        return
    for item in shown:
        print(in_words(item))
    for path in paths:
        console.print(f"written: {path}", highlight=False)
