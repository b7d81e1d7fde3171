"""The clock of a device, whatever it is, and the machine that times depend on."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from tokenprune.version import __version__

Result = TypeVar("Result")


class Moment:
    """A point in time: an event in the stream of a CUDA device, elsewhere the time of the host.

    Taking one never waits for the device.

    Args:
        device: The device that is timed.
    """

    def __init__(self, device: torch.device) -> None:
        self.event: Any = None
        self.host = time.perf_counter()
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def since(self, start: Moment) -> float:
        """Milliseconds since ``start``. Of moments in a stream this waits for the device."""
        if self.event is None:
            return (self.host - start.host) * 1e3
        self.event.synchronize()
        return float(start.event.elapsed_time(self.event))


def timed(device: torch.device, call: Callable[[], Result]) -> tuple[Result, float]:
    """Time a call. Work that the device got before does not count.

    Args:
        device: The device that the call computes on.
        call: The call.

    Returns:
        Its result, and the milliseconds until the device has finished it.
    """
    _wait(device)
    start = Moment(device)
    result = call()
    if start.event is None:
        _wait(device)
    return result, Moment(device).since(start)


def _wait(device: torch.device) -> None:
    """Wait until an accelerator has finished its work."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and the machine, which are stored with results and with times.

    Args:
        device: Where the model runs.
    """
    cuda = device.type == "cuda"
    return {
        "tokenprune": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "device_type": device.type,
        **({"cuda": torch.version.cuda} if cuda else {}),
    }


def _processor() -> str:
    """The processor's name if the system reports it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
