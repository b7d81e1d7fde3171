"""Samples as inputs of a model; those that it cannot encode are named and left out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tokenprune.errors import SampleError, TokenPruneError
from tokenprune.models.base import LoadedModel
from tokenprune.tasks.base import Sample


def encode(
    loaded: LoadedModel, samples: Mapping[int, Sample], strict: bool
) -> tuple[Mapping[str, Tensor], dict[int, str]]:
    """The inputs of the samples that the model can encode, and position -> why for the others.

    A processor refuses a whole batch for one odd picture, so after an error each sample is tried alone.
    """
    if not samples:
        return {}, {}
    try:
        return loaded.encode(list(samples.values())), {}
    except Exception as error:
        if len(samples) == 1 or strict:
            (name, *_) = [f"{sample.id!r}" for sample in samples.values()]
            refused = unusable(error, name if len(samples) == 1 else f"a sample of {name}'s batch")
            if strict:
                raise refused from error
            return {}, dict.fromkeys(samples, str(refused))
    reasons: dict[int, str] = {}
    for position, sample in samples.items():
        reasons |= encode(loaded, {position: sample}, strict)[1]
    rest = {position: sample for position, sample in samples.items() if position not in reasons}
    if len(rest) == len(samples):
        names = ", ".join(repr(sample.id) for sample in samples.values())
        what = f"samples {names} cannot be encoded together, but each alone can"
        raise SampleError(what, "set batch_size to 1")
    inputs, more = encode(loaded, rest, strict)
    return inputs, reasons | more


def unusable(error: Exception, name: str) -> SampleError:
    """Turn a processor's exception into a :class:`SampleError` of one line."""
    if isinstance(error, SampleError):
        return error
    text = str(error) if isinstance(error, TokenPruneError) else f"{type(error).__name__}: {error}"
    return SampleError(f"sample {name} cannot be encoded ({' '.join(text.split())})")
