"""The adapter for any transformers model that is built the usual way."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.adapters.base import Adapter


class GenericAdapter(Adapter):
    """Finds the decoder, the visual tokens and query/key/value by itself; an error names what it cannot find.

    Every unbroken run of visual tokens counts as one image.
    """

    def group_sizes(self, call: Mapping[str, Any], mask: Tensor) -> list[list[int]] | None:
        """See :meth:`tokenprune.adapters.base.Adapter.group_sizes`."""
        return None
