"""What a scorer, a pruner or a layer selector may see. Lazy: nothing is computed that no one asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from tokenprune.errors import ScoreError
from tokenprune.ops.frames import earlier
from tokenprune.ops.per_image import PerImage
from tokenprune.signals import AttentionProbe, Prompt, Signals, TowerSignals


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
        per_image: The visual tokens image by image, with sizes and quotas: for methods that loop or compare within
            images.
        last_row: Row of each sample's last prompt token, long ``[batch]``.
        row_mask: Rows that are tokens and not padding, bool ``[batch, rows]``.
        hidden_rows: Hidden states that enter ``layer``, ``[batch, rows, dim]``.
        sample_ids: One integer per sample, stable under re-batching: the seed of anything random.
        num_heads: Query heads of the decoder.
        target: Tokens to keep per sample after the *last* stage, host integers.
        open_ended: The pruner decides how many survive; ``quotas`` are the fewest.
        signals: Everything else that can be read; see :class:`tokenprune.signals.Signals`.
        checks: Flags of wrong samples, and the errors that they stand for; see :meth:`check`.
    """

    layer: int
    num_layers: int
    num_heads: int
    visual_mask: Tensor
    visual_rows: Tensor
    positions: Tensor
    per_image: PerImage
    last_row: Tensor
    row_mask: Tensor
    hidden_rows: Tensor
    sample_ids: tuple[int, ...]
    signals: Signals
    target: tuple[int, ...] = ()
    open_ended: bool = False
    checks: list[tuple[Tensor, Callable[[int], Exception]]] = field(default_factory=list)

    @cached_property
    def text_mask(self) -> Tensor:
        """Rows that are text tokens, bool ``[batch, rows]``."""
        visual = torch.zeros_like(self.row_mask, dtype=torch.int32)
        visual.scatter_add_(1, self.visual_rows, self.visual_mask.int())  # padding adds nothing to its row 0
        return self.row_mask & (visual == 0)

    @property
    def groups(self) -> Tensor:
        """Image or video that each visual token belongs to, long ``[batch, n_visual]`` (-1 where padding)."""
        return self.per_image.groups

    @property
    def quotas(self) -> Tensor:
        """Tokens to keep per sample and image, long ``[batch, images]``; images that a sample does not have keep 0.

        Their host integers are ``per_image.host_quotas``.
        """
        return self.per_image.quotas_by_sample

    def rows(self, signal: str) -> Tensor:
        """A signal of *all* rows, text included: ``hidden`` ``[batch, rows, dim]``, else ``[batch, rows, heads, dim]``.

        Args:
            signal: ``hidden``, ``query``, ``key`` or ``value``.
        """
        return self.hidden_rows if signal == "hidden" else self.signals.states(signal)

    @cached_property
    def hidden(self) -> Tensor:
        """Hidden states of the visual tokens at the input of ``layer``, ``[batch, n_visual, dim]``."""
        return self._visual(self.hidden_rows)

    @cached_property
    def query(self) -> Tensor:
        """Query states at layer ``layer - 1`` before rotary embedding, ``[batch, n_visual, heads, head_dim]``."""
        return self._visual(self.signals.states("query"))

    @cached_property
    def key(self) -> Tensor:
        """Key states at layer ``layer - 1`` before rotary embedding, ``[batch, n_visual, kv_heads, head_dim]``."""
        return self._visual(self.signals.states("key"))

    @cached_property
    def value(self) -> Tensor:
        """Value states at layer ``layer - 1``, ``[batch, n_visual, kv_heads, head_dim]``."""
        return self._visual(self.signals.states("value"))

    @cached_property
    def probe(self) -> AttentionProbe:
        """Single rows of the attention of layer ``layer - 1`` (declare ``needs = {"attention"}``)."""
        return self.signals.attention()

    @cached_property
    def prompt(self) -> Prompt:
        """The whole sequence as it entered layer 0, the same at every stage (declare ``needs = {"embeddings"}``)."""
        return self.signals.prompt()

    @cached_property
    def grid(self) -> Tensor:
        """(frame, row, column) of each visual token, long ``[batch, n_visual, 3]``; -1 for separators and padding."""
        return self.signals.grid()

    @cached_property
    def frames(self) -> Tensor:
        """Frame of each visual token, counted through the sample, long ``[batch, n_visual]``.

        Tokens without a place on a grid have -1. Images are frames, too: several images follow each other like the
        frames of a video. Frames keep the numbers that they have in the unpruned prompt.
        """
        return self._frames[..., 0]

    @cached_property
    def frame_sizes(self) -> Tensor:
        """(rows, columns) that the frame of each token had in the unpruned prompt, long ``[batch, n_visual, 2]``."""
        return self._frames[..., 1:]

    @cached_property
    def _frames(self) -> Tensor:
        return self.signals.frames()

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

    def vision(self, layer: int) -> TowerSignals:
        """One layer of the vision tower, seen from the visual tokens (declare it in ``vision_layers``)."""
        return self.signals.tower(layer)

    def check_finite(self, scores: Tensor, who: str) -> None:
        """Let the prefill fail where a real token's score is NaN or infinite.

        NaN scores are rejected, because a ranking by NaN is arbitrary.

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
        return self.signals.annotation(name)

    def _visual(self, rows: Tensor) -> Tensor:
        index = self.visual_rows.reshape(*self.visual_rows.shape, *([1] * (rows.dim() - 2)))
        return rows.gather(1, index.expand(-1, -1, *rows.shape[2:]))
