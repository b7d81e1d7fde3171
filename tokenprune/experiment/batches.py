"""The samples of an experiment, batch by batch. One that cannot be used is reported once and left out."""

import math
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenprune.core.blame import place
from tokenprune.core.forward_errors import of_samples
from tokenprune.core.text import one_line
from tokenprune.errors import ForwardError, PluginError, SampleError
from tokenprune.experiment.losses import IN_A_ROW
from tokenprune.experiment.results import Results, Skip
from tokenprune.models.base import LoadedModel
from tokenprune.models.encode import encode, encode_one
from tokenprune.output.lines import Row
from tokenprune.tasks.base import Sample


@dataclass(frozen=True)
class Batch:
    """Samples that are answered together.

    Attributes:
        number: Number of the batch.
        positions: The place of each sample in the task.
        samples: The samples.
        inputs: The model's inputs.
        averaged: The rows and columns that the features of every picture are averaged to; None for all of them.
    """

    number: int
    positions: tuple[int, ...]
    samples: tuple[Sample, ...]
    inputs: Mapping[str, Tensor]
    averaged: tuple[int, int] | None = None


def several_sizes(sizes: Sequence[int]) -> list[str]:
    """What a reader must know where batches of several sizes were asked; nothing for one size."""
    if len(sizes) < 2:
        return []
    words = f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"
    return [f"The samples were answered in batches of {words}: answers may differ from those of one size by rounding."]


class Batches:
    """Reads the samples of a task batch by batch. Only the batch in work is in memory.

    Args:
        samples: The task's samples.
        count: How many of them are used, from the first.
        size: Samples per batch.
        strict: Whether a sample that cannot be used is an error; else it is recorded and left out.

    Attributes:
        skipped: Position of every sample that cannot be used -> why.
    """

    def __init__(self, samples: Sequence[Sample], count: int, size: int, strict: bool = False) -> None:
        self.samples, self.count, self.size, self.strict = samples, count, size, strict
        self.skipped: dict[int, str] = {}
        self._repaired: set[int] = set()
        self.numbers = range(math.ceil(count / size))

    def resume(self, results: Results) -> set[tuple[str, int]]:
        """Take up what earlier runs left, without changing it. Samples that were repaired are used again.

        A sample that could be read, but not encoded or answered, stays left out: the model is the same.

        Returns:
            (series key, batch number) of every complete batch.
        """
        rows = results.skipped_rows()
        stored = {row["position"]: row["error"] for row in rows}
        self._repaired = {row["position"] for row in rows if not row["readable"] and self.readable(row["position"])}
        self.skipped = {position: error for position, error in stored.items() if position not in self._repaired}
        return results.complete(self.count, self.size, self._redo, self.skipped)[0]

    def tidy(self, results: Results) -> None:
        """Remove from the folder what :meth:`resume` did not count: incomplete batches, and samples that are used."""
        results.forget_skipped(self._repaired)
        results.recover(self.count, self.size, self._redo)

    @property
    def _redo(self) -> set[int]:
        return {position // self.size for position in self._repaired}

    def positions(self, number: int) -> range:
        """The places of a batch's samples in the task, also of those that are left out."""
        return range(number * self.size, min((number + 1) * self.size, self.count))

    def set_skipped(self, number: int, skipped: Mapping[int, str]) -> None:
        """Say which samples of a batch are left out, and why; no others of it are."""
        for position in self.positions(number):
            self.skipped.pop(position, None)
        self.skipped |= skipped

    def uses(self, row: Row) -> bool:
        """Whether the sample of a row is one of these, and can still be used."""
        return row["position"] < self.count and row["position"] not in self.skipped

    def sample(self, position: int) -> Sample:
        """A sample of the task.

        Raises:
            SampleError: It cannot be read.
            PluginError: The task gives something else.
        """
        try:
            sample: Any = self.samples[position]
        except SampleError:
            raise
        except Exception as error:  # of a task that somebody else wrote
            text = f"{type(error).__name__}: {one_line(error)}; {place(error)}"
            raise SampleError(f"sample {position + 1} of the task cannot be read ({text})") from error
        if not isinstance(sample, Sample):
            what = f"sample {position + 1} of the task is of the type {type(sample).__name__}, not a Sample"
            raise PluginError(what, "let its samples() return a sequence of Sample")
        return sample

    def readable(self, position: int) -> bool:
        """Whether the sample at a position can be read."""
        if position >= len(self.samples):
            return False
        try:
            self.sample(position)
        except SampleError:
            return False
        return True

    def first(self, loaded: LoadedModel, check: Callable[[Batch], None] | None = None) -> Batch:
        """The first sample that can be used, as a batch of its own.

        Args:
            loaded: The model that encodes it.
            check: Raises an error where the model cannot answer a sample.

        Raises:
            SampleError: There is none among the first 100.
            ForwardError: The model fails on :data:`IN_A_ROW` of them: it is not the samples.
        """
        reason: SampleError | ForwardError | None = None
        failed = 0
        for position in range(min(self.count, 100)):
            try:
                batch = self.alone(position, loaded)
                if check is not None:
                    check(batch)
            except SampleError as error:
                reason = reason or error
            except ForwardError as error:
                failed += 1
                reason = reason or error
                if self.strict or not of_samples(error) or failed == min(self.count, IN_A_ROW):
                    raise
            else:
                return batch
        if reason is not None and self.count == 1:
            raise reason
        raise SampleError(f"none of the first {min(self.count, 100)} samples can be used; the first: {reason}")

    def alone(self, position: int, loaded: LoadedModel) -> Batch:
        """A sample that can be used, as a batch of its own.

        Raises:
            SampleError: It cannot be used.
        """
        sample = self.sample(position)
        return Batch(position // self.size, (position,), (sample,), encode_one(loaded, sample))

    def read(self, number: int, loaded: LoadedModel, skip: Skip | None) -> list[Batch]:
        """Read and encode a batch. What cannot be used is recorded and left out.

        Args:
            number: Number of the batch.
            loaded: The model that encodes it.
            skip: Takes up samples that cannot be used; None records nothing.

        Returns:
            The batch; several of one sample each where its samples cannot be encoded together; none if none of them
            can be used.

        Raises:
            SampleError: A sample cannot be used, and the batches are strict.
        """
        good: dict[int, Sample] = {}
        new: dict[int, str] = {}
        for position in self.positions(number):
            if position in self.skipped:
                continue
            try:
                good[position] = self.sample(position)
            except SampleError as error:
                if self.strict:
                    raise
                new[position] = str(error)
        encoded = encode(loaded, good, self.strict)
        self._record(new | encoded.refused, skip, good)
        return [
            Batch(number, positions, tuple(good[position] for position in positions), inputs)
            for positions, inputs in encoded.batches
        ]

    def leave_out(self, reasons: Mapping[int, str], skip: Skip | None, series: str | None = None) -> None:
        """Leave samples out that can be read, but not answered.

        Args:
            reasons: Position of each -> why.
            skip: Takes that up; None records nothing.
            series: The series that cannot answer them; None for the unpruned model.
        """
        self._record(reasons, skip, reasons, {} if series is None else {"series": series})

    def take_back(self, positions: Collection[int], results: Results) -> None:
        """Ask samples again that were left out."""
        for position in positions:
            self.skipped.pop(position, None)
        if positions:
            results.forget_skipped(positions)

    def _record(
        self, reasons: Mapping[int, str], skip: Skip | None, readable: Container[int], more: Row | None = None
    ) -> None:
        self.skipped |= reasons
        if reasons and skip is not None:
            skip(
                [
                    {"position": at, "error": reasons[at], "readable": at in readable, **(more or {})}
                    for at in sorted(reasons)
                ]
            )
