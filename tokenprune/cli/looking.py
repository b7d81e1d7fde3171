"""What ``tokenprune look`` does: methods on one prompt."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenprune.config import Method
from tokenprune.core.forward_errors import forward_errors
from tokenprune.core.references import UNPRUNED
from tokenprune.datasets.media import Source, source
from tokenprune.datasets.picture import read_image
from tokenprune.datasets.video import read_video
from tokenprune.errors import BudgetError, ConfigError, SampleError, TokenPruneError
from tokenprune.methods.named import by_title, list_methods
from tokenprune.models.answer import generate
from tokenprune.models.base import LoadedModel
from tokenprune.models.encode import encode_one
from tokenprune.pictures.describe import describe
from tokenprune.pictures.look import Look
from tokenprune.run import apply
from tokenprune.tasks.base import Sample, Video, sample_pictures

#: Stands beside the budget of a method whose selector compared answers to this prompt.
FOUND_HERE = ", layer found on this prompt"
VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv"})
KINDS = "give pictures (png, jpg, webp ...) or videos (mp4, mov, mkv, webm ...)"


def look_methods(names: Sequence[str], budget: Mapping[str, Any]) -> dict[str, Method]:
    """The methods with a budget, by their titles.

    Args:
        names: Named methods, or YAML files.
        budget: The budget as :func:`~tokenprune.load_method` takes it; empty for each method's own.

    Raises:
        ConfigError: There are none, or two have the same title.
        UnknownNameError: No method of a name is installed.
    """
    if not names:
        known = ", ".join(method.name for method in list_methods() if method.problem is None)
        raise ConfigError("look: no method", f"give --method, several times to compare: {known}; or a YAML file")
    named = by_title(names, (UNPRUNED,), "columns")
    return {title: method.method(**budget) for title, method in named.items()}


def read_sample(paths: Sequence[str], question: str, expected: str | None, frames: int) -> Sample:
    """Read the pictures and videos of one prompt.

    Args:
        paths: The files. The model gets the pictures in their order, and then the videos.
        question: The question.
        expected: The expected answer, or None.
        frames: Frames that are taken from a video.

    Raises:
        SampleError: A file is missing or cannot be read.
        ConfigError: There is no question.
    """
    if not question.strip():
        raise ConfigError("look: the question is empty", "give --question")
    try:
        files = [source(path, Path(), "look") for path in paths]
        images = tuple(read_image(file, "look") for file in files if not _is_video(file))
        videos = tuple(Video(*read_video(file, frames, "look")) for file in files if _is_video(file))
    except SampleError as error:  # the usual fix talks about rows of a dataset
        raise SampleError(error.what, KINDS) from error
    return Sample(paths[0], images, question.strip(), expected or "", "", paths[0], videos=videos)


def _is_video(file: Source) -> bool:
    return Path(file.key).suffix.lower() in VIDEOS


def looks(loaded: LoadedModel, methods: Mapping[str, Method], sample: Sample, max_new_tokens: int) -> list[Look]:
    """Look at the unpruned model, and at every method.

    Layer selectors that measure the model do so on the prompt itself. One that looks at answers, too, has seen this
    one: the look says so beside the budget.

    Args:
        loaded: The model.
        methods: The methods by their titles.
        sample: The prompt.
        max_new_tokens: Tokens of an answer at most.

    Raises:
        SampleError: The model cannot take the prompt.
        UnsupportedFeatureError: The logits of an answer hold NaN or infinity.
        BudgetError: A method drops nothing.
        TokenPruneError: A method cannot run on the model, or the family's adapter knows no grid.
    """
    inputs = encode_one(loaded, sample)
    with _named(UNPRUNED):
        answer = answer_text(loaded, sample, inputs, max_new_tokens)
    found = []
    for title, method in methods.items():
        with _named(title), apply(loaded.model, method, calibration=[inputs]) as run:
            run.annotate(sample_ids=[0])
            said = answer_text(loaded, sample, inputs, max_new_tokens)
            made = run.look(
                sample_pictures(sample),
                loaded.processor,
                question=sample.question,
                answer=said,
                expected=sample.answer or None,
            )
        if made.kept.all():
            raise BudgetError(
                f"method {title!r} with budget '{made.budget}' drops none of the {made.tokens} visual tokens",
                "ask for fewer: --average-tokens, --average-ratio, --keep-tokens or --keep-ratio",
            )
        seen = FOUND_HERE if method.layers.runs_the_method else ""
        found.append(replace(made, method=title, budget=made.budget + seen))
    unpruned = replace(found[0], method=UNPRUNED, stages=(), budget="", answer=answer)
    return [unpruned, *found]


def in_words(shown: Look) -> str:
    """A look in plain sentences, as the terminal shows it."""
    return describe(shown) + (" Its layer was found on this prompt." if shown.budget.endswith(FOUND_HERE) else "")


def answer_text(loaded: LoadedModel, sample: Sample, inputs: Mapping[str, Any], max_new_tokens: int) -> str:
    """The answer to a prompt, with the model as it is."""
    return generate(loaded, [sample], inputs, max_new_tokens).checked().texts[0]


@contextmanager
def _named(title: str) -> Iterator[None]:
    """Name the method in an error; an exception in the model becomes one."""
    try:
        with forward_errors():
            yield
    except TokenPruneError as error:
        raise type(error)(f"method {title!r}: {error.what}", error.fix) from error
