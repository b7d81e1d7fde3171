"""What every pruned cache layer answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tokenprune.engine.caches.rows import Rows
from tokenprune.errors import UnsupportedFeatureError


class PrunedCacheLayer(ABC):
    """Mixin for cache layers that hold fewer rows than the sequence; :meth:`begin` follows a change of the class.

    Like the cache layers of transformers it is an ``ABC`` without slots: Python swaps the class of an object only for
    one of the same layout.
    """

    plain: type
    #: Why rows of a filled layer cannot be picked; None where they can.
    cannot_be_cut: str | None = None
    rows: Rows
    keys: Tensor
    values: Tensor

    @classmethod
    def check(cls, layer: Any, window: int | None) -> None:
        """Refuse a plain layer that cannot be cut exactly.

        Args:
            layer: The layer.
            window: The sliding window of the decoder layer; None where it sees everything.

        Raises:
            UnsupportedFeatureError: It cannot.
        """
        return

    @classmethod
    def reserve(cls, layer: Any, width: int, kept: int) -> int:
        """Prepare an empty layer for the rows that are left of a prompt.

        Args:
            layer: The plain layer.
            width: Tokens of the unpruned prompt.
            kept: Rows that are left.

        Returns:
            Free rows that its keys will have behind those of the prompt.
        """
        return 0

    @classmethod
    def held(cls, layer: Any, past: int) -> int:
        """Keys that a layer, plain or pruned, gives a call before its own tokens.

        Args:
            layer: The layer.
            past: Tokens of the conversation so far, dropped ones included.
        """
        return int(layer.keys.shape[-2])

    @classmethod
    def free(cls, layer: Any, rows: int) -> int:
        """Free rows that a layer, plain or pruned, has behind its first ``rows`` ones."""
        return 0

    @classmethod
    def stored_keys(cls, layer: Any, past: int) -> Tensor:
        """The keys of earlier turns as attention gets them, ``[batch, kv_heads, held, head_dim]``.

        Args:
            layer: The layer, plain or pruned.
            past: As for :meth:`held`.
        """
        keys: Tensor = layer.keys[:, :, : cls.held(layer, past)]
        return keys

    @abstractmethod
    def begin(self, rows: Rows) -> None:
        """Note which rows the layer holds, after a prefill: of the whole conversation so far."""

    @abstractmethod
    def keep(self, index: Tensor, width: int, rows: Rows) -> None:
        """Cut the layer to some of its rows, after the prefill.

        Args:
            index: Of the rows that stay, long ``[batch, kept]``, -1 for padding.
            width: Rows that went through the layer; of these it may hold the last ones only.
            rows: What it holds from now on.
        """

    @property
    def rounded(self) -> str | None:
        """How the layer stores what is not stored as it was computed, for reports; None where all is."""
        return None

    @property
    def width(self) -> int:
        """Rows of its keys."""
        return self.keys.shape[-2]

    @property
    def hides(self) -> bool:
        """Whether some of its keys are not to be seen even where the model made no mask."""
        return self.rows.ragged

    @abstractmethod
    def step_mask(self, mask: Tensor | None, new: int, two_dimensional: bool) -> Tensor:
        """The mask of a step that adds ``new`` tokens, over the keys that this layer holds.

        Args:
            mask: The mask that the model made for the unpruned cache; None where everything is visible.
            new: Tokens of the step.
            two_dimensional: Whether flash attention reads it: ``[batch, keys]`` where the model made none.
        """

    @abstractmethod
    def unpruned_bytes(self) -> int:
        """Bytes that the layer would hold, had nothing been dropped."""

    def crop(self, tokens_to_remove: int) -> None:
        """Take off the last tokens, as assisted decoding does with those that were not accepted.

        Args:
            tokens_to_remove: Their number, negative; transformers before 5.18 takes the length that is left, too.

        Raises:
            UnsupportedFeatureError: Tokens of the prompt would be taken off: which of its rows were dropped is decided.
        """
        layer: Any = self
        length = int(layer.get_seq_length())
        removed = -tokens_to_remove if tokens_to_remove <= 0 else max(length - tokens_to_remove, 0)
        behind = length - self.rows.length
        if removed > behind:
            raise UnsupportedFeatureError(
                f"a pruned KV cache cannot be cropped by {removed} tokens: {behind} follow its prompt, and which rows"
                " of the prompt are kept was decided with all of it",
                "crop no token of the prompt, or prefill again",
            )
        self.take_off(removed)

    @abstractmethod
    def take_off(self, removed: int) -> None:
        """Forget the last tokens, none of which belongs to the prompt."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Pick samples, as beam search does."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self.pick(lambda values: values[beam_idx.to(values.device)])

    def pick(self, change: Callable[[Tensor], Tensor]) -> None:
        """Note that the layer holds other samples; ``change`` picks or repeats along the batch axis."""
        self.rows = self.rows.of_samples(change)

    def check_owner(self) -> None:
        """Refuse to be extended outside the block that pruned the layer; see :meth:`CacheOwner.check`."""
        thread = self.rows.owner.thread
        # asked here first: this runs in every layer of every step
        if thread is None or not thread.calls or not thread.calls[-1].continues_pruned:
            self.rows.owner.check()

    def bytes_per_row(self, rows: int) -> int:
        """Bytes of one of ``rows`` rows of the keys and values."""
        return sum(states.element_size() * states.numel() // max(rows, 1) for states in (self.keys, self.values))
