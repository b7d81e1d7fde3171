"""The samples of a tune: encoded once, kept on the host, on the device while they are used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.budgets.base import Budget, Schedule
from tokenprune.core.component_errors import component_errors
from tokenprune.engine.trials.calibrate import sample_sizes
from tokenprune.engine.trials.distinct import distinct
from tokenprune.errors import BudgetError, ConfigError, SampleError, TokenPruneError, UnsupportedFeatureError
from tokenprune.fingerprint import fingerprint
from tokenprune.flops.decoder import prefill_cost
from tokenprune.models.base import LoadedModel
from tokenprune.models.usable import Usable, usable
from tokenprune.tasks.base import Task
from tokenprune.tuning.budgets import EqualCost, PrefillTime, cost_label

Inputs = Mapping[str, Any]


class HostBatches(Sequence[Inputs]):
    """Batches whose tensors wait on the host: only the batch in work takes memory of the device.

    Args:
        batches: The batches.
        device: Where the model runs.
    """

    def __init__(self, batches: Sequence[Inputs], device: torch.device) -> None:
        self._batches = [_moved(inputs, torch.device("cpu")) for inputs in batches]
        self._device = device

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        """One batch on the device; nobody asks for slices."""
        return _moved(self._batches[index], self._device)


def _moved(inputs: Inputs, device: torch.device) -> Inputs:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def read_samples(task: Task, loaded: LoadedModel, count: int, batch_size: int, strict: bool) -> Usable:
    """Read samples of different pictures, and encode those that the model can run. The others are left out.

    Args:
        task: The task; its :meth:`~tokenprune.tasks.base.Task.calibration` gives the samples.
        loaded: The model that encodes them.
        count: How many.
        batch_size: Samples per batch.
        strict: Whether a sample that cannot be used is an error.

    Raises:
        SampleError: None can be used, or one cannot and ``strict`` is set.
    """
    found = Usable()
    with component_errors("tasks", task, "calibration(count)"):
        chosen = list(task.calibration(count))
    for start in range(0, len(chosen), batch_size):
        part = usable(loaded, chosen[start : start + batch_size], batch_size, strict)
        found.batches += [_moved(inputs, torch.device("cpu")) for inputs in part.batches]
        found.samples += part.samples
        found.skipped |= part.skipped
    if not found.batches:
        reason = next(iter(found.skipped.values()), None) or _why_unreadable(task)
        raise SampleError(f"none of the task's samples can be used; the first: {reason}", "check the data")
    return found


def _why_unreadable(task: Task) -> str:
    samples = task.samples()
    if not len(samples):
        return "there is none"
    try:
        samples[0]
    except SampleError as error:
        return str(error)
    return "the task has no calibration samples"


def check_samples(adapter: Adapter, batches: Sequence[Inputs]) -> list[tuple[int, int]]:
    """Visual and other tokens of every sample.

    Raises:
        ConfigError: There are no samples, or a batch has no ids.
        UnsupportedFeatureError: A sample has no visual tokens.
    """
    for number, inputs in enumerate(batches, 1):
        if "input_ids" not in inputs:
            raise ConfigError(f"batch {number} has no input_ids", "give inputs as for model(**inputs)")
    count = sum(len(inputs["input_ids"]) for inputs in batches)
    sizes = sample_sizes(adapter, batches)
    if len(sizes) < count:
        raise UnsupportedFeatureError(
            f"{count - len(sizes)} of {count} samples have no visual tokens, so nothing could be pruned",
            "give samples with a picture or video in the prompt",
        )
    return sizes


@dataclass(frozen=True)
class Counted:
    """The samples that count: every one once, however often it was given.

    Attributes:
        places: The places of each batch whose samples count.
        visual: Visual tokens of these samples, float32 ``[samples]``.
        copies: How many samples are copies of others.
    """

    places: list[list[int]]
    visual: Tensor
    copies: int


def different_samples(adapter: Adapter, batches: Sequence[Inputs], sizes: Sequence[tuple[int, int]]) -> Counted:
    """Find the samples that count.

    Args:
        adapter: The model's adapter.
        batches: The samples.
        sizes: Visual and other tokens of every sample.

    Raises:
        ConfigError: There are fewer than two different samples: nothing could be said about others.
    """
    places = distinct(adapter, batches)
    visual: list[int] = []
    start = 0
    for inputs, counted in zip(batches, places, strict=True):
        visual += [sizes[start + place][0] for place in counted]
        start += len(inputs["input_ids"])
    if len(visual) < 2:
        copied = f"all {len(sizes)} samples are copies of one, and " if len(sizes) > 1 else ""
        raise ConfigError(f"{copied}1 sample says nothing about others", "give at least 2 samples, better 64")
    return Counted(places, torch.tensor(visual, dtype=torch.float32), len(sizes) - len(visual))


def check_budget(budget: EqualCost, sizes: Sequence[tuple[int, int]], adapter: Adapter) -> None:
    """Check a budget against the visual tokens of the samples.

    Args:
        budget: The budget.
        sizes: Visual and other tokens of every sample.
        adapter: The model's adapter.

    Raises:
        BudgetError: It asks for more tokens than the smallest sample has, or nothing has to be dropped for it.
    """
    if isinstance(budget, PrefillTime):
        return
    visual = min(visual for visual, _ in sizes)
    if (budget.largest_count or 0) > visual:
        raise BudgetError(
            f"budget '{cost_label(budget)}' asks for more than the {visual} visual tokens of a sample",
            f"ask for 1 to {visual}",
        )
    if all(_keeps_all(budget, visual, text, adapter) for visual, text in sizes):
        raise nothing_dropped(cost_label(budget))


def _keeps_all(budget: Budget, visual: int, text: int, adapter: Adapter) -> bool:
    """Whether a sample keeps all tokens even where dropping them saves least: before the last layer."""
    last = Schedule((adapter.num_layers - 1,), adapter.num_layers, prefill_cost(adapter.config, text))
    try:
        return budget.keep(visual, last) == (visual,)
    except TokenPruneError:  # it cannot be met so late
        return False


def nothing_dropped(budget: str) -> BudgetError:
    """The error for a budget at which no candidate drops a token: all of them are the unpruned model."""
    return BudgetError(
        f"budget '{budget}': nothing is dropped, so all candidates are equal and there is no winner",
        "ask for fewer tokens, e.g. a layer average of half of them",
    )


def fingerprints(batches: Sequence[Inputs]) -> list[str | None]:
    """The fingerprint of every batch; None for one that cannot be read."""
    return [fingerprint(inputs) for inputs in batches]
