"""The view of a pruning stage that scorers and pruners get. Signals are computed when they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from torch import Tensor

from tokenprune.errors import ScoreError, UnsupportedFeatureError
from tokenprune.ops.frames import earlier, frame_by_frame
from tokenprune.ops.gather import marked_first
from tokenprune.ops.per_image import PerImage
from tokenprune.ops.tiles import per_tile
from tokenprune.signals.rows import Rows
from tokenprune.signals.signals import AttentionProbe, PickedSignals, Prompt, Signals, TowerSignals

#: The unit that has a quota of its own: each image, or each tile of an image.
Per = Literal["tile", "image"]


@dataclass(frozen=True)
class TokenGrid:
    """Rows, columns and frames of the visual tokens. Computed when they are read; models without a grid then raise.

    Images count as frames: several images follow each other like the frames of a video. Frames have the numbers and
    sizes that they have in the unpruned prompt.

    Attributes:
        signals: Source of the coordinates.
        visual_mask: Entries of the visual axis that are tokens and not padding, bool ``[batch, n_visual]``.
        check: See :meth:`PruneContext.check`.
    """

    signals: Signals
    visual_mask: Tensor
    check: Callable[[Tensor, Callable[[int], Exception]], None]

    @cached_property
    def coordinates(self) -> Tensor:
        """(frame, row, column) of each visual token, long ``[batch, n_visual, 3]``; -1 for separators and padding.

        The frame is counted within the token's own image or video.
        """
        return self.signals.grid()

    @cached_property
    def frames(self) -> Tensor:
        """Frame of each visual token, numbered through the sample, long ``[batch, n_visual]``; -1 for separators."""
        return self._frames[..., 0]

    @cached_property
    def frame_sizes(self) -> Tensor:
        """(rows, columns) of each token's frame, long ``[batch, n_visual, 2]``; -1 for separators."""
        return self._frames[..., 1:]

    @cached_property
    def _frames(self) -> Tensor:
        return self.signals.frames()

    def earlier(self, lag: Tensor, required: bool = True) -> Tensor:
        """Find the token at the same grid position some frames earlier.

        Args:
            lag: Number of frames, long ``[batch, n_visual]``.
            required: Whether the prefill fails if no token of a sample has such a token (a single image, or images of
                different sizes).

        Returns:
            Its index on the visual axis, long ``[batch, n_visual]``; -1 for none.
        """
        index = earlier(self.frames, self.frame_sizes, self.coordinates, lag)
        if required:
            self.check_compared(index >= 0)
        return index

    def check_compared(self, compared: Tensor) -> None:
        """Let the prefill fail if no token of a sample can be compared with an earlier frame.

        Args:
            compared: Tokens that can be compared with an earlier frame, bool ``[batch, n_visual]``.
        """
        self.check(
            self.visual_mask.any(1) & ~compared.any(1),
            lambda sample: ScoreError(
                f"sample {sample} has no two frames with a grid position in common: no tokens can be compared",
                "give a video or several images of one size, or use a method for single images",
            ),
        )


@dataclass(frozen=True)
class PruneContext:
    """One pruning stage of one prefill, as scorers and pruners see it.

    The *rows* are the sequence before this stage, without the tokens that earlier stages dropped. The *visual axis*
    ``n_visual`` lists each sample's visual tokens in order, right-padded to the longest sample.

    Attributes:
        layer: Tokens are dropped before this layer; signals are those of layer ``layer - 1``.
        num_layers: Decoder layers of the model.
        visual_mask: Entries of the visual axis that are tokens and not padding, bool ``[batch, n_visual]``.
        per_image: The visual tokens image by image, with sizes and quotas, for methods that treat images one by one.
        num_heads: Query heads of the layer whose states are read.
        target: Tokens to keep per sample after the *last* stage, host integers.
        open_ended: Whether the pruner decides how many tokens survive; ``quotas`` are then lower bounds.
        signals: All other signals; see :class:`tokenprune.signals.signals.Signals`.
        checks: Flags of invalid samples with the errors to raise; see :meth:`check`.
    """

    layer: int
    num_layers: int
    num_heads: int
    visual_mask: Tensor
    per_image: PerImage
    signals: Signals
    target: tuple[int, ...] = ()
    open_ended: bool = False
    checks: list[tuple[Tensor, Callable[[int], Exception]]] = field(default_factory=list)

    @cached_property
    def _rows(self) -> Rows:
        return self.signals.sequence()

    @property
    def hidden_rows(self) -> Tensor:
        """Hidden states that enter ``layer``, ``[batch, rows, dim]``; needs ``text``."""
        return self._rows.hidden

    @property
    def row_mask(self) -> Tensor:
        """Rows that are tokens and not padding, bool ``[batch, rows]``; needs ``text``."""
        return self._rows.mask

    @property
    def text_mask(self) -> Tensor:
        """Rows that are text tokens, bool ``[batch, rows]``; needs ``text``."""
        return self._rows.text

    @property
    def last_row(self) -> Tensor:
        """Row of each sample's last prompt token, long ``[batch]``; needs ``text``."""
        return self._rows.last

    @property
    def visual_rows(self) -> Tensor:
        """Row of each visual token, long ``[batch, n_visual]`` (0 where padding); needs ``text``."""
        return self._rows.axis.rows

    @property
    def positions(self) -> Tensor:
        """Position of each visual token in the unpruned sequence, long ``[batch, n_visual]``; needs ``text``."""
        return self._rows.axis.positions

    @property
    def sample_ids(self) -> tuple[int, ...]:
        """One integer per sample, the same in every batch; needs ``sample_ids``. Random choices are seeded with it."""
        return self.signals.sample_ids()

    @property
    def groups(self) -> Tensor:
        """Image or video that each visual token belongs to, long ``[batch, n_visual]`` (-1 where padding)."""
        return self.per_image.groups

    @property
    def quotas(self) -> Tensor:
        """Tokens to keep per sample and image, long ``[batch, images]``; 0 where a sample has fewer images.

        The same numbers as host integers are ``per_image.host_quotas``.
        """
        return self.per_image.quotas_by_sample

    @cached_property
    def hidden(self) -> Tensor:
        """Hidden states of the visual tokens at the input of ``layer``, ``[batch, n_visual, dim]``."""
        return self.signals.hidden()

    @cached_property
    def query(self) -> Tensor:
        """Query states at layer ``layer - 1`` before rotary embedding, ``[batch, n_visual, heads, head_dim]``."""
        return self.signals.states("query")

    @cached_property
    def key(self) -> Tensor:
        """Key states at layer ``layer - 1`` before rotary embedding, ``[batch, n_visual, kv_heads, head_dim]``."""
        return self.signals.states("key")

    @cached_property
    def value(self) -> Tensor:
        """Value states at layer ``layer - 1``, ``[batch, n_visual, kv_heads, head_dim]``."""
        return self.signals.states("value")

    @cached_property
    def previous(self) -> Tensor:
        """Hidden states of the visual tokens at the input of layer ``layer - 1``, ``[batch, n_visual, dim]``."""
        return self.signals.states("previous")

    @cached_property
    def probe(self) -> AttentionProbe:
        """Single attention rows of layer ``layer - 1``; needs ``attention``."""
        return self.signals.attention()

    @cached_property
    def entering_probe(self) -> AttentionProbe:
        """Single rows of the attention of ``layer`` itself, on the states that enter it; needs ``entering``.

        The layer's norm and its query and key projections are applied once more for it: to all rows for the keys, and
        to the asked rows for the queries.
        """
        return self.signals.entering()

    def final_norm(self, states: Tensor) -> Tensor:
        """Hidden states as the decoder's final norm, behind the last layer, would leave them; needs ``final_norm``.

        Args:
            states: Hidden states of any layer, ``[..., dim]``.
        """
        return self.signals.final_norm()(states)

    @cached_property
    def prompt(self) -> Prompt:
        """The full prompt as it entered layer 0, the same at every stage; needs ``embeddings``."""
        return self.signals.prompt()

    @cached_property
    def grid(self) -> TokenGrid:
        """Where the visual tokens are in their images and in the frames of their videos; needs ``grid``."""
        return TokenGrid(self.signals, self.visual_mask, self.check)

    def vision(self, layer: int) -> TowerSignals:
        """Signals of one layer of the vision tower, per visual token; needs the layer in ``vision_layers``."""
        return self.signals.tower(layer)

    def regions(self, per: Per, layer: int) -> PerImage:
        """The visual tokens image by image, or tile by tile: the quota of an image divided by the patches of its tiles.

        A tile is what the vision tower gets as one image: a tile of a large image, or a frame of a video. Towers that
        get whole images have one tile per image.

        Args:
            per: The unit that has a quota of its own.
            layer: A declared layer of the vision tower; read for tiles only.

        Raises:
            UnsupportedFeatureError: Per tile, an earlier stage dropped tokens, or a batch holds images and videos.
        """
        tiles = self.vision(layer).tiles if per == "tile" else None
        if tiles is None:
            return self.per_image
        if [sum(sizes) for sizes in self.per_image.host_sizes] != [len(sample) for sample in tiles]:
            raise UnsupportedFeatureError(
                f"tiles are known before any token is dropped, and layer {self.layer} is behind an earlier stage",
                "use per: image, or prune per tile at the first stage",
            )
        return per_tile(self.per_image, tiles)

    def by_frame(self, quotas: Callable[[int, Sequence[int], int], Sequence[int]]) -> PerImage:
        """The visual tokens frame by frame: frames take the place of images, in the order of the sample.

        Needs ``grid``. Tokens without a frame (row separators) are in no frame, and ``join`` gives 0 for them.

        Args:
            quotas: Makes the quotas of an image's frames from the image's quota, the tokens of each of its frames, and
                the number of its tokens without a frame; all host integers.

        Raises:
            UnsupportedFeatureError: An earlier stage dropped tokens.
        """
        numbers = self.signals.frame_numbers()
        if [sum(sizes) for sizes in self.per_image.host_sizes] != [len(sample) for sample in numbers]:
            raise UnsupportedFeatureError(
                f"frames are known before any token is dropped, and layer {self.layer} is behind an earlier stage",
                "prune frame by frame at the first stage",
            )
        return frame_by_frame(self.per_image, numbers, self.grid.frames, quotas)

    def among(self, picked: Tensor, sizes: Sequence[Sequence[int]]) -> tuple[PruneContext, Tensor]:
        """This stage as if only some of the visual tokens had reached it.

        Attention rows are those of the layer as it ran, with all tokens.

        Args:
            picked: The tokens, bool ``[batch, n_visual]``.
            sizes: Picked tokens of each image, per sample; host integers, so that nothing waits for the device.

        Returns:
            The context; and for each entry of its visual axis the index on this one, long ``[batch, picked]``. Indices
            of padding are those of tokens that are not picked, so that no index stands twice.
        """
        picked = picked & self.visual_mask
        index, mask = marked_first(picked, max(1, *map(sum, sizes)))
        groups = self.groups.gather(1, index).masked_fill(~mask, -1)
        context = replace(
            self,
            visual_mask=mask,
            per_image=PerImage(groups, sizes, self.per_image.host_quotas),
            signals=PickedSignals(self.signals, index, mask),
        )
        return context, index

    def check_finite(self, scores: Tensor, name: str) -> None:
        """Let the prefill fail if the score of a token is NaN or infinite.

        NaN scores are rejected because a ranking by NaN is arbitrary. Padding is not checked.

        Args:
            scores: ``[batch, n_visual]``.
            name: Name of the scorer or pruner. The message states it together with layer and sample.
        """
        layer = self.layer  # the error must not hold the large context until the forward pass ends
        self.check(
            (~scores.isfinite() & self.visual_mask).any(1),
            lambda sample: ScoreError(
                f"{name} gave a NaN or infinite score at layer {layer}, sample {sample}",
                "check the model's hidden states there (fp16 overflow?) or use another scorer",
            ),
        )

    def check(self, bad: Tensor, error: Callable[[int], Exception]) -> None:
        """Let the prefill fail if any sample is invalid, without waiting for the device now.

        The flags of all stages are copied to the host together, at the end of the forward pass.

        Args:
            bad: Invalid samples, bool ``[batch]``.
            error: Makes the exception from the number of the first invalid sample.
        """
        self.checks.append((bad, error))

    def annotation(self, name: str) -> Tensor:
        """The values given to ``run.annotate`` under a name, ``[batch, n_visual]``; 0 where padding.

        Needs ``annotations``.
        """
        return self.signals.annotation(name)
