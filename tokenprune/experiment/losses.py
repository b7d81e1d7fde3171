"""When an experiment stops because samples fail in a forward, although each could be left out."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tokenprune.errors import TokenPruneError, UnsupportedFeatureError

#: So many samples in a row that fail alone, in batches that fail whole, are no fault of the samples.
IN_A_ROW = 8
#: One sample, or one of so many, may be left out because a method fails on it.
SHARE = 20


@dataclass(frozen=True)
class Event:
    """How samples of one batch fared with one series.

    Attributes:
        unpruned: Whether the series is the unpruned model.
        good: Samples that were answered, or do not fail.
        failed: Position of each that fails alone -> why; empty where all were answered.
    """

    unpruned: bool
    good: int
    failed: Mapping[int, TokenPruneError] = field(default_factory=dict)


class Losses:
    """Counts the samples that fail alone.

    Args:
        asked: Samples that the unpruned model was asked in earlier runs.
        by_methods: Samples that were left out then because a method failed on them.

    Attributes:
        row: The samples that failed one after the other, with none answered since.
    """

    def __init__(self, asked: int = 0, by_methods: int = 0) -> None:
        self.asked, self.by_methods = asked, by_methods
        self.row: list[int] = []

    def count(self, event: Event) -> None:
        """Count samples. Those of a batch in which some fail are asked again, and count when they are answered.

        Raises:
            TokenPruneError: The first of the errors: there are too many.
        """
        failed = event.failed
        if event.good:
            self.row.clear()
        else:  # logits that hold NaN say what is wrong, and data may be sorted: all clips behind all pictures
            clear = event.unpruned and all(isinstance(why, UnsupportedFeatureError) for why in failed.values())
            self.row += () if clear else failed
        if not failed:
            self.asked += event.good if event.unpruned else 0
            return
        first = next(iter(failed.values()))
        if len(self.row) >= IN_A_ROW:
            raise _stopped(first, f"{len(self.row)} samples in a row fail, so it is not the samples")
        if event.unpruned:
            self.asked += len(failed)
            return
        self.by_methods += len(failed)
        if self.by_methods > max(1, self.asked // SHARE):
            raise _stopped(
                first,
                f"methods fail on {self.by_methods} of {self.asked} samples that the unpruned model answers, and at"
                f" most one in {SHARE} is left out for that: remove the method, or these samples",
            )


class TooManyLostError(Exception):
    """Too many samples fail alone.

    Args:
        error: The error that ends the experiment.
        positions: Samples that were left out, and are to be asked again: it was not they.
    """

    def __init__(self, error: TokenPruneError, positions: Iterable[int]) -> None:
        super().__init__()
        self.error, self.positions = error, list(positions)


class LossesInOrder:
    """Counts in the order of one process what several workers report in any order.

    Args:
        losses: Counts.
    """

    def __init__(self, losses: Losses) -> None:
        self._losses = losses
        self._expected: deque[tuple[int, str]] = deque()
        self._came: dict[tuple[int, str], Sequence[Event]] = {}

    def expect(self, number: int, keys: Iterable[str]) -> None:
        """A batch will be asked next.

        Args:
            number: Its number.
            keys: The series that are asked.
        """
        self._expected.extend((number, key) for key in keys)

    @property
    def waiting(self) -> int:
        """How many reports wait for that of an earlier batch."""
        return len(self._came)

    def came(self, number: int, key: str, events: Sequence[Event]) -> None:
        """A series has answered a batch.

        Raises:
            TooManyLostError: As many samples fail as end an experiment in one process.
        """
        self._came[number, key] = events
        while self._expected and self._expected[0] in self._came:
            for event in self._came.pop(self._expected.popleft()):
                try:
                    self._losses.count(event)
                except TokenPruneError as error:
                    raise TooManyLostError(error, [*self._losses.row, *event.failed]) from error


def _stopped(error: TokenPruneError, why: str) -> TokenPruneError:
    stopped = type(error)(error.what, f"{error.fix}; {why}" if error.fix else why)
    stopped.__cause__ = error.__cause__
    return stopped
