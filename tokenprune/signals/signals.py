"""Signals: what scorers and pruners can read of a running model, besides the hidden states that enter the stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from tokenprune.errors import ConfigError, ScoreError
from tokenprune.ops.gather import marked_first, rows_at
from tokenprune.ops.vision import StateSource
from tokenprune.signals.rows import Rows

#: States of the attention module of layer K-1 that a component can name in ``needs``.
LAYER_STATES = frozenset({"query", "key", "value"})

#: Signals that a stage before layer 0 can also read, because no layer has to run for them.
INPUT_SIGNALS = frozenset(
    {"annotations", "embeddings", "entering", "final_norm", "grid", "hidden", "sample_ids", "text", "tower_value"}
)

#: All signals that a component can name in ``needs``. The engine captures only the signals that are named.
SIGNALS = LAYER_STATES | INPUT_SIGNALS | {"attention", "previous"}

#: Signals of the whole sequence. A component that declares one of them need not declare ``text``, too.
WITH_TEXT = frozenset({"attention", "embeddings", "entering", "text"})


#: Attention rows that are computed at a time, which bounds the memory for a long text.
_ROWS = 64


def check_needs(needs: frozenset[str], component: str) -> None:
    """Refuse a component that declares an unknown signal.

    Args:
        needs: Signals that the component declares.
        component: Name of the component, for the message.

    Raises:
        ConfigError: ``needs`` contains a name that is not in :data:`SIGNALS`.
    """
    unknown = needs - SIGNALS
    if unknown:
        raise ConfigError(
            f"{component} declares the signals {', '.join(map(repr, sorted(unknown)))} in needs, which do not exist",
            f"use any of {', '.join(sorted(SIGNALS))}",
        )


@dataclass(frozen=True)
class AttentionProbe:
    """Computes single rows of one layer's attention map, without the whole map.

    Attributes:
        queries: ``queries(index [batch, picked])``: query states of some rows before rotary embedding,
            ``[batch, picked, heads, head_dim]``.
        key: Key states before rotary embedding, ``[batch, rows, kv_heads, head_dim]``.
        rotate: ``rotate(query, key, index)`` applies the model's rotary embedding to states
            ``[batch, heads, rows, head_dim]``. The rows of the queries are those of ``index``.
        visible: ``visible(index [batch, picked]) -> bool [batch, picked, rows]``: which rows the rows of ``index``
            attend to. With ``earlier``, ``[batch, picked, earlier + rows]``.
        scaling: Factor of the dot products.
        softcap: Logit soft cap (Gemma 2), or None.
        rotate_from_first: Applies the rotary embedding to keys ``[batch, kv_heads, rows, head_dim]`` as if each
            sample's first token had position 0. None where the layer has no rotary embedding.
        earlier: Keys of earlier turns of the conversation after rotary embedding, ``[batch, kv_heads, earlier,
            head_dim]``: rows attend to them, too. None in a first turn.
    """

    queries: Callable[[Tensor], Tensor]
    key: Tensor
    rotate: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    visible: Callable[[Tensor], Tensor]
    scaling: float
    softcap: float | None = None
    rotate_from_first: Callable[[Tensor], Tensor] | None = None
    earlier: Tensor | None = None

    def rows(self, index: Tensor) -> Tensor:
        """Attention probabilities of a few query rows.

        Args:
            index: Row indices, long ``[batch, picked]``.

        Returns:
            Float32 ``[batch, heads, picked, rows]``; every row sums to 1, less what earlier turns receive.
        """
        query, key = self.rotate(self.queries(index).transpose(1, 2), self.key.transpose(1, 2), index)
        rows = key.shape[2]
        if self.earlier is not None:
            key = torch.cat([self.earlier.to(key), key], dim=2)
        groups = query.shape[1] // key.shape[1]
        grouped = query.unflatten(1, (key.shape[1], groups)).float()
        logits = torch.einsum("bgrpd,bgsd->bgrps", grouped, key.float()).flatten(1, 2) * self.scaling
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        shares = logits.masked_fill(~self.visible(index)[:, None], float("-inf")).softmax(-1)
        return shares[..., shares.shape[-1] - rows :]

    def mean_of(self, marked: Tensor, most: int, filler: Tensor) -> Tensor:
        """Mean of the attention probabilities of some query rows, over heads and rows.

        Args:
            marked: The query rows, bool ``[batch, rows]``; at least one per sample.
            most: Upper bound of the query rows of a sample, as a host integer, so that nothing waits for the device.
            filler: A row of each sample that attends to something, long ``[batch]``: it is computed, and not counted,
                where a sample has fewer query rows than others.

        Returns:
            Float32 ``[batch, rows]``.
        """
        index, valid = marked_first(marked, most)
        index = torch.where(valid, index, filler[:, None])
        total = torch.zeros(marked.shape, device=index.device)
        for index_chunk, valid_chunk in zip(index.split(_ROWS, dim=1), valid.split(_ROWS, dim=1), strict=True):
            total += (self.rows(index_chunk).mean(1) * valid_chunk[:, :, None]).sum(1)
        return total / valid.sum(1, keepdim=True)

    def rotated_keys(self) -> Tensor:
        """Keys after rotary embedding, with positions counted from each sample's first token after the padding.

        Left padding would shift the positions, and so change the keys' norms (except the Euclidean norm). Counted from
        the first token, the keys are the same in every batch.

        Returns:
            ``[batch, kv_heads, rows, head_dim]``.
        """
        keys = self.key.transpose(1, 2)
        return keys if self.rotate_from_first is None else self.rotate_from_first(keys)


@dataclass(frozen=True)
class Prompt:
    """The full prompt as it entered layer 0, before any stage dropped tokens.

    Attributes:
        embeddings: Input of layer 0, ``[batch, seq, dim]``: text embeddings and projected visual features.
        visual_mask: Visual tokens, bool ``[batch, seq]``.
        text_mask: Text tokens without padding, bool ``[batch, seq]``.
        rows: Position in the full prompt of each row of the current sequence, long ``[batch, rows]``; -1 for padding
            that an earlier stage inserted. Text is never dropped.
    """

    embeddings: Tensor
    visual_mask: Tensor
    text_mask: Tensor
    rows: Tensor

    def on_rows(self, mask: Tensor) -> Tensor:
        """Gather a mask of the full prompt, bool ``[batch, seq]``, on the current rows, bool ``[batch, rows]``."""
        return mask.gather(1, self.rows.clamp(min=0)) & (self.rows >= 0)


class TowerSignals(Protocol):
    """Signals of one layer of the vision tower, per visual token.

    If the projector merges several patches into one token (Qwen-VL, Gemma 3, Idefics 3, InternVL, Mistral 3), the
    token's attention, key, features and states are means over its patches. Where the model scales or pools patches with
    weights (LLaVA-OneVision), the means have these weights; newlines are made of no patch, and all their signals are 0.
    In a layer with windows (Qwen2.5-VL), patches receive no attention from the other windows of their frame.
    """

    @property
    def attention(self) -> Tensor:
        """Attention that each token's patch receives, float32 ``[batch, n_visual]``.

        The attention is the class token's, mean over heads. In a tower without a class token it is the mean over all
        patches. A component whose ``requires_class_token`` is true (see
        :class:`~tokenprune.signals.signal_reader.SignalReader`) never gets the mean.
        """

    @property
    def received(self) -> Tensor:
        """Attention that each token's patch receives, mean over all tokens of the tower, like ``attention``."""

    @property
    def key(self) -> Tensor:
        """Keys before rotary embedding, mean over heads, float32 ``[batch, n_visual, head_dim]``."""

    @property
    def features(self) -> Tensor:
        """States that leave the layer, before any norm and projector, float32 ``[batch, n_visual, width]``.

        For the layer from which a model takes its features (LLaVA: -2), these are the input of the projector.
        """

    def states(self, source: StateSource) -> Tensor:
        """States of each token head by head, float32 ``[batch, n_visual, heads, head_dim]``.

        Of a token that is made of several patches they are the mean of the patches' states: what is computed from them,
        e.g. an entropy, is that of the mean, not the mean of the patches' entropies.

        Args:
            source: ``query``, ``key`` and ``value`` are read before rotary embedding, ``query`` and ``key`` behind a
                norm of their own where the tower has one. A component that reads ``value`` declares ``tower_value`` in
                its ``needs``. ``hidden`` are :attr:`features`, split into as many slices as the tower has heads.

        Raises:
            ScoreError: ``value`` is not declared, or there are no states of that name.
            UnsupportedFeatureError: The width of the hidden states is no multiple of the heads.
        """

    @property
    def tiles(self) -> Sequence[Tensor] | None:
        """The tower's image (tile of an image, frame of a video) that each visual token is made of, per sample.

        Before any stage, long ``[tokens]`` on the host; -1 for tokens made of no patch. None where the tower gets whole
        images.

        Raises:
            UnsupportedFeatureError: The batch holds both images and videos with tiles.
        """

    @property
    def projector(self) -> Callable[[Tensor], Tensor] | None:
        """The model's projector, which maps :attr:`features` token by token: ``[..., width]`` to ``[..., dim]``.

        It takes other states in their place, in the model's dtype. None where no such module exists: the model takes
        its features from another layer, or its projector mixes, pools or scales patches.
        """


class Signals(Protocol):
    """Source of a stage's signals: a running prefill, plain tensors in a test, or a serving engine."""

    def hidden(self) -> Tensor:
        """Hidden states of the visual tokens that enter layer K, ``[batch, n_visual, dim]``."""

    def states(self, name: str) -> Tensor:
        """States of the visual tokens at layer K-1.

        Args:
            name: ``query``, ``key`` or ``value`` before rotary embedding, ``[batch, n_visual, heads, head_dim]``; or
                ``previous``, the hidden states that entered the layer, ``[batch, n_visual, dim]``.
        """

    def sequence(self) -> Rows:
        """All rows that enter layer K, text included."""

    def attention(self) -> AttentionProbe:
        """Single rows of the attention of layer K-1."""

    def entering(self) -> AttentionProbe:
        """Single rows of the attention of layer K itself, over the rows that enter it."""

    def final_norm(self) -> Callable[[Tensor], Tensor]:
        """The norm behind the last decoder layer, ``[..., dim]`` to ``[..., dim]``."""

    def prompt(self) -> Prompt:
        """The full prompt as it entered layer 0; every stage gets the same."""

    def grid(self) -> Tensor:
        """(frame, row, column) of each visual token, long ``[batch, n_visual, 3]``; -1 for separators and padding."""

    def frames(self) -> Tensor:
        """Number, height and width of each visual token's frame, long ``[batch, n_visual, 3]``; sizes in tokens."""

    def frame_numbers(self) -> Sequence[Tensor]:
        """Frame of each visual token of each sample before any stage, long ``[tokens]`` on the host; -1 for none."""

    def tower(self, layer: int) -> TowerSignals:
        """One layer of the vision tower."""

    def annotation(self, name: str) -> Tensor:
        """Values that the caller provides for the visual tokens, by name, float32 ``[batch, n_visual]``."""

    def sample_ids(self) -> tuple[int, ...]:
        """One integer per sample, the same in every batch. Random choices are seeded with it."""


@dataclass(frozen=True)
class DeclaredSignals:
    """Signals of which a component can read only those that it declares.

    Attributes:
        source: Source of the signals.
        needs: The declared signals; see :data:`SIGNALS`.
        tower_layers: The declared layers of the vision tower.
    """

    source: Signals
    needs: frozenset[str]
    tower_layers: frozenset[int]

    def hidden(self) -> Tensor:
        """See :meth:`Signals.hidden`: they need not be declared."""
        return self.source.hidden()

    def states(self, name: str) -> Tensor:
        """See :meth:`Signals.states`."""
        self._require(name)
        return self.source.states(name)

    def sequence(self) -> Rows:
        """See :meth:`Signals.sequence`."""
        if not self.needs & WITH_TEXT:
            self._require("text")
        return self.source.sequence()

    def attention(self) -> AttentionProbe:
        """See :meth:`Signals.attention`."""
        self._require("attention")
        return self.source.attention()

    def entering(self) -> AttentionProbe:
        """See :meth:`Signals.entering`."""
        self._require("entering")
        return self.source.entering()

    def final_norm(self) -> Callable[[Tensor], Tensor]:
        """See :meth:`Signals.final_norm`."""
        self._require("final_norm")
        return self.source.final_norm()

    def prompt(self) -> Prompt:
        """See :meth:`Signals.prompt`."""
        self._require("embeddings")
        return self.source.prompt()

    def grid(self) -> Tensor:
        """See :meth:`Signals.grid`."""
        self._require("grid")
        return self.source.grid()

    def frames(self) -> Tensor:
        """See :meth:`Signals.frames`."""
        self._require("grid")
        return self.source.frames()

    def frame_numbers(self) -> Sequence[Tensor]:
        """See :meth:`Signals.frame_numbers`."""
        self._require("grid")
        return self.source.frame_numbers()

    def tower(self, layer: int) -> TowerSignals:
        """See :meth:`Signals.tower`."""
        if layer not in self.tower_layers:
            raise ScoreError(
                f"a component read layer {layer} of the vision tower, which it does not declare",
                f"add {layer} to its vision_layers",
            )
        return self.source.tower(layer)

    def annotation(self, name: str) -> Tensor:
        """See :meth:`Signals.annotation`."""
        self._require("annotations")
        return self.source.annotation(name)

    def sample_ids(self) -> tuple[int, ...]:
        """See :meth:`Signals.sample_ids`."""
        self._require("sample_ids")
        return self.source.sample_ids()

    def _require(self, name: str) -> None:
        if name not in self.needs:
            raise ScoreError(f"a component read {name!r}, which it does not declare", f"add {name!r} to its needs")


@dataclass(frozen=True)
class GatheredTower:
    """One layer of the vision tower, gathered on a visual axis when it is read. See :class:`TowerSignals`.

    Attributes:
        source: The layer with other first axes: the rows of a batch, the features of a tower, a longer visual axis.
        gather: Brings values from there to the visual axis, ``[batch, n_visual, ...]``.
    """

    source: TowerSignals
    gather: Callable[[Tensor], Tensor]

    @cached_property
    def attention(self) -> Tensor:
        """See :attr:`TowerSignals.attention`."""
        return self.gather(self.source.attention)

    @cached_property
    def received(self) -> Tensor:
        """See :attr:`TowerSignals.received`."""
        return self.gather(self.source.received)

    @cached_property
    def key(self) -> Tensor:
        """See :attr:`TowerSignals.key`."""
        return self.gather(self.source.key)

    @cached_property
    def features(self) -> Tensor:
        """See :attr:`TowerSignals.features`."""
        return self.gather(self.source.features)

    def states(self, source: StateSource) -> Tensor:
        """See :meth:`TowerSignals.states`."""
        return self.gather(self.source.states(source))

    @property
    def tiles(self) -> Sequence[Tensor] | None:
        """See :attr:`TowerSignals.tiles`."""
        return self.source.tiles

    @property
    def projector(self) -> Callable[[Tensor], Tensor] | None:
        """See :attr:`TowerSignals.projector`."""
        return self.source.projector


@dataclass(frozen=True)
class PickedSignals:
    """Signals of some of the visual tokens, as if the others had been dropped. See :class:`Signals`.

    Attention rows and the prompt are those of all tokens.

    Attributes:
        source: Signals of all visual tokens.
        index: Index of each picked token on the visual axis, long ``[batch, picked]``.
        mask: Entries that are tokens and not padding, bool ``[batch, picked]``.
    """

    source: Signals
    index: Tensor
    mask: Tensor

    def hidden(self) -> Tensor:
        """See :meth:`Signals.hidden`."""
        return rows_at(self.source.hidden(), self.index)

    def states(self, name: str) -> Tensor:
        """See :meth:`Signals.states`."""
        return rows_at(self.source.states(name), self.index)

    def sequence(self) -> Rows:
        """See :meth:`Signals.sequence`."""
        return self.source.sequence().among(self.index, self.mask)

    def attention(self) -> AttentionProbe:
        """See :meth:`Signals.attention`."""
        return self.source.attention()

    def entering(self) -> AttentionProbe:
        """See :meth:`Signals.entering`."""
        return self.source.entering()

    def final_norm(self) -> Callable[[Tensor], Tensor]:
        """See :meth:`Signals.final_norm`."""
        return self.source.final_norm()

    def prompt(self) -> Prompt:
        """See :meth:`Signals.prompt`."""
        return self.source.prompt()

    def grid(self) -> Tensor:
        """See :meth:`Signals.grid`."""
        return rows_at(self.source.grid(), self.index).masked_fill(~self.mask[:, :, None], -1)

    def frames(self) -> Tensor:
        """See :meth:`Signals.frames`."""
        return rows_at(self.source.frames(), self.index).masked_fill(~self.mask[:, :, None], -1)

    def frame_numbers(self) -> Sequence[Tensor]:
        """See :meth:`Signals.frame_numbers`: of all tokens, also of those that were not picked."""
        return self.source.frame_numbers()

    def tower(self, layer: int) -> TowerSignals:
        """See :meth:`Signals.tower`."""
        return GatheredTower(self.source.tower(layer), lambda values: rows_at(values, self.index))

    def annotation(self, name: str) -> Tensor:
        """See :meth:`Signals.annotation`."""
        return rows_at(self.source.annotation(name), self.index).masked_fill(~self.mask, 0.0)

    def sample_ids(self) -> tuple[int, ...]:
        """See :meth:`Signals.sample_ids`."""
        return self.source.sample_ids()
