"""Asks a series about a batch; where that fails, about its samples one by one. What fails alone is left out."""

import warnings
from collections.abc import Callable, Iterator

from tokenprune.core.forward_errors import of_samples, release
from tokenprune.core.text import one_line
from tokenprune.errors import SampleError, TokenPruneError, TokenPruneWarning
from tokenprune.experiment.answering import Answering, BatchInWork, NoAnswerError
from tokenprune.experiment.batches import Batch, Batches
from tokenprune.experiment.losses import Event
from tokenprune.experiment.results import Skip
from tokenprune.experiment.series import Series
from tokenprune.models.encode import encode_one
from tokenprune.output.lines import Row


class Asking:
    """Asks series about the samples of one batch after the other.

    A sample on which a series fails alone is left out of all series: they stay comparable. Rows of it that are written
    already do not count. The other samples of its batch are then asked again without it, so that the rows are those of
    an experiment that never had the sample.

    Args:
        answering: The model.
        batches: The samples.
        skip: Takes up samples that are left out; None records nothing.
        tell: Is told how samples fare.
    """

    def __init__(
        self, answering: Answering, batches: Batches, skip: Skip | None, tell: Callable[[Event], None]
    ) -> None:
        self.answering, self.batches, self.skip, self.tell = answering, batches, skip, tell
        self._said = False

    def read(self, number: int, unpruned: dict[int, str]) -> list[BatchInWork]:
        """Read a batch: none if none of its samples can be used, several if they cannot be encoded together.

        Args:
            number: Number of the batch.
            unpruned: The answers of the unpruned model that are known, by position.
        """
        read = self.batches.read(number, self.answering.loaded, self.skip)
        return [BatchInWork(batch, unpruned) for batch in read]

    def answer(self, item: Series, works: list[BatchInWork]) -> list[Row]:
        """Answer the samples of a batch with a series.

        Args:
            item: The series.
            works: What :meth:`read` returned. Samples that fail alone are taken out of it.

        Raises:
                SampleError: A sample fails alone, and the batches are strict.
            TokenPruneError: The series cannot run, or too many samples fail alone.
        """
        while works:
            rows: list[Row] = []
            failed: dict[int, TokenPruneError] = {}
            for work in works:
                found, lost = self._try(item, work)
                rows += found
                failed |= lost
            count = sum(len(work.batch.positions) for work in works)
            if not failed:
                self.tell(Event(item.unpruned, count))
                return rows
            self._leave_out(item, failed, count - len(failed))
            works[:] = self.read(works[0].batch.number, works[0].unpruned)
        return []

    def _try(self, item: Series, work: BatchInWork) -> tuple[list[Row], dict[int, TokenPruneError]]:
        """The rows of a batch, and position -> why for each of its samples that fails alone."""
        batch = work.batch
        try:
            return self.answering.answer(item, work), {}
        except NoAnswerError as error:
            return [], dict(error.failed)
        except TokenPruneError as error:
            if not of_samples(error):
                raise
            release(error)
            if len(batch.positions) == 1:
                return [], {batch.positions[0]: error}
            self._say(error)
        rows: list[Row] = []  # outside the except clause: the tensors of the failed forward are free
        failed: dict[int, TokenPruneError] = {}
        work.alone = work.alone or list(self._alone(work))
        for single in work.alone:
            found, lost = self._try(item, single)
            rows += found
            failed |= lost
        return rows, failed

    def _alone(self, work: BatchInWork) -> Iterator[BatchInWork]:
        batch = work.batch
        for position, sample in zip(batch.positions, batch.samples, strict=True):
            inputs = encode_one(self.answering.loaded, sample)
            yield BatchInWork(Batch(batch.number, (position,), (sample,), inputs), work.unpruned)

    def _say(self, error: TokenPruneError) -> None:
        """Tell once that batches fail: answers of single samples may differ from those of a batch by rounding."""
        if not self._said:
            self._said = True
            text = f"{one_line(error)}: the samples of this batch, and of others that fail, are answered one by one"
            warnings.warn(text, TokenPruneWarning, stacklevel=2)

    def _leave_out(self, item: Series, failed: dict[int, TokenPruneError], others: int) -> None:
        if self.batches.strict:
            first = next(iter(failed.values()))
            raise SampleError(first.what, first.fix) from first
        self.tell(Event(item.unpruned, others, failed))
        reasons = {position: one_line(error) for position, error in failed.items()}
        self.batches.leave_out(reasons, self.skip, None if item.unpruned else item.key)
