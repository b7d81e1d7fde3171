"""When an experiment stops because samples fail in a forward, although each could be left out."""

from __future__ import annotations

from collections.abc import Mapping

from tokenprune.errors import TokenPruneError, UnsupportedFeatureError

#: So many samples in a row that fail alone, in batches that fail whole, are no fault of the samples.
IN_A_ROW = 8
#: One sample, or one of so many, may be left out because a method fails on it.
SHARE = 20


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


def _stopped(error: TokenPruneError, why: str) -> TokenPruneError:
    stopped = type(error)(error.what, f"{error.fix}; {why}" if error.fix else why)
    stopped.__cause__ = error.__cause__
    return stopped
