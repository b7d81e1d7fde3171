"""The splits of the tasks, and which one a run calibrates on."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def calibration_split(measured: Split) -> Split:
    """The split that a run calibrates on: never the one that it measures.

    It is ``validation``, on which no weight of the embedded models was trained: on its training split a model keeps
    more of its answers than on new pictures, and a calibration there promises too much. The training scripts measured
    the finished weights on it once (the last line of ``training/train.log``), and people looked at it when they took
    ``count`` out of the default question types (``training/README.md``).

    A run that measures ``validation`` calibrates on ``train``.

    Args:
        measured: The split whose questions the run asks.
    """
    return "train" if measured == "validation" else "validation"
