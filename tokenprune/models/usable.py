"""Samples that a model can run, for what measures a model on them: calibrations and tunes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenprune.core.forward_errors import forward_errors, of_samples, release
from tokenprune.core.text import one_line
from tokenprune.engine.trials.fidelity import last_token_logits
from tokenprune.errors import SampleError, TokenPruneError, within
from tokenprune.models.answer import check_prompt_logits
from tokenprune.models.base import LoadedModel
from tokenprune.models.encode import encode
from tokenprune.tasks.base import Sample

Inputs = Mapping[str, Any]


@dataclass
class Usable:
    """Samples that a model can run, in batches.

    Attributes:
        batches: The model's inputs.
        samples: The samples of each batch.
        skipped: Id of every sample that cannot be used -> why.
    """

    batches: list[Inputs] = field(default_factory=list)
    samples: list[list[Sample]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def usable(loaded: LoadedModel, samples: Sequence[Sample], batch_size: int, strict: bool = False) -> Usable:
    """Encode samples, and run the unpruned model on each batch once.

    A batch that cannot be encoded or run becomes batches of one sample; what fails alone is left out.

    Args:
        loaded: The model.
        samples: The samples.
        batch_size: Samples per batch.
        strict: Whether a sample that cannot be used is an error.

    Raises:
        SampleError: A sample cannot be used, and ``strict`` is set.
        TokenPruneError: The model cannot run, whatever the samples are.
    """
    found = Usable()
    for start in range(0, len(samples), batch_size):
        batch = dict(enumerate(samples[start : start + batch_size]))
        while batch:
            groups, refused = _runnable(loaded, batch, strict)
            if not refused:
                found.batches += [inputs for _, inputs in groups]
                found.samples += [[batch[place] for place in places] for places, _ in groups]
                break
            found.skipped |= {batch[place].id: why for place, why in refused.items()}
            batch = {place: sample for place, sample in batch.items() if place not in refused}
    return found


def _runnable(
    loaded: LoadedModel, samples: Mapping[int, Sample], strict: bool
) -> tuple[list[tuple[tuple[int, ...], Inputs]], dict[int, str]]:
    """Batches that the model can run: the places of their samples, and the inputs; and place -> why of the others."""
    encoded = encode(loaded, samples, strict)
    groups: list[tuple[tuple[int, ...], Inputs]] = []
    refused = dict(encoded.refused)
    for places, inputs in encoded.batches:
        error = why_not(loaded, [samples[place] for place in places], inputs)
        if error is None:
            groups.append((places, inputs))
        elif len(places) > 1:
            for place in places:
                alone, lost = _runnable(loaded, {place: samples[place]}, strict)
                groups += alone
                refused |= lost
        elif strict:
            raise SampleError(error.what, error.fix) from error
        else:
            refused[places[0]] = one_line(error)
    return groups, refused


def why_not(loaded: LoadedModel, samples: Sequence[Sample], inputs: Inputs) -> TokenPruneError | None:
    """Why the unpruned model cannot run a batch; None if it can.

    Raises:
        TokenPruneError: It cannot run whatever the samples are.
    """
    first, last = samples[0].id, samples[-1].id
    where = f"sample {first!r}" if first == last else f"samples {first!r} to {last!r}"
    try:
        with within(f"the unpruned model on {where}"), forward_errors():
            check_prompt_logits(last_token_logits(loaded.model, inputs)[:, None], samples)
    except TokenPruneError as error:
        if not of_samples(error):
            raise
        release(error)
        return error
    return None
