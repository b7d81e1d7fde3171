"""Signals: what scorers and pruners may read of a running model, besides the hidden states that enter the stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tokenprune.errors import ConfigError, ScoreError

#: States of the attention of layer K-1 that a component may name in ``needs``.
LAYER_STATES = frozenset({"query", "key", "value"})

#: Signals that also exist for a stage before layer 0, because no layer has to run for them.
INPUT_SIGNALS = frozenset({"hidden", "embeddings"})

#: Every signal that a component may name in ``needs``; the engine captures exactly those.
SIGNALS = LAYER_STATES | INPUT_SIGNALS | {"attention"}


def check_needs(needs: frozenset[str], component: str) -> None:
    """Refuse a component that declares a signal that does not exist.

    Args:
        needs: What the component declared.
        component: Its name, for the message.

    Raises:
        ConfigError: A name is no signal.
    """
    unknown = needs - SIGNALS
    if unknown:
        raise ConfigError(
            f"{component} declares the signals {', '.join(map(repr, sorted(unknown)))} in needs, which do not exist",
            f"use any of {', '.join(sorted(SIGNALS))}",
        )


@dataclass(frozen=True)
class AttentionProbe:
    """What is needed to compute single rows of one layer's attention map, and no more.

    Attributes:
        query: Query states before rotary embedding, ``[batch, rows, heads, head_dim]``.
        key: Key states before rotary embedding, ``[batch, rows, kv_heads, head_dim]``.
        rotate: ``rotate(query, key, index)`` applies the model's own rotary embedding to states given as
            ``[batch, heads, rows, head_dim]``; ``index`` long ``[batch, picked]`` names the rows of ``query``.
        visible: ``visible(index [batch, picked]) -> bool [batch, picked, rows]``: what rows may attend to.
        scaling: The factor on the dot products.
        softcap: Logit soft cap (Gemma 2), or None.
        rotate_from_first: Applies the rotary embedding to keys ``[batch, kv_heads, rows, head_dim]`` as if each
            sample's first token had position 0. None where the layer has no rotary embedding.
    """

    query: Tensor
    key: Tensor
    rotate: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    visible: Callable[[Tensor], Tensor]
    scaling: float
    softcap: float | None = None
    rotate_from_first: Callable[[Tensor], Tensor] | None = None

    def rows(self, index: Tensor) -> Tensor:
        """Attention probabilities of a few query rows: no map is ever materialised.

        Args:
            index: Row indices, long ``[batch, picked]``.

        Returns:
            Float32 ``[batch, heads, picked, rows]``; every row sums to one.
        """
        picked = index[:, :, None, None].expand(-1, -1, *self.query.shape[2:])
        query = self.query.gather(1, picked).transpose(1, 2)
        query, key = self.rotate(query, self.key.transpose(1, 2), index)
        groups = query.shape[1] // key.shape[1]
        grouped = query.unflatten(1, (key.shape[1], groups)).float()
        logits = torch.einsum("bgrpd,bgsd->bgrps", grouped, key.float()).flatten(1, 2) * self.scaling
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits.masked_fill(~self.visible(index)[:, None], float("-inf")).softmax(-1)

    def rotated_keys(self) -> Tensor:
        """Keys after rotary embedding, positions counted from each sample's first token that is no padding.

        A rotation by a multiple of the padding would change norms other than the Euclidean one; counted from the first
        token, keys are the same in every batch.

        Returns:
            ``[batch, kv_heads, rows, head_dim]``.
        """
        keys = self.key.transpose(1, 2)
        return keys if self.rotate_from_first is None else self.rotate_from_first(keys)


@dataclass(frozen=True)
class Prompt:
    """The whole sequence as it enters the decoder, before any stage dropped a row of it.

    Attributes:
        embeddings: What enters layer 0, ``[batch, seq, dim]``: text embeddings and projected visual features.
        visual_mask: Visual tokens, bool ``[batch, seq]``.
        text_mask: Text tokens, no padding, bool ``[batch, seq]``.
        rows: Position in the sequence of each row that is left now, long ``[batch, rows]`` (-1 for padding that an
            earlier stage put in). Text is never dropped.
    """

    embeddings: Tensor
    visual_mask: Tensor
    text_mask: Tensor
    rows: Tensor

    def on_rows(self, chosen: Tensor) -> Tensor:
        """A mask of the whole sequence on the rows that are left, bool ``[batch, rows]``."""
        return chosen.gather(1, self.rows.clamp(min=0)) & (self.rows >= 0)


class TowerSignals(Protocol):
    """One layer of the vision tower, seen from the visual tokens.

    Where a projector merges or pools several patches into one token (Qwen-VL, Gemma 3, Idefics 3, InternVL, Mistral 3),
    the token has the mean over its patches, for attention as for keys. In a layer with windows (Qwen2.5-VL), patches
    get no attention from the other windows of their frame.
    """

    @property
    def attention(self) -> Tensor:
        """Attention that each token's patch receives, float32 ``[batch, n_visual]``.

        It comes from the class token (mean over heads), or from all patches on average in a tower without a class
        token.
        """

    @property
    def received(self) -> Tensor:
        """Attention that each token's patch receives from all tokens of the tower on average, as ``attention``."""

    @property
    def key(self) -> Tensor:
        """Keys before rotary embedding, mean over heads, float32 ``[batch, n_visual, head_dim]``."""


class Signals(Protocol):
    """Where a stage's signals come from: a running prefill, plain tensors in a test, or a serving engine."""

    def states(self, name: str) -> Tensor:
        """``query``, ``key`` or ``value`` of layer K-1 before rotary embedding, ``[batch, rows, heads, head_dim]``."""

    def attention(self) -> AttentionProbe:
        """Single rows of the attention of layer K-1."""

    def prompt(self) -> Prompt:
        """The whole sequence as it entered layer 0, the same at every stage."""

    def grid(self) -> Tensor:
        """(frame, row, column) of each visual token, long ``[batch, n_visual, 3]``; -1 for separators and padding."""

    def frames(self) -> Tensor:
        """Number, rows and columns of the frame of each visual token, long ``[batch, n_visual, 3]``."""

    def tower(self, layer: int) -> TowerSignals:
        """One layer of the vision tower."""

    def annotation(self, name: str) -> Tensor:
        """What the caller gave per visual token under a name, float32 ``[batch, n_visual]``."""


@dataclass(frozen=True)
class DeclaredSignals:
    """Signals that let a component read only what it declared.

    Attributes:
        source: Where the signals come from.
        needs: The declared signals; see :data:`SIGNALS`.
        tower_layers: The declared layers of the vision tower.
    """

    source: Signals
    needs: frozenset[str]
    tower_layers: frozenset[int]

    def states(self, name: str) -> Tensor:
        """See :meth:`Signals.states`."""
        self._require(name)
        return self.source.states(name)

    def attention(self) -> AttentionProbe:
        """See :meth:`Signals.attention`."""
        self._require("attention")
        return self.source.attention()

    def prompt(self) -> Prompt:
        """See :meth:`Signals.prompt`."""
        self._require("embeddings")
        return self.source.prompt()

    def grid(self) -> Tensor:
        """See :meth:`Signals.grid`."""
        return self.source.grid()

    def frames(self) -> Tensor:
        """See :meth:`Signals.frames`."""
        return self.source.frames()

    def tower(self, layer: int) -> TowerSignals:
        """See :meth:`Signals.tower`."""
        if layer not in self.tower_layers:
            raise ScoreError(f"layer {layer} of the vision tower was not declared", "add it to vision_layers")
        return self.source.tower(layer)

    def annotation(self, name: str) -> Tensor:
        """See :meth:`Signals.annotation`."""
        return self.source.annotation(name)

    def _require(self, name: str) -> None:
        if name not in self.needs:
            raise ScoreError(f"a component read {name!r}, which it did not declare", f"add {name!r} to its needs")
