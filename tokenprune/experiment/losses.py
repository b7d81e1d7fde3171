"""When an experiment stops because samples fail in a forward, although each could be left out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenprune.errors import TokenPruneError, UnsupportedFeatureError

#: So many samples in a row that fail alone, in batches that fail whole, are no fault of the samples.
IN_A_ROW = 8
#: One sample, or one of so many, may be left out because a method fails on it.
SHARE = 20


class Count(Protocol):
    """Is told how samples fare."""

    def answered(self, samples: int, unpruned: bool) -> None:
        """Count samples that were answered."""

    def lost(self, failed: Mapping[int, TokenPruneError], others: int, unpruned: bool) -> None:
        """Count samples that fail alone."""


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

    def answered(self, samples: int, unpruned: bool) -> None:
        """Count samples that were answered."""
        self.row.clear()
        if unpruned:
            self.asked += samples

    def lost(self, failed: Mapping[int, TokenPruneError], others: int, unpruned: bool) -> None:
        """Count samples that fail alone.

        Args:
            failed: Position of each -> why.
            others: Samples of the same batch that do not fail.
            unpruned: Whether the unpruned model fails on them; else a method does.

        Raises:
            TokenPruneError: The first of the errors: there are too many.
        """
        first = next(iter(failed.values()))
        if others:
            self.row.clear()
        else:  # logits that hold NaN say what is wrong, and data may be sorted: all clips behind all pictures
            clear = unpruned and all(isinstance(why, UnsupportedFeatureError) for why in failed.values())
            self.row += () if clear else failed
        if len(self.row) >= IN_A_ROW:
            raise _stopped(first, f"{len(self.row)} samples in a row fail, so it is not the samples")
        if unpruned:
            self.asked += len(failed)
            return
        self.by_methods += len(failed)
        if self.by_methods > max(1, self.asked // SHARE):
            raise _stopped(
                first,
                f"methods fail on {self.by_methods} of {self.asked} samples that the unpruned model answers, and at"
                f" most one in {SHARE} is left out for that: remove the method, or these samples",
            )


@dataclass(frozen=True)
class WereAnswered:
    """Samples were answered; see :meth:`Losses.answered`."""

    samples: int
    unpruned: bool

    def tell(self, losses: Losses) -> None:
        """Count them."""
        losses.answered(self.samples, self.unpruned)

    @property
    def positions(self) -> Iterable[int]:
        """The samples that failed."""
        return ()


@dataclass(frozen=True)
class WereLost:
    """Samples failed alone; see :meth:`Losses.lost`."""

    failed: Mapping[int, TokenPruneError]
    others: int
    unpruned: bool

    def tell(self, losses: Losses) -> None:
        """Count them."""
        losses.lost(self.failed, self.others, self.unpruned)

    @property
    def positions(self) -> Iterable[int]:
        """The samples that failed."""
        return self.failed


#: Something that happened to samples.
Event = WereAnswered | WereLost


class Events:
    """Remembers what happens to samples; somebody else decides whether too many fail."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def answered(self, samples: int, unpruned: bool) -> None:
        """Remember samples that were answered."""
        self._events.append(WereAnswered(samples, unpruned))

    def lost(self, failed: Mapping[int, TokenPruneError], others: int, unpruned: bool) -> None:
        """Remember samples that fail alone."""
        self._events.append(WereLost(dict(failed), others, unpruned))

    def taken(self) -> list[Event]:
        """The events since the last call."""
        found, self._events = self._events, []
        return found


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
                    event.tell(self._losses)
                except TokenPruneError as error:
                    raise TooManyLostError(error, [*self._losses.row, *event.positions]) from error


def _stopped(error: TokenPruneError, why: str) -> TokenPruneError:
    stopped = type(error)(error.what, f"{error.fix}; {why}" if error.fix else why)
    stopped.__cause__ = error.__cause__
    return stopped
