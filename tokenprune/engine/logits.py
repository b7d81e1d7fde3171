"""``logits_to_keep`` names positions of the prompt; after pruning, rows and positions differ."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.adapters.layout import VisualLayout
from tokenprune.core.call_arguments import named_parameters
from tokenprune.errors import UnsupportedFeatureError


def is_read(model: nn.Module, decoder: nn.Module) -> bool:
    """Whether a model reads ``logits_to_keep``: it, or a model inside that runs its decoder (BLIP-2), takes it by name.

    Some models swallow any keyword; they return all logits whatever is asked for.

    Args:
        model: The model.
        decoder: Its decoder.
    """
    path = next((name for name, module in model.named_modules() if module is decoder), "").split(".")
    around = [model, *(model.get_submodule(".".join(path[:end])) for end in range(1, len(path)))]
    return any("logits_to_keep" in named_parameters(module.forward) for module in around)


class KeptLogits:
    """Brings the logits that a call asks for to the positions that it means.

    Args:
        logits_to_keep: As the model gets it: None or 0 for all rows, a number of last positions, or what indexes
            positions (a tensor, a list, a slice).
        layout: Where the visual tokens are.
        reads_last: Whether the caller reads the last position, whatever the model returns.
    """

    def __init__(self, logits_to_keep: Any, layout: VisualLayout, reads_last: bool) -> None:
        self._every = logits_to_keep is None or (isinstance(logits_to_keep, int) and logits_to_keep == 0)
        self._wanted = 1 if self._every and reads_last else logits_to_keep
        self._reads_last = reads_last
        self._width = layout.mask.shape[1]

    def spread(self, output: Any, rows: Tensor, checks: list[tuple[Tensor, Callable[[int], Exception]]]) -> Any:
        """The decoder's output, so that the model then picks the right rows of it.

        Positions are read from hidden states that are spread over the unpruned sequence. Of a number of last positions
        only these rows are left: a model that picks them again picks them all, and one that compares their number with
        that of its input (Gemma 4) takes them for picked.

        Args:
            output: The decoder's output, a mapping-like object with ``last_hidden_state``, or a tuple.
            rows: Position of each row that is left, long ``[batch, rows]``, -1 for padding.
            checks: Where flags of wrong samples go; see :meth:`tokenprune.signals.context.PruneContext.check`.

        Raises:
            UnsupportedFeatureError: A position is not in the prompt.
        """
        if self._every and not self._reads_last:
            return output
        positions = self._positions().to(rows.device)
        absent = ~(rows[:, :, None] == positions).any(1)
        checks.append((absent.any(1), lambda sample: self._dropped(positions[absent[sample]].tolist(), sample)))
        if self._every:
            return output
        if isinstance(self._wanted, int) and self._wanted > 0:
            return _with_states(output, output[0][:, -self._wanted :])
        return _with_states(output, self._whole(output[0], rows))

    def _positions(self) -> Tensor:
        """The positions as a vector of numbers that are not negative, on the host or the device of the index."""
        wanted = self._wanted
        if isinstance(wanted, int):
            wanted = slice(-wanted, None)  # what models make of an int, a negative one included
        every = torch.arange(self._width, device=wanted.device if isinstance(wanted, Tensor) else None)
        try:
            return every[wanted].flatten()
        except (IndexError, TypeError, ValueError) as error:
            raise UnsupportedFeatureError(
                f"logits_to_keep {wanted!r} does not index a prompt of {self._width} tokens ({error})",
                f"use positions 0 to {self._width - 1}",
            ) from None

    def _dropped(self, positions: list[int], sample: int) -> UnsupportedFeatureError:
        if positions == [self._width - 1]:
            return UnsupportedFeatureError(
                f"the last token of sample {sample} is a visual token that was dropped, and its logits are asked for",
                "end the prompt with text",
            )
        shown = ", ".join(map(str, positions[:5])) + (" ..." if len(positions) > 5 else "")
        return UnsupportedFeatureError(
            f"logits_to_keep asks for positions of sample {sample} that were dropped: {shown}",
            "ask for positions of text tokens, or of kept ones (run.stages[-1].kept)",
        )

    def _whole(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Hidden states ``[batch, rows, dim]`` at their positions of the unpruned sequence, zero elsewhere."""
        rows = rows.to(hidden.device)
        index = rows.masked_fill(rows < 0, self._width)[:, :, None].expand(-1, -1, hidden.shape[-1])
        spread = hidden.new_zeros(hidden.shape[0], self._width + 1, hidden.shape[-1]).scatter(1, index, hidden)
        return spread[:, : self._width]


def _with_states(output: Any, hidden: Tensor) -> Any:
    """The decoder's output with other hidden states."""
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    output["last_hidden_state"] = hidden
    return output
