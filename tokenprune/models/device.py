"""The device that a user names."""

import torch

from tokenprune.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """An available device; ``auto`` is CUDA if available, else the CPU.

    Raises:
        ConfigError: No such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()  # the device "meta" holds no data
    except (RuntimeError, AssertionError, NotImplementedError):
        available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ConfigError(f"no such device: {name!r}", f"use one of {', '.join(available)}") from None
    return device
