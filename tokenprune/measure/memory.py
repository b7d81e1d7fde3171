"""Peak memory of a call, without what was allocated before it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Largest number of bytes that a call had allocated at one time, without what was allocated before it.

    On CUDA the allocator reports the peak. On other devices the tensors that operations return are followed until
    they are freed; memory that a kernel allocates and frees within one operation is not seen.

    Args:
        call: The call to measure.
        device: The device that it computes on.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        return int(peak - before)
    tensors = _LiveTensors()
    with tensors:
        call()
    return tensors.peak


class _LiveTensors(TorchDispatchMode):
    """Follows the storages of all tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[StorageWeakRef, int] = {}  # storage -> bytes
        self._existing: set[StorageWeakRef] = set()  # allocated before the call: weights, inputs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for argument in tree_leaves((args, kwargs)):
            if isinstance(argument, Tensor):
                storage = StorageWeakRef(argument.untyped_storage())
                if storage not in self._live:
                    self._existing.add(storage)
        result = func(*args, **(kwargs or {}))
        self._live = {storage: size for storage, size in self._live.items() if not storage.expired()}
        for output in tree_leaves(result):
            if isinstance(output, Tensor):
                storage = StorageWeakRef(output.untyped_storage())
                if storage not in self._existing:
                    self._live[storage] = output.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self._live.values()))
        return result
