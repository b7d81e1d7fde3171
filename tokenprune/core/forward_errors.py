"""Failures of a forward: any exception as one error of ours, and which of them may be those of single samples."""

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tokenprune.core.blame import place
from tokenprune.errors import (
    BudgetError,
    ForwardError,
    SampleError,
    ScoreError,
    TokenPruneError,
    UnsupportedFeatureError,
)

#: Errors that may be those of one batch, or of one sample. All others come with every sample.
OF_SAMPLES = (SampleError, UnsupportedFeatureError, BudgetError, ScoreError, ForwardError)
#: What a device, or the host, raises when its memory is full.
NO_MEMORY = (torch.OutOfMemoryError, MemoryError)
_BROKEN = getattr(torch, "AcceleratorError", ())  # torch 2.8; a subclass of RuntimeError


@contextmanager
def forward_errors() -> Iterator[None]:
    """Turn exceptions of a model, or of a component in it, into one error of a line.

    Raises:
        TokenPruneError: An error of tokenprune, unchanged; any other exception as :class:`ForwardError`.
    """
    try:
        yield
    except TokenPruneError:
        raise
    except NO_MEMORY as error:
        raise ForwardError(
            "the memory is full", "lower batch_size, use smaller pictures (max_pixels), or another dtype or device"
        ) from error
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ForwardError(f"{type(error).__name__}{': ' if text else ''}{text} ({place(error)})") from error


def of_samples(error: TokenPruneError) -> bool:
    """Whether other samples may well run after this error: whoever asks tries them."""
    return isinstance(error, OF_SAMPLES) and not device_broken(error)


def device_broken(error: BaseException) -> bool:
    """Whether the device fails from now on, whatever it is asked."""
    return any(isinstance(cause, _BROKEN) and not isinstance(cause, NO_MEMORY) for cause in _causes(error))


def release(error: BaseException) -> None:
    """Let go of the tensors that the frames of a failed forward hold; where memory is short, of all that is unused."""
    for cause in _causes(error):
        traceback.clear_frames(cause.__traceback__)
    if not any(isinstance(cause, NO_MEMORY) for cause in _causes(error)):
        return
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, the cause of that ..."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__
