"""Peak memory of a call: what its tensors held at once, beyond what was there before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Bytes that a call held at its peak, beyond what was allocated before it.

    On CUDA the allocator knows. Elsewhere the tensors that operations return are followed until they are freed;
    what a kernel allocates and frees inside one operation is not seen.

    Args:
        call: What to measure; its result counts as long as it lives in the call.
        device: Where it computes.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        return int(peak - before)
    live = _Live()
    with live:
        call()
    return live.peak


class _Live(TorchDispatchMode):
    """Follows the storages of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[StorageWeakRef, int] = {}
        self._given: set[StorageWeakRef] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor):
                storage = StorageWeakRef(given.untyped_storage())
                if storage not in self._live:  # there before: a weight, an input
                    self._given.add(storage)
        result = func(*args, **(kwargs or {}))
        self._live = {storage: size for storage, size in self._live.items() if not storage.expired()}
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                storage = StorageWeakRef(made.untyped_storage())
                if storage not in self._given:
                    self._live[storage] = made.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self._live.values()))
        return result
