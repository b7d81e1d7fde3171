"""Samples as inputs of a model; those that it cannot encode are named and left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from tokenprune.errors import SampleError, TokenPruneError
from tokenprune.models.base import LoadedModel
from tokenprune.tasks.base import Sample

Inputs = Mapping[str, Tensor]


@dataclass
class Encoded:
    """Samples as inputs of a model.

    Attributes:
        batches: The places of the samples of each batch, and its inputs: one batch, or several of one sample each where
            the samples cannot be encoded together.
        refused: Place of every sample that the model cannot encode -> why.
    """

    batches: list[tuple[tuple[int, ...], Inputs]] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)


def encode(loaded: LoadedModel, samples: Mapping[int, Sample], strict: bool = False) -> Encoded:
    """The inputs of the samples that the model can encode.

    A processor refuses a whole batch for one odd picture, or because it cannot put two kinds of samples together. So
    after an error each sample is tried alone, and then those that are left together.

    Args:
        loaded: The model.
        samples: The samples by their places.
        strict: Whether a sample that the model cannot encode is an error.

    Raises:
        SampleError: A sample cannot be encoded, and ``strict`` is set.
    """
    if not samples:
        return Encoded()
    together = _try(loaded, samples) if len(samples) > 1 else None
    if together is not None:
        return Encoded([(tuple(samples), together)])
    found = Encoded()
    for place, sample in samples.items():
        try:
            found.batches.append(((place,), encode_one(loaded, sample)))
        except SampleError as error:
            if strict:
                raise
            found.refused[place] = str(error)
    good = {place: sample for place, sample in samples.items() if place not in found.refused}
    if 1 < len(good) < len(samples):
        together = _try(loaded, good)
        if together is not None:
            found.batches = [(tuple(good), together)]
    return found


def encode_one(loaded: LoadedModel, sample: Sample) -> Inputs:
    """The inputs of one sample.

    Raises:
        SampleError: The model cannot encode it.
    """
    try:
        return loaded.encode([sample])
    except SampleError:  # as it is: an error that is its own cause has no end
        raise
    except Exception as error:
        raise unusable(error, f"{sample.id!r}") from error


def _try(loaded: LoadedModel, samples: Mapping[int, Sample]) -> Inputs | None:
    """The inputs of samples together; None if they cannot be encoded, so that no exception keeps them in memory."""
    try:
        return loaded.encode(list(samples.values()))
    except Exception:
        return None


def unusable(error: Exception, name: str) -> SampleError:
    """Turn a processor's exception into a one-line SampleError."""
    text = str(error) if isinstance(error, TokenPruneError) else f"{type(error).__name__}: {error}"
    return SampleError(f"sample {name} cannot be encoded ({' '.join(text.split())})")
