"""The samples of an experiment, batch by batch. One that cannot be used is reported once and left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tokenprune.errors import ConfigError, SampleError
from tokenprune.experiment.results import Results
from tokenprune.models.base import LoadedModel
from tokenprune.models.encode import encode
from tokenprune.output.lines import Row
from tokenprune.tasks.base import Sample


@dataclass(frozen=True)
class Shard:
    """One of several processes that share an experiment: it takes every ``of``-th batch.

    Attributes:
        number: Which one, from 1.
        of: How many there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``i/n``.

        Raises:
            ConfigError: It is something else.
        """
        number, slash, of = text.partition("/")
        if slash and number.isascii() and number.isdecimal() and of.isascii() and of.isdecimal():
            shard = cls(int(number), int(of))
            if 1 <= shard.number <= shard.of:
                return shard
        raise ConfigError(f"shard {text!r} is not understood", "write i/n with i from 1 to n, e.g. 1/4")

    @property
    def folder(self) -> str:
        """The folder of its results, below the experiment's output folder."""
        return f"shards/{self.number}-of-{self.of}"


@dataclass(frozen=True)
class Batch:
    """Samples that are answered together.

    Attributes:
        number: Number of the batch.
        positions: The place of each sample in the task.
        samples: The samples.
        inputs: The model's inputs.
    """

    number: int
    positions: tuple[int, ...]
    samples: tuple[Sample, ...]
    inputs: Mapping[str, Tensor]


class Batches:
    """Reads the samples of a task batch by batch. Only the batch in work is in memory.

    Args:
        samples: The task's samples.
        count: How many of them are used, from the first.
        size: Samples per batch.
        strict: Whether a sample that cannot be used is an error; else it is recorded and left out.
        shard: Which batches are read; all by default.

    Attributes:
        skipped: Position of every sample that cannot be used -> why.
    """

    def __init__(
        self, samples: Sequence[Sample], count: int, size: int, strict: bool = False, shard: Shard | None = None
    ) -> None:
        self.samples, self.count, self.size, self.strict = samples, count, size, strict
        self.skipped: dict[int, str] = {}
        total = math.ceil(count / size)
        self.numbers = range(total) if shard is None else range(shard.number - 1, total, shard.of)

    def resume(self, results: Results) -> set[tuple[str, int]]:
        """Take up what earlier runs left: see :meth:`Results.recover`. Samples that were repaired are used again.

        A sample that could be read, but not encoded, stays left out: the model is the same.
        """
        rows = results.skipped_rows()
        stored = {row["position"]: row["error"] for row in rows}
        repaired = {row["position"] for row in rows if not row["readable"] and self.readable(row["position"])}
        results.forget_skipped(repaired)
        self.skipped = {position: error for position, error in stored.items() if position not in repaired}
        return results.recover(self.count, self.size, {position // self.size for position in repaired})

    def uses(self, row: Row) -> bool:
        """Whether the sample of a row is one of these, and can still be used."""
        return row["position"] < self.count and row["position"] not in self.skipped

    def readable(self, position: int) -> bool:
        """Whether the sample at a position can be read."""
        if position >= len(self.samples):
            return False
        try:
            self.samples[position]
        except SampleError:
            return False
        return True

    def first(self, loaded: LoadedModel, check: Callable[[Batch], None] | None = None) -> Batch:
        """The first sample that can be used, as a batch of its own.

        Args:
            loaded: The model that encodes it.
            check: Raises SampleError where the model cannot answer a sample.

        Raises:
            SampleError: There is none among the first 100.
        """
        reason: SampleError | None = None
        for position in range(min(self.count, 100)):
            try:
                batch = self.alone(position, loaded)
                if check is not None:
                    check(batch)
            except SampleError as error:
                reason = reason or error
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
        sample = self.samples[position]
        inputs, _ = encode(loaded, {position: sample}, strict=True)
        return Batch(position // self.size, (position,), (sample,), inputs)

    def read(self, number: int, loaded: LoadedModel, results: Results | None) -> Batch | None:
        """Read and encode a batch. What cannot be used is recorded in the results and left out.

        Args:
            number: Number of the batch.
            loaded: The model that encodes it.
            results: Where samples that cannot be used are recorded; None records nothing.

        Returns:
            The batch, or None if none of its samples can be used.

        Raises:
            SampleError: A sample cannot be used, and the batches are strict.
        """
        good: dict[int, Sample] = {}
        new: dict[int, str] = {}
        for position in range(number * self.size, min((number + 1) * self.size, self.count)):
            if position in self.skipped:
                continue
            try:
                good[position] = self.samples[position]
            except SampleError as error:
                if self.strict:
                    raise
                new[position] = str(error)
        inputs, refused = encode(loaded, good, self.strict)
        new |= refused
        self._record(new, results, good)
        positions = tuple(position for position in good if position not in refused)
        if not positions:
            return None
        return Batch(number, positions, tuple(good[position] for position in positions), inputs)

    def leave_out(self, reasons: Mapping[int, str], results: Results | None) -> None:
        """Leave samples out that can be read, but not answered.

        Args:
            reasons: Position of each -> why.
            results: Where that is recorded; None records nothing.

        Raises:
            SampleError: The batches are strict.
        """
        if self.strict:
            raise SampleError(next(iter(reasons.values())))
        self._record(reasons, results, reasons)

    def _record(self, reasons: Mapping[int, str], results: Results | None, readable: Container[int]) -> None:
        self.skipped |= reasons
        if reasons and results is not None:
            results.skip([{"position": at, "error": reasons[at], "readable": at in readable} for at in sorted(reasons)])
