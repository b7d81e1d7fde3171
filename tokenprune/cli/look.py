"""What ``tokenprune look`` does: methods on one prompt, drawn side by side."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.cli.failures import check_writable
from tokenprune.config import Config, Method
from tokenprune.core.component import FromRegistry
from tokenprune.core.optional import optional
from tokenprune.core.plugins import registry
from tokenprune.errors import BudgetError, ConfigError, SampleError, TokenPruneError
from tokenprune.methods.named import find_shipped, list_methods
from tokenprune.models.answer import generate
from tokenprune.models.base import LoadedModel, ModelSpec
from tokenprune.models.encode import encode
from tokenprune.pictures.describe import describe
from tokenprune.pictures.draw import EXTRA, check_format, draw, save
from tokenprune.pictures.look import Look
from tokenprune.records.images import URL, Source, read_image
from tokenprune.records.video import read_video
from tokenprune.run import apply
from tokenprune.tasks.base import Sample, Video

UNPRUNED = "unpruned"
#: Stands beside the budget of a method whose selector compared answers to this prompt.
FOUND_HERE = ", layer found on this prompt"
VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv"})
KINDS = "give pictures (png, jpg, webp ...) or videos (mp4, mov, mkv, webm ...)"


class LookModel(Config):
    """The model of a look, as its name stands for it.

    Attributes:
        model: The model.
    """

    model: Annotated[ModelSpec, FromRegistry("models")]


@dataclass(frozen=True)
class Prompt:
    """What the methods are shown.

    Attributes:
        sample: The sample.
        pictures: Its pictures in the order of the prompt; a video is its frames.
        expected: The expected answer, or None.
        max_new_tokens: Length of an answer at most.
    """

    sample: Sample
    pictures: tuple[Any, ...]
    expected: str | None
    max_new_tokens: int


def look_model(name: str) -> ModelSpec:
    """The model that a name stands for: a registered one, or a checkpoint, which is asked the question as it is."""
    known = name in registry("models").names()
    data = {"name": name} if known else {"name": "hf", "checkpoint": name, "instruction": ""}
    return LookModel.from_dict({"model": data}, "look").model


def look_methods(names: Sequence[str], budget: str | None, fields: dict[str, Any]) -> dict[str, Method]:
    """The methods with a budget, by their titles.

    Args:
        names: Named methods, or YAML files.
        budget: Name of the budget; None for each method's own.
        fields: The fields of the budget.

    Raises:
        ConfigError: There are none, or two have the same title.
        UnknownNameError: No method of a name is installed.
    """
    if not names:
        known = ", ".join(method.name for method in list_methods() if method.problem is None)
        raise ConfigError("look: no method", f"give --method, several times to compare: {known}; or a YAML file")
    methods: dict[str, Method] = {}
    for name in names:
        method = find_shipped(name).method(budget, **fields)
        title = method.label or name
        if title in methods or title == UNPRUNED:
            raise ConfigError(f"look: two columns are named {title!r}", "give each method once, with its own label")
        methods[title] = method
    return methods


def check_outputs(paths: Sequence[Path]) -> None:
    """Find out before any work whether the figure can be written.

    Raises:
        OutputError: A file cannot be written, or its name says no format.
        MissingDataError: matplotlib is not installed.
    """
    for path in paths:
        check_format(path)
        check_writable(path)
    optional("matplotlib", "drawing", EXTRA)


def read_prompt(paths: Sequence[str], question: str, expected: str | None, frames: int, length: int) -> Prompt:
    """The pictures and videos of one prompt.

    Args:
        paths: The files. The model gets the pictures in their order, and then the videos.
        question: The question.
        expected: The expected answer, or None.
        frames: Frames that are taken from a video.
        length: Tokens of an answer at most.

    Raises:
        SampleError: A file is missing or cannot be read.
        ConfigError: There is no question.
    """
    if not question.strip():
        raise ConfigError("look: the question is empty", "give --question")
    sources = [_source(path) for path in paths]
    stills = tuple(_picture(source) for source in sources if not _is_video(source))
    videos = tuple(_video(source, frames) for source in sources if _is_video(source))
    sample = Sample(paths[0], stills, question.strip(), expected or "", "", paths[0], videos=videos)
    shown = (*stills, *(frame for video in videos for frame in video.frames))
    return Prompt(sample, shown, expected, length)


def looks(loaded: LoadedModel, methods: dict[str, Method], prompt: Prompt) -> list[Look]:
    """One look per method, and that of the unpruned model before them.

    Layer selectors that measure the model do so on the prompt itself. One that looks at answers, too, has seen this
    one: the look says so beside the budget.

    Args:
        loaded: The model.
        methods: The methods by their titles.
        prompt: The prompt.

    Raises:
        SampleError: The model cannot take the prompt.
        UnsupportedFeatureError: The logits of an answer hold NaN or infinity.
        BudgetError: A method drops nothing.
        TokenPruneError: A method cannot run on the model, or the family's adapter knows no grid.
    """
    inputs, _ = encode(loaded, {0: prompt.sample}, strict=True)
    with _named(UNPRUNED):
        answer = _answer(loaded, prompt, inputs)
    found = []
    for title, method in methods.items():
        with _named(title), apply(loaded.model, method, calibration=[inputs]) as run:
            run.annotate(sample_ids=[0])
            said = _answer(loaded, prompt, inputs)
            look = run.look(
                prompt.pictures,
                loaded.processor,
                question=prompt.sample.question,
                answer=said,
                expected=prompt.expected,
            )
        if look.kept.all():
            raise BudgetError(
                f"method {title!r} with budget '{look.budget}' drops none of the {look.tokens} visual tokens",
                "ask for fewer: --tokens, --keep, --ratio or --average",
            )
        seen = FOUND_HERE if method.layers.runs_the_method else ""
        found.append(replace(look, method=title, budget=look.budget + seen))
    unpruned = replace(found[0], method=UNPRUNED, stages=(), budget="", answer=answer)
    return [unpruned, *found]


def in_words(look: Look) -> str:
    """A look in plain sentences, as the terminal shows it."""
    return describe(look) + (" Its layer was found on this prompt." if look.budget.endswith(FOUND_HERE) else "")


def write(shown: Sequence[Look], paths: Sequence[Path]) -> None:
    """Draw looks and write the figure to every path."""
    figure = draw(shown)
    for path in paths:
        save(figure, path, title=shown[0].question, description=" ".join(map(describe, shown)))


def _answer(loaded: LoadedModel, prompt: Prompt, inputs: Any) -> str:
    generated = generate(loaded, [prompt.sample], inputs, prompt.max_new_tokens)
    generated.check()
    return loaded.decode(generated.ids)[0]


@contextmanager
def _named(title: str) -> Iterator[None]:
    """Name the method in an error."""
    try:
        yield
    except TokenPruneError as error:
        raise type(error)(f"method {title!r}: {error.what}", error.fix) from error


def _source(name: str) -> Source:
    """Where a file is.

    Raises:
        SampleError: There is no such file.
    """
    if URL.match(name):
        raise SampleError(f"{name!r} is a URL, and nothing is downloaded", "download it, and give the file")
    path = Path(name).expanduser()
    try:
        there = path.stat() and path.is_file()
    except OSError as error:
        why = "there is no such file" if error.errno == errno.ENOENT else error.strerror
        raise SampleError(f"{name!r} cannot be read ({why})", "check the path") from None
    if not there:
        raise SampleError(f"{name!r} is no file", KINDS)
    return Source(name, path)


def _is_video(source: Source) -> bool:
    assert source.path is not None
    return source.path.suffix.lower() in VIDEOS


def _picture(source: Source) -> Any:
    with _as_argument():
        return read_image(source, "look")


def _video(source: Source, frames: int) -> Video:
    with _as_argument():
        found: NDArray[np.uint8]
        found, fps = read_video(source, frames, "look")
        return Video(found, fps)


@contextmanager
def _as_argument() -> Iterator[None]:
    """What to do about a file that was named on the command line and not in a row of a table."""
    try:
        yield
    except SampleError as error:
        raise SampleError(error.what, KINDS) from error
