"""Finds the visual tokens of a call, and the image or video that each belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenprune.errors import ConfigError, UnsupportedModelError

#: Rows of an embedding table that are looked up at once.
_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class VisualLayout:
    """Where the visual tokens of a call are.

    Attributes:
        mask: Bool ``[batch, seq]``.
        groups: Index of the image or video within its sample, long ``[batch, seq]``; -1 for text.
    """

    mask: Tensor
    groups: Tensor


def find_tokens(model: Any, call: Mapping[str, Any], tokens: Sequence[int]) -> Tensor | None:
    """Mark the positions that hold one of some tokens, bool ``[batch, seq]``; None when there is no text input.

    Args:
        model: The model; its embedding table identifies tokens in ``inputs_embeds``.
        call: The arguments of the model's forward, by name.
        tokens: Token ids.
    """
    ids = call.get("input_ids")
    if isinstance(ids, Tensor):
        return torch.isin(ids, torch.tensor(tokens, dtype=ids.dtype, device=ids.device))
    embeds = call.get("inputs_embeds")
    if embeds is None:
        return None
    table = model.get_input_embeddings()
    wanted = torch.tensor(tokens, dtype=torch.long)
    wanted = wanted[wanted < table.weight.shape[0]].to(table.weight.device)
    is_token: Tensor = (embeds[:, :, None] == table(wanted).to(embeds)).all(-1).any(-1)
    return is_token


def check_not_empty(batch: Any) -> None:
    """Refuse a batch without samples: models fail on it, each in its own way.

    Args:
        batch: Anything with one row per sample: ids or a mask ``[batch, seq]``, embeddings, a list of texts.

    Raises:
        ConfigError: It has no rows.
    """
    if not len(batch):
        raise ConfigError("the batch is empty: it has no samples", "give at least one, or leave the call out")


def features_in_place(model: Any, call: Mapping[str, Any], pictures: Tensor) -> Tensor | None:
    """Mark the positions that seem to hold visual features already, bool ``[batch, seq]``; None where none can.

    Args:
        model: The model; its embedding table identifies tokens in ``inputs_embeds``.
        call: The arguments of the model's forward, by name.
        pictures: Ids of the tokens that are pieces of pictures themselves, long ``[tokens]``.
    """
    ids, embeds, mask = (call.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
    if isinstance(ids, Tensor) and pictures.numel():
        found = torch.isin(ids, pictures.to(ids.device))
    elif ids is None and isinstance(embeds, Tensor):
        found = strange_rows(model, embeds, pictures)
    else:
        return None
    if isinstance(mask, Tensor) and mask.dim() == 2:
        found = found & mask[:, -found.shape[1] :].bool().to(found.device)
    return found


@torch.no_grad()
def strange_rows(model: Any, embeds: Tensor, pictures: Tensor) -> Tensor:
    """Mark the rows that are the embedding of no text, bool ``[batch, seq]``: visual features, learned prompts.

    A row is compared by its first eight bytes with all tokens of the vocabulary. A row of features passes with a chance
    that is tiny for one row, and vanishing for all rows of an image.

    Args:
        model: The model; its embedding table identifies tokens.
        embeds: ``[batch, seq, dim]``.
        pictures: Ids of the tokens that are no text but pieces of pictures, long ``[tokens]``.
    """
    table = model.get_input_embeddings()
    tokens = torch.arange(table.weight.shape[0], device=table.weight.device)
    tokens = tokens[~torch.isin(tokens, pictures.to(tokens.device))]
    # an embedding module may scale what it looks up: it is asked, a few rows at a time
    known = torch.cat([_first_bytes(table(chunk).to(embeds)) for chunk in tokens.split(_TOKENS_AT_ONCE)])
    strange: Tensor = ~torch.isin(_first_bytes(embeds), known.to(embeds.device))
    return strange


def _first_bytes(rows: Tensor) -> Tensor:
    """The first eight bytes of each row as one number, int64 ``[...]``."""
    return rows[..., : 8 // rows.element_size()].contiguous().view(torch.int64)[..., 0]


def layout_from_runs(mask: Tensor) -> VisualLayout:
    """Take every unbroken run of visual tokens as one image.

    Args:
        mask: The visual mask, bool ``[batch, seq]``.
    """
    starts = mask & ~pad(mask, (1, 0))[:, :-1]
    return VisualLayout(mask, (starts.cumsum(1) - 1).masked_fill(~mask, -1))


def layout_from_sizes(mask: Tensor, sizes: Sequence[Sequence[int]]) -> VisualLayout:
    """Divide the visual tokens of each sample into images of known sizes.

    Args:
        mask: The visual mask, bool ``[batch, seq]``.
        sizes: Visual tokens of each image or video of each sample, in order.

    Raises:
        UnsupportedModelError: The sizes of a sample do not add up to its visual tokens.
    """
    for sample, (tokens, expected) in enumerate(zip(mask.sum(1).tolist(), map(sum, sizes), strict=True)):
        if tokens != expected:
            raise UnsupportedModelError(
                f"sample {sample} has {tokens} visual tokens, but its images make {expected}",
                "check that images and placeholder tokens of the prompt match",
            )
    most = max(map(len, sizes))
    # where each image ends; samples with fewer images repeat their last end
    ends = [[sum(row[: i + 1]) for i in range(len(row))] + [sum(row)] * (most - len(row)) for row in sizes]
    bounds = torch.tensor(ends, device=mask.device).reshape(len(sizes), most)
    index = mask.cumsum(1) - 1
    groups = (index[:, :, None] >= bounds[:, None, :]).sum(-1)
    return VisualLayout(mask, groups.masked_fill(~mask, -1))
