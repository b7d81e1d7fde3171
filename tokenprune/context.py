"""What a scorer, a pruner or a layer selector may see. Lazy: nothing is computed that no one asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from tokenprune.errors import ScoreError, UnsupportedModelError
from tokenprune.ops.frames import earlier
from tokenprune.ops.per_image import PerImage
from tokenprune.ops.vision import TowerLayer, TowerRuns, on_visual_axis

#: Signals that a component may name in ``needs``; the engine captures exactly those.
SIGNALS = frozenset({"hidden", "query", "key", "value", "attention", "embeddings"})

#: Those among them that are no states of layer K-1: a stage before layer 0 can have them, too.
ENTERING = frozenset({"hidden", "embeddings"})


@dataclass(frozen=True)
class AttentionProbe:
    """What is needed to compute single rows of one layer's attention map, and no more.

    Attributes:
        query: Query states before rotary embedding, ``[batch, rows, heads, head_dim]``.
        key: Key states before rotary embedding, ``[batch, rows, kv_heads, head_dim]``.
        rotate: Applies the model's own rotary embedding to ``(query, key)`` given as
            ``[batch, heads, rows, head_dim]``.
        visible: ``visible(index [batch, picked]) -> bool [batch, picked, rows]``: what rows may attend to.
        scaling: The factor on the dot products.
        softcap: Logit soft cap (Gemma 2), or None.
    """

    query: Tensor
    key: Tensor
    rotate: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    visible: Callable[[Tensor], Tensor]
    scaling: float
    softcap: float | None = None

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


@dataclass(frozen=True)
class VisionSignals:
    """One layer of the vision tower, seen from the visual tokens.

    Where a projector merges or pools several patches to one token (Qwen-VL, Gemma 3, Idefics 3, InternVL, Mistral 3), a
    token has the mean over its patches, of attention as of keys. In a layer with windows (Qwen2.5-VL), patches get no
    attention from the other windows of their frame.

    Attributes:
        layer: The layer's states, image by image.
        order: Number of each visual token among all features of the batch, long ``[batch, n_visual]``.
        visual_mask: Which entries of the visual axis are real, bool ``[batch, n_visual]``.
    """

    layer: TowerLayer | TowerRuns
    order: Tensor
    visual_mask: Tensor

    @cached_property
    def attention(self) -> Tensor:
        """Attention that each token's patch receives, float32 ``[batch, n_visual]``.

        From the class token, mean over heads; of a tower without one, from all patches on average.
        """
        return on_visual_axis(self.layer.attention, self.order, self.visual_mask)

    @cached_property
    def received(self) -> Tensor:
        """Attention that each token's patch receives from all tokens of the tower on average, as ``attention``."""
        return on_visual_axis(self.layer.received, self.order, self.visual_mask)

    @cached_property
    def key(self) -> Tensor:
        """Keys before rotary embedding, mean over heads, float32 ``[batch, n_visual, head_dim]``."""
        return on_visual_axis(self.layer.mean_key, self.order, self.visual_mask)


@dataclass(frozen=True)
class PruneContext:
    """One pruning stage of one prefill, seen by scorers and pruners.

    The *rows* are the sequence as it stands before this stage (compacted by earlier stages); the *visual axis*
    ``n_visual`` lists each sample's visual tokens in order, right-padded to the longest sample.

    Attributes:
        layer: The layer before which tokens are dropped; what is observed is layer ``layer - 1``.
        num_layers: Decoder layers of the model.
        visual_mask: Which entries of the visual axis are real, bool ``[batch, n_visual]``.
        visual_rows: Row of each visual token, long ``[batch, n_visual]`` (0 where padding).
        positions: Position of each visual token in the unpruned sequence, long ``[batch, n_visual]``.
        groups: Image or video that each visual token belongs to, long ``[batch, n_visual]`` (-1 where padding).
        last_row: Row of each sample's last prompt token, long ``[batch]``.
        row_mask: Rows that are tokens and not padding, bool ``[batch, rows]``.
        hidden_rows: Hidden states that enter ``layer``, ``[batch, rows, dim]``.
        sample_ids: One integer per sample, stable under re-batching: the seed of anything random.
        captured: Signals captured at layer ``layer - 1``, on rows: ``query``, ``key``, ``value`` as
            ``[batch, rows, heads, head_dim]``.
        num_heads: Query heads of the decoder.
        sizes: Visual tokens per sample and group, host integers.
        quotas: Tokens to keep per sample and group, host integers: loops that need a count must not wait for one.
        target: Tokens to keep per sample after the *last* stage, host integers.
        open_ended: The pruner decides how many survive; ``quotas`` are the fewest.
    """

    layer: int
    num_layers: int
    num_heads: int
    visual_mask: Tensor
    visual_rows: Tensor
    positions: Tensor
    groups: Tensor
    last_row: Tensor
    row_mask: Tensor
    hidden_rows: Tensor
    sample_ids: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...] = ()
    quotas: tuple[tuple[int, ...], ...] = ()
    target: tuple[int, ...] = ()
    open_ended: bool = False
    captured: Mapping[str, Tensor] = field(default_factory=dict)
    make_probe: Callable[[], AttentionProbe] | None = None
    make_prompt: Callable[[], Prompt] | None = None
    make_grid: Callable[[], Tensor] | None = None
    make_frames: Callable[[], Tensor] | None = None
    make_vision: Callable[[int], TowerLayer | TowerRuns] | None = None
    feature_order: Callable[[], Tensor] | None = None
    annotations: Mapping[str, Tensor] = field(default_factory=dict)
    checks: list[tuple[Tensor, Callable[[int], Exception]]] = field(default_factory=list)

    @cached_property
    def text_mask(self) -> Tensor:
        """Rows that are text tokens, bool ``[batch, rows]``."""
        visual = torch.zeros_like(self.row_mask, dtype=torch.int32)
        visual.scatter_add_(1, self.visual_rows, self.visual_mask.int())  # padding adds nothing to its row 0
        return self.row_mask & (visual == 0)

    @cached_property
    def per_image(self) -> PerImage:
        """The visual tokens image by image, with sizes and quotas: for methods that loop or compare within images."""
        return PerImage(self.groups, self.sizes, self.quotas)

    def rows(self, signal: str) -> Tensor:
        """A signal of *all* rows, text included: ``hidden`` as ``[batch, rows, dim]``, else as in ``captured``."""
        return self.hidden_rows if signal == "hidden" else self._signal(signal)

    @cached_property
    def hidden(self) -> Tensor:
        """Hidden states of the visual tokens at the input of ``layer``, ``[batch, n_visual, dim]``."""
        return self._visual(self.hidden_rows)

    @cached_property
    def query(self) -> Tensor:
        """Query states at layer ``layer - 1`` before rotary embedding, ``[batch, n_visual, heads, head_dim]``."""
        return self._visual(self._signal("query"))

    @cached_property
    def key(self) -> Tensor:
        """Key states at layer ``layer - 1`` before rotary embedding, ``[batch, n_visual, kv_heads, head_dim]``."""
        return self._visual(self._signal("key"))

    @cached_property
    def value(self) -> Tensor:
        """Value states at layer ``layer - 1``, ``[batch, n_visual, kv_heads, head_dim]``."""
        return self._visual(self._signal("value"))

    @cached_property
    def probe(self) -> AttentionProbe:
        """Single rows of the attention of layer ``layer - 1`` (declare ``needs = {"attention"}``)."""
        if self.make_probe is None:
            raise ScoreError("a scorer asked for attention rows that it did not declare", "add 'attention' to needs")
        return self.make_probe()

    @cached_property
    def prompt(self) -> Prompt:
        """The whole sequence as it entered layer 0, the same at every stage (declare ``needs = {"embeddings"}``)."""
        if self.make_prompt is None:
            raise ScoreError("a scorer asked for the embeddings that it did not declare", "add 'embeddings' to needs")
        return self.make_prompt()

    @cached_property
    def grid(self) -> Tensor:
        """(frame, row, column) of each visual token, long ``[batch, n_visual, 3]``; -1 for separators and padding."""
        if self.make_grid is None:
            raise UnsupportedModelError("this model's adapter knows no token grid", "use a method that needs none")
        return self.make_grid()

    @cached_property
    def frames(self) -> Tensor:
        """Frame of each visual token, counted through the sample, long ``[batch, n_visual]``; -1 has no place.

        Images are frames, too: several of them follow each other like the frames of a video. Numbers are those of the
        unpruned prompt.
        """
        return self._frames[..., 0]

    @cached_property
    def frame_sizes(self) -> Tensor:
        """(rows, columns) that the frame of each token had in the unpruned prompt, long ``[batch, n_visual, 2]``."""
        return self._frames[..., 1:]

    @cached_property
    def _frames(self) -> Tensor:
        if self.make_frames is None:
            raise UnsupportedModelError("this model's adapter knows no token grid", "use a method that needs none")
        return self.make_frames()

    def earlier(self, lag: Tensor, required: bool = True) -> Tensor:
        """Place of the same cell ``lag`` frames earlier on the visual axis, long ``[batch, n_visual]``; -1 for none.

        If ``required``, the prefill fails for a sample in which no token has one: a single image, or images of
        different sizes.
        """
        found = earlier(self.frames, self.frame_sizes, self.grid, lag)
        if required:
            self.check_frames(found >= 0)
        return found

    def check_frames(self, compared: Tensor) -> None:
        """Let the prefill fail for samples without a single token that is compared with an earlier frame.

        Args:
            compared: Which tokens are, bool ``[batch, n_visual]``.
        """
        self.check(
            self.visual_mask.any(1) & ~compared.any(1),
            lambda sample: ScoreError(
                f"sample {sample} has no two frames with cells in common: there is nothing to compare over time",
                "give a video, or several images of one size, or use a method for single images",
            ),
        )

    def vision(self, layer: int) -> VisionSignals:
        """What a layer of the vision tower says of the visual tokens (declare it in ``vision_layers``)."""
        if self.make_vision is None or self.feature_order is None:
            raise ScoreError(f"layer {layer} of the vision tower was not declared", "add it to vision_layers")
        return VisionSignals(self.make_vision(layer), self.feature_order(), self.visual_mask)

    def check_finite(self, scores: Tensor, who: str) -> None:
        """Let the prefill fail where a real token's score is NaN or infinite: never is anything ranked by a NaN.

        Args:
            scores: ``[batch, n_visual]``.
            who: The scorer's name for the message, which also names layer and sample.
        """
        layer = self.layer  # alone: the flags live until the forward ends, and the context is large
        self.check(
            (~scores.isfinite() & self.visual_mask).any(1),
            lambda sample: ScoreError(
                f"scorer {who} gave a NaN or infinite score at layer {layer}, sample {sample}",
                "check the model's hidden states there (fp16 overflow?) or use another scorer",
            ),
        )

    def check(self, bad: Tensor, error: Callable[[int], Exception]) -> None:
        """Let the prefill fail for some samples, without waiting for the device now.

        The flags of all stages come to the host together when the forward is done, before its output leaves the
        model.

        Args:
            bad: Which samples are wrong, bool ``[batch]``.
            error: Makes the exception, given the first wrong sample.
        """
        self.checks.append((bad, error))

    def annotation(self, name: str) -> Tensor:
        """What the caller gave to ``run.annotate`` under that name, ``[batch, n_visual]`` (0 where padding)."""
        if name not in self.annotations:
            given = ", ".join(sorted(self.annotations)) or "none"
            raise ScoreError(
                f"annotation {name!r} was not given (given: {given})",
                f"call run.annotate({name}=[...]) before generate",
            )
        return self.annotations[name]

    def _signal(self, name: str) -> Tensor:
        if name not in self.captured:
            raise ScoreError(f"a scorer asked for {name!r} that it did not declare", f"add {name!r} to its needs")
        return self.captured[name]

    def _visual(self, rows: Tensor) -> Tensor:
        index = self.visual_rows.reshape(*self.visual_rows.shape, *([1] * (rows.dim() - 2)))
        return rows.gather(1, index.expand(-1, -1, *rows.shape[2:]))
