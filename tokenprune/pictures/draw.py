"""Draw looks: which patches stay, what the score saw, which tokens were merged, and the answers. Needs matplotlib."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenprune.core.optional import optional
from tokenprune.errors import ConfigError, OutputError, UnsupportedFeatureError
from tokenprune.pictures.describe import describe, printable, shorter
from tokenprune.pictures.look import Look

if TYPE_CHECKING:  # matplotlib is optional
    from matplotlib.figure import Figure

#: What a figure is saved as, by the end of the file's name.
FORMATS = (".png", ".svg", ".pdf")
EXTRA = "report"


def draw(
    looks: Look | Sequence[Look],
    path: str | Path | None = None,
    *,
    width: float = 7.0,
    columns: int | None = None,
    pictures: int = 16,
    row: int = 8,
    scores: bool = True,
    merges: bool = True,
    dpi: int = 200,
) -> Figure:
    """Draw one or several looks of the same sample.

    Dropped patches are faded, and kept ones have a line around them. Every stage has a panel with its number of tokens;
    below or beside it are the scores as a heat map, and where tokens were merged. Stages stand side by side. A sample
    with several pictures, or the frames of a video, has a strip of them for every stage.

    Args:
        looks: The looks: methods on the same sample. One without stages is the unpruned model, and the answers of the
            others are compared with its answer.
        path: The file to write, ``.png``, ``.svg`` or ``.pdf``; None for none.
        width: Width of the figure in inches.
        columns: Stages side by side; None chooses by their number and the shape of the picture.
        pictures: Pictures of the sample that are shown, at even distances if it has more.
        row: Pictures in a row, where a sample has several.
        scores: Whether heat maps of scores are drawn.
        merges: Whether it is drawn where tokens were merged.
        dpi: Dots per inch of a PNG.

    Returns:
        The figure, of matplotlib. :func:`save` writes it to further files.

    Raises:
        ConfigError: There are no looks, the number of pictures is wrong, or a setting is out of range.
        UnsupportedFeatureError: It is not known where a look's tokens are on its pictures.
        MissingDataError: matplotlib is not installed.
        OutputError: The file cannot be written, or its name ends with none of the three.
    """
    shown = [looks] if isinstance(looks, Look) else list(looks)
    _check(shown, width=width, columns=columns, pictures=pictures, row=row, dpi=dpi)
    if path is not None:
        check_format(path)
    optional("matplotlib", "drawing", EXTRA)
    from tokenprune.pictures.figure import Layout, Settings

    figure = Layout(shown, Settings(width, columns, pictures, row, scores, merges)).figure()
    if path is not None:
        save(figure, path, dpi=dpi, title=shown[0].question, description=" ".join(map(describe, shown)))
    return figure


def save(figure: Figure, path: str | Path, *, dpi: int = 200, title: str = "", description: str = "") -> Path:
    """Write a figure. The same figure gives the same bytes: no dates, no random ids.

    Args:
        figure: The figure.
        path: The file, ``.png``, ``.svg`` or ``.pdf``. Its folder is made.
        dpi: Dots per inch of a PNG, and of the pictures in an SVG or a PDF.
        title: The title in the file's metadata.
        description: The description there: a text alternative.

    Returns:
        The path.

    Raises:
        OutputError: The file cannot be written, or its name ends with none of the three.
    """
    file = Path(path)
    data = encoded(figure, check_format(file), dpi=dpi, title=title, description=description)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    except OSError as error:
        raise OutputError(f"cannot write {file} ({error.strerror or error})", "choose another file") from None
    return file


def encoded(figure: Figure, ending: str, *, dpi: int = 200, title: str = "", description: str = "") -> bytes:
    """The bytes of a figure's file; arguments as for :func:`save`, with the file's ending in place of its path."""
    matplotlib = optional("matplotlib", "drawing", EXTRA)
    from tokenprune.pictures.page import SETTINGS

    title, description = printable(title), printable(description)  # control characters would break an SVG

    metadata: dict[str, dict[str, Any]] = {
        ".png": {"Software": None, "Title": title, "Description": description},
        ".svg": {"Date": None, "Creator": "tokenprune", "Title": title, "Description": description},
        ".pdf": {"CreationDate": None, "Creator": "tokenprune", "Title": title, "Subject": description},
    }
    kept = {name: value for name, value in metadata[ending].items() if value != ""}
    out = io.BytesIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(out, dpi=dpi, format=ending[1:], metadata=kept)
    _warn(caught)
    return out.getvalue()


def _warn(caught: list[warnings.WarningMessage]) -> None:
    """Pass warnings on, with one in place of those about single letters."""
    letters = {str(item.message) for item in caught if str(item.message).startswith("Glyph ")}
    for item in caught:
        if str(item.message) not in letters:
            warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
    if letters:
        what = f"no installed font has {len(letters)} of the letters, which are drawn as boxes"
        warnings.warn(f"{what}; install one that has them, e.g. Noto Sans CJK", stacklevel=2)


def check_format(path: str | Path) -> str:
    """The ending of a figure's file name, in lower case.

    Raises:
        OutputError: It is none of those that figures can be saved as.
    """
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise OutputError(f"a figure cannot be saved as {str(path)!r}", f"end the name with {', '.join(FORMATS)}")
    return ending


def _check(looks: list[Look], **numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not value >= 1:
            raise ConfigError(f"draw: {name} is {value}", "give 1 or more")
    if not looks:
        raise ConfigError("draw: no looks", "give at least one")
    questions = list(dict.fromkeys(look.question for look in looks if look.question))
    if len(questions) > 1:
        asked = " and ".join(repr(shorter(question, 60)) for question in questions[:2])
        raise ConfigError(f"draw: the looks are of several samples: they ask {asked}", "draw each sample by itself")
    for look in looks:
        if not look.views:
            what = f"{look.method}: it is not known where the visual tokens are on the pictures"
            raise UnsupportedFeatureError(what, "use a family whose adapter knows the grid")
        needed = 1 + max(view.picture for view in look.views)
        if look.pictures and len(look.pictures) < needed:
            what = f"{look.method}: {len(look.pictures)} pictures are given, and the tokens are on {needed}"
            raise ConfigError(what, "give all pictures of the sample in the order of the prompt, or none")
