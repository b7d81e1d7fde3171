"""The result of a method applied to a model: which tokens were kept, and what this saves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.adapters.views import PlacedItem
from tokenprune.budgets.base import Schedule
from tokenprune.budgets.layer_average import layer_average
from tokenprune.budgets.slug import slug
from tokenprune.config import Method
from tokenprune.errors import ConfigError, TokenPruneError, UnsupportedFeatureError, UnsupportedModelError
from tokenprune.flops import prefill_flops
from tokenprune.pictures.convert import as_pictures
from tokenprune.pictures.draw import draw
from tokenprune.pictures.html import html_of
from tokenprune.pictures.look import Look, StageLook
from tokenprune.pictures.place import grids_of, views_of
from tokenprune.selectors.base import LayerChoice

if TYPE_CHECKING:  # matplotlib is optional: only pictures need it
    from matplotlib.figure import Figure


class Clock:
    """A point in time, on the host or in the device's stream. Recording it does not wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self.event: Any = None
        self.host = time.perf_counter()
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def since(self, start: Clock) -> float:
        """Milliseconds since ``start``. This call waits for the device."""
        if self.event is None:
            return (self.host - start.host) * 1e3
        self.event.synchronize()
        return float(start.event.elapsed_time(self.event))


@dataclass(frozen=True)
class StageTokens:
    """The visual tokens that entered a stage, in the order of the prompt. Tensors stay where the model put them.

    Attributes:
        positions: Position of each token in the unpruned sequence, long ``[batch, tokens]``.
        real: Which entries are tokens, bool ``[batch, tokens]``; positions of the others mean nothing.
        keep: Which tokens survived, bool ``[batch, tokens]``.
        scores: What the pruner preferred, floating ``[batch, tokens]``, as in
            :class:`~tokenprune.pruners.base.Selection`; None if it scores no single tokens.
        merged: The kept token that each dropped one was merged into, as its index here, long ``[batch, tokens]``; -1
            for none. None if the pruner merges nothing.
    """

    positions: Tensor
    real: Tensor
    keep: Tensor
    scores: Tensor | None = None
    merged: Tensor | None = None

    def survivors(self) -> StageTokens:
        """The same tokens as a later stage sees them that drops nothing."""
        return StageTokens(self.positions, self.keep, self.keep)


@dataclass
class StageResult:
    """One pruning stage of the last prefill.

    Attributes:
        layer: Tokens were dropped before this layer.
        before: Visual tokens per sample before the stage.
        after: Visual tokens per sample after the stage.
        rows: Position in the unpruned sequence of each row from ``layer`` on, long ``[batch, rows]``; -1 for the
            padding of samples that kept fewer tokens. None if nothing was pruned.
        reason: Why nothing was pruned; None if tokens were pruned.
        tokens: The tokens that entered the stage, what the pruner saw in them, and which survived; None where the
            prompt held no visual tokens.
    """

    layer: int
    before: list[int]
    after: list[int]
    rows: Tensor | None = None
    reason: str | None = None
    tokens: StageTokens | None = field(default=None, repr=False)

    @cached_property
    def kept(self) -> Tensor:
        """Unpruned positions of the kept visual tokens, long ``[batch, max_kept]``, ascending, -1 padded.

        After a stage that dropped nothing these are all visual tokens that entered it.
        """
        if self.tokens is None:
            return torch.full((len(self.after), 0), -1)
        keep, width = self.tokens.keep, max(self.after, default=0)
        order = (~keep).int().argsort(dim=1, stable=True)[:, :width]
        return self.tokens.positions.gather(1, order).masked_fill(~keep.gather(1, order), -1)

    def look(self, sample: int, places: NDArray[np.int64]) -> StageLook:
        """What can be drawn of the stage.

        Args:
            sample: Number of the sample.
            places: Positions of all its visual tokens in the unpruned sequence, ascending.
        """
        tokens = self.tokens
        assert tokens is not None
        real = tokens.real[sample].cpu().numpy()
        at = np.searchsorted(places, tokens.positions[sample].cpu().numpy()[real])  # of the tokens that entered

        def spread(values: NDArray[Any], empty: Any) -> NDArray[Any]:
            out = np.full(len(places), empty, dtype=values.dtype)
            out[at] = values
            return out

        # a budget that drops everything leaves nothing to score
        scores, merged = tokens.scores if self.after[sample] else None, tokens.merged
        into = None if merged is None else merged[sample].cpu().numpy()
        entry = np.full(len(real), -1)
        entry[real] = at
        return StageLook(
            self.layer,
            spread(tokens.keep[sample].cpu().numpy()[real], False),
            None if scores is None else spread(scores[sample].float().cpu().numpy()[real], np.nan),
            None if into is None else spread(np.where(into[real] < 0, -1, entry[into[real]]), -1),
            self.reason,
        )


@dataclass
class PrefillRecord:
    """Record of one prefill, which the engine fills while the model runs.

    Attributes:
        text_tokens: Tokens per sample that are not visual, padding included.
        stages: The stages that have been completed.
        clock: Start and end of scoring and selecting at each stage.
        kv_bytes: Bytes of the KV cache after the prefill; 0 without a cache.
        kv_bytes_unpruned: Bytes that the cache would have without pruning.
        places: Tells where the visual tokens lie on the pictures, item by item for each sample; None where the family's
            adapter knows no grid. Only pictures need it, so it is found out when it is asked for.
    """

    text_tokens: list[int] = field(default_factory=list)
    stages: list[StageResult] = field(default_factory=list)
    clock: list[tuple[Clock, Clock]] = field(default_factory=list)
    kv_bytes: int = 0
    kv_bytes_unpruned: int = 0
    places: Callable[[], Sequence[Sequence[PlacedItem]] | None] = lambda: None


@dataclass(frozen=True)
class Annotations:
    """Data that the caller provides for the following prefills.

    Attributes:
        sample_ids: One stable integer per sample; None to count the samples.
        values: One vector per sample, by name.
    """

    sample_ids: tuple[int, ...] | None = None
    values: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)


@dataclass
class Report:
    """Summary of the last prefill. ``print(report)`` shows it.

    Attributes:
        model: Family of the model.
        choice: The layers before which tokens are dropped, and why these were chosen.
        stages: The stages; see :class:`StageResult`.
        num_layers: Decoder layers.
        text_tokens: Tokens per sample that are not visual, padding included.
        kv_bytes: Bytes of the KV cache after the prefill; 0 without a cache.
        kv_bytes_unpruned: Bytes that the cache would have without pruning.
        score_ms: Milliseconds spent on scoring and selecting in all stages.
        text_config: Config of the decoder, from which FLOPs are computed.
    """

    model: str
    choice: LayerChoice
    stages: list[StageResult]
    num_layers: int
    text_tokens: list[int]
    kv_bytes: int
    kv_bytes_unpruned: int
    score_ms: float
    text_config: Any = field(default=None, repr=False)

    @property
    def before(self) -> list[int]:
        """Visual tokens per sample before the first stage."""
        return self.stages[0].before if self.stages else []

    @property
    def after(self) -> list[int]:
        """Visual tokens per sample after the last stage."""
        return self.stages[-1].after if self.stages else []

    @property
    def reason(self) -> str | None:
        """Why nothing was pruned; None if tokens were pruned."""
        reasons = [stage.reason for stage in self.stages]
        return reasons[0] if reasons and all(reasons) else None

    def layer_average(self, sample: int = 0) -> float:
        """Visual tokens of a sample averaged over all decoder layers."""
        schedule = Schedule(tuple(stage.layer for stage in self.stages), self.num_layers)
        return layer_average(self.before[sample], tuple(stage.after[sample] for stage in self.stages), schedule)

    def tokens_per_layer(self, sample: int = 0, pruned: bool = True) -> list[int]:
        """Tokens of a sample, text and visual, that each decoder layer processes in the prefill."""
        counts = [self.before[sample]] * self.num_layers
        for stage in self.stages if pruned else ():
            counts[stage.layer :] = [stage.after[sample]] * (self.num_layers - stage.layer)
        return [count + self.text_tokens[sample] for count in counts]

    def flops(self, sample: int = 0, pruned: bool = True) -> int:
        """FLOPs of the decoder's prefill of one sample, closed form; see :mod:`tokenprune.flops`.

        Raises:
            UnsupportedModelError: There is no closed form for this family's layers.
        """
        tokens = self.tokens_per_layer(sample, pruned)
        visual = [count - self.text_tokens[sample] for count in tokens]
        return prefill_flops(self.text_config, tokens, visual)

    def __str__(self) -> str:
        if not self.stages:
            return f"{self.model}: no prefill yet"
        lines = [f"{self.model}: layers {list(self.choice.layers)} ({self.choice.reason})"]
        for stage in self.stages:
            lines.append(
                f"  layer {stage.layer}: " + (stage.reason or f"visual tokens {stage.before} -> {stage.after}")
            )
        if self.reason is None:
            lines.append(f"  {self._flops_line()}")
            if self.kv_bytes:
                lines.append(f"  KV cache: {self.kv_bytes_unpruned:,} -> {self.kv_bytes:,} bytes")
            lines.append(f"  scoring and selecting: {self.score_ms:.2f} ms")
        return "\n".join(lines)

    def _flops_line(self) -> str:
        try:
            before, after = self.flops(pruned=False), self.flops()
        except UnsupportedModelError as error:
            return error.what
        return f"decoder prefill FLOPs (sample 0): {before:.4g} -> {after:.4g} (-{100 * (1 - after / before):.1f} %)"


class Run:
    """A method applied to a model. Returned by :func:`tokenprune.apply`.

    Several threads can use the model at once. ``stages`` and ``report`` show the prefill that started last, on any
    thread.

    Attributes:
        method: The method.
        choice: The layers before which it prunes, and why these were chosen.
    """

    def __init__(self, method: Method, choice: LayerChoice, family: str, num_layers: int, text_config: Any) -> None:
        self.method = method
        self.choice = choice
        self._family, self._num_layers, self._text_config = family, num_layers, text_config
        self._record = PrefillRecord()
        self._annotations = Annotations()
        self._of_thread = threading.local()  # annotations given on the current thread

    @property
    def stages(self) -> list[StageResult]:
        """The stages of the last prefill; see :class:`StageResult`."""
        return self._record.stages

    @property
    def annotations(self) -> Annotations:
        """Annotations for a prefill on this thread: those given on it, otherwise the latest of any thread."""
        annotations: Annotations = getattr(self._of_thread, "annotations", self._annotations)
        return annotations

    def begin(self, record: PrefillRecord) -> None:
        """Show a new prefill. The engine calls this at its start and fills the record while the model runs."""
        self._record = record

    def settle(self) -> None:
        """Find out where the visual tokens of the last prefill lie. Afterwards the run holds nothing of the model.

        What goes wrong is raised when somebody asks for a picture: it has nothing to do with pruning.
        """
        try:
            items = self._record.places()
        except Exception as raised:
            error = raised.with_traceback(None)  # which holds the model

            def places() -> NoReturn:
                raise error

            self._record.places = places
        else:
            self._record.places = lambda: items

    def look(
        self,
        pictures: Sequence[Any] = (),
        processor: Any = None,
        *,
        sample: int = 0,
        question: str = "",
        answer: str | None = None,
        expected: str | None = None,
    ) -> Look:
        """What can be drawn of one sample of the last prefill; see :func:`tokenprune.draw`.

        Args:
            pictures: The sample's pictures in the order of the prompt, as Pillow images or uint8 arrays
                ``[height, width, 3]``; a video is its frames. Without pictures, grids are drawn on grey.
            processor: The model's processor. It may cut off a part of a picture before the model sees it, and only
                with it the patches can be put at their place on the whole picture.
            sample: Number of the sample in the batch.
            question: The question, for the title.
            answer: The answer under the method.
            expected: The expected answer.

        Raises:
            UnsupportedFeatureError: The model has read no prompt with visual tokens yet.
            UnsupportedModelError: The family's adapter knows no token grid.
            ConfigError: The number of pictures is not that of the prompt, or there is no such sample.
        """
        stages = self._record.stages
        if not stages or not any(stages[0].before):
            raise UnsupportedFeatureError(
                "there is nothing to draw: no prompt with visual tokens was read, or the last one is still being read",
                "run the model inside the block first",
            )
        if not 0 <= sample < len(stages[0].before):
            raise ConfigError(
                f"there is no sample {sample}: the last batch has {len(stages[0].before)}", "samples count from 0"
            )
        items = self._record.places()
        if items is None:
            raise UnsupportedModelError(
                f"the adapter of {self._family!r} knows no token grid: it cannot be drawn",
                "write an adapter that overrides grid()",
            )
        shown = as_pictures(pictures)
        sizes = [(picture.shape[1], picture.shape[0]) for picture in shown]
        if processor is None and any(width != height for width, height in sizes):
            raise ConfigError(
                "pictures that are no squares were given without a processor, which may crop them",
                "give the model's processor, too: run.figure(pictures, processor)",
            )
        views, cells = views_of(items[sample], sizes, processor) if shown else grids_of(items[sample])
        places = torch.cat([item.positions for item in items[sample]]).sort().values.numpy()
        return Look(
            method=self.method.label or type(self.method.pruner).__name__.lower(),
            views=views,
            cells=cells,
            stages=tuple(stage.look(sample, places) for stage in stages),
            pictures=tuple(shown),
            budget=slug(self.method.budget),
            question=question,
            answer=answer,
            expected=expected,
        )

    def figure(self, pictures: Sequence[Any] = (), processor: Any = None, **more: Any) -> Figure:
        """A picture of one sample of the last prefill: dropped patches dimmed, a panel per stage, and the scores.

        Args:
            pictures: See :meth:`look`, which also describes the further arguments and errors.
            processor: See :meth:`look`.
            **more: See :meth:`look`.

        Returns:
            A figure of matplotlib: ``figure.savefig("kept.png")``.

        Raises:
            MissingDataError: matplotlib is not installed.
        """
        return draw([self.look(pictures, processor, **more)])

    def _repr_html_(self) -> str:
        """What a notebook shows of the run: the report, and the kept tokens of the last prefill's first sample."""
        try:
            looks = [self.look()]
        except TokenPruneError:  # no prompt yet, or no grid: the report says so
            looks = []
        return html_of(looks, str(self.report))

    def annotate(self, sample_ids: Sequence[int] | None = None, **values: Sequence[Tensor | Sequence[float]]) -> None:
        """Provide data for the following prefills that is not in the model's inputs.

        A thread that calls this uses its own annotations. Other threads use the latest annotations of any thread.

        Args:
            sample_ids: One stable integer per sample. Random scores depend on it and not on the batch. By default
                samples are counted in the order in which the run processes them.
            values: One vector per sample with a value for each of its visual tokens, e.g. ``foreground=[...]``.
        """
        ids = None if sample_ids is None else tuple(int(i) for i in sample_ids)
        vectors = {
            name: [torch.as_tensor(item, dtype=torch.float32) for item in items] for name, items in values.items()
        }
        self._annotations = self._of_thread.annotations = Annotations(ids, vectors)

    @property
    def report(self) -> Report:
        """Summary of the last prefill."""
        record = self._record
        return Report(
            model=self._family,
            choice=self.choice,
            stages=list(record.stages),
            num_layers=self._num_layers,
            text_tokens=record.text_tokens,
            kv_bytes=record.kv_bytes,
            kv_bytes_unpruned=record.kv_bytes_unpruned,
            score_ms=sum(stop.since(start) for start, stop in record.clock),
            text_config=self._text_config,
        )
