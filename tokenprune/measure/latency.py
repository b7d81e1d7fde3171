"""Comparable times: paired rounds on one device, medians with quartiles."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from tokenprune.version import __version__

Result = TypeVar("Result")


@dataclass(frozen=True)
class Spread:
    """A median with quartiles.

    Attributes:
        median: The median.
        low: The first quartile.
        high: The third quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one or more values; quartiles by linear interpolation."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def to_dict(self) -> dict[str, float]:
        """The fields, JSON-ready."""
        return asdict(self)


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """The spread of ``values / base``, divided round by round, so that a disturbance of a whole round cancels out."""
    return Spread.of([value / other for value, other in zip(values, base, strict=True)])


class Stopwatch:
    """Times calls on a device: with events on CUDA, else with the host's clock after a synchronisation.

    Args:
        device: The device that the calls compute on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def time(self, call: Callable[[], Result]) -> tuple[Result, float]:
        """The result of a call, and the milliseconds until the device has finished it."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = call()
            end.record()
            end.synchronize()
            return result, float(start.elapsed_time(end))
        before = time.perf_counter()
        result = call()
        if self.device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize()
        return result, (time.perf_counter() - before) * 1e3


def environment(device: torch.device) -> dict[str, Any]:
    """What times depend on, apart from the code: device, threads, versions."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "transformers": transformers.__version__,
        "tokenprune": __version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """The processor's name if the system reports it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
