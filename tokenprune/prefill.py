"""One pruned prefill: whom to keep, and everything a layer is given, cut to the rows that are left. No hooks here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.layout import VisualLayout
from tokenprune.adapters.modalities import MODALITIES, Modality, pixels
from tokenprune.adapters.towers import TowerRun
from tokenprune.budgets.base import Schedule
from tokenprune.config import Method
from tokenprune.context import AttentionProbe, Prompt, PruneContext
from tokenprune.errors import BudgetError, ScoreError, UnsupportedFeatureError, UnsupportedModelError
from tokenprune.flops import prefill_cost
from tokenprune.ops.frames import frame_sizes, number_frames
from tokenprune.ops.rows import causal_mask, compose, keep_index, prefill_mask, take, take_nested
from tokenprune.ops.topk import apportion
from tokenprune.ops.vision import TowerLayer, TowerRuns
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.run import StageResult


class Clock:
    """A moment, on the host or on the device's stream, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.event: Any = None
        self.host = time.perf_counter()
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def since(self, start: Clock) -> float:
        """Milliseconds since ``start``; waits for the device when asked, not when recorded."""
        if self.event is None:
            return (self.host - start.host) * 1e3
        self.event.synchronize()
        return float(start.event.elapsed_time(self.event))


@dataclass
class Prefill:
    """The state of one prefill, from the model's call to its output.

    Attributes:
        adapter: The model's adapter.
        method: The method.
        schedule: Its stages.
        layout: Where the visual tokens are.
        arguments: The arguments of the model's forward.
        counts: Visual tokens per sample and group as they stand now; host integers.
        sample_ids: One stable integer per sample.
        annotations: What the caller gave per visual token.
        replay: Selections to use again, when this is the next step of a generation without a cache.
        results: One entry per stage passed.
        rows: Rows of the sequence that are left, long ``[batch, rows]``; None while it is whole.
        stage_rows: Layer of each stage that dropped something -> (rows from there on, whether any is padding).
        captured: ``"query 2"`` -> states observed for the stage before layer 2, on rows.
        probed: Layer of a stage -> arguments of the layer before it.
        embeddings: What entered layer 0, ``[batch, seq, dim]``, until the last stage that needs it has passed.
        late: Features that the model adds after a layer (DeepStack), ``[batch, seq, dim]``.
        tower: Runs of the vision tower, and the states observed there.
        repeats: How often the prompts repeat each sample that the tower saw.
        checks: Per-sample flags that must be False, and the errors that they stand for; see :meth:`verify`.
    """

    adapter: Adapter
    method: Method
    schedule: Schedule
    layout: VisualLayout
    arguments: Mapping[str, Any]
    counts: list[list[int]]
    annotations: Mapping[str, list[Tensor]]
    sample_ids: tuple[int, ...]
    replay: list[Selection] | None = None
    results: list[StageResult] = field(default_factory=list)
    clock: list[tuple[Clock, Clock]] = field(default_factory=list)
    selections: list[Selection] = field(default_factory=list)
    rows: Tensor | None = None
    ragged: bool = False
    stage_rows: dict[int, tuple[Tensor, bool]] = field(default_factory=dict)
    captured: dict[str, Tensor] = field(default_factory=dict)
    probed: dict[int, dict[str, Any]] = field(default_factory=dict)
    embeddings: Tensor | None = None
    late: dict[int, Tensor] = field(default_factory=dict)
    tower: list[TowerRun] = field(default_factory=list)
    repeats: int = 1
    checks: list[tuple[Tensor, Callable[[int], Exception]]] = field(default_factory=list)
    _memo: dict[tuple[str, int, int], tuple[Any, Any]] = field(default_factory=dict)
    _shown: dict[int, TowerLayer | TowerRuns] = field(default_factory=dict)  # layers of the tower that were read
    _left: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first = [sum(sizes) for sizes in self.counts]
        self.width = self.layout.mask.shape[1]
        self.flash = "flash" in self.adapter.attention_implementation
        self.hidden_dtype = torch.float32

    # ---- selection ---

    def prune(self, layer: int, hidden: Tensor) -> Tensor:
        """Score, select and compact before ``layer``; returns the hidden states that go on."""
        self.hidden_dtype = hidden.dtype
        if hidden.dim() != 3:
            raise UnsupportedModelError(
                f"layers of {type(self.adapter.model).__name__} pass hidden states of shape {tuple(hidden.shape)}",
                "only [batch, tokens, dim] can be pruned",
            )
        stage = self.schedule.layers.index(layer)
        pruner = self.method.pruner.at(stage)
        before = [sum(sizes) for sizes in self.counts]
        quotas = self._quotas(stage)
        after = [sum(sizes) for sizes in quotas]
        decides = self._decides(stage)
        if after == before and not decides:
            reason = "not pruned: the budget is no reduction" if self.rows is None else "nothing more to drop"
            self.results.append(self._skipped(layer, before, reason))
            return hidden
        context = self._context(layer, hidden, quotas, pruner)
        start = Clock(hidden.device)
        if self.replay is not None:
            selection = self.replay[stage]
        else:
            size = max(map(len, quotas))
            padded = [sizes + [0] * (size - len(sizes)) for sizes in quotas]
            wanted = torch.tensor(padded, device=hidden.device)
            selection = pruner.select(context, wanted)
            self._check_selection(selection, context, wanted, pruner)
        if decides or (pruner.across_images and max(map(len, quotas)) > 1):
            quotas = self._decided(selection, context)
            after = [sum(sizes) for sizes in quotas]
        self.clock.append((start, Clock(hidden.device)))
        self.probed.pop(layer, None)  # what was observed is as large as a layer's activations: not kept to the end
        self.captured = {key: states for key, states in self.captured.items() if not key.endswith(f" {layer}")}
        later = range(stage + 1, len(self.schedule.layers))
        if not any("embeddings" in self.method.pruner.at(number).needs for number in later):
            self.embeddings = None
        self.selections.append(selection)
        keep = selection.keep & context.visual_mask
        if selection.hidden is not None:
            target = context.visual_rows.masked_fill(~keep, -1)
            hidden = _replace(hidden, target, selection.hidden.to(hidden.dtype))

        # a row goes on when it is no visual token, or a kept one; padding of an earlier stage is dropped again
        dropped = _mark_rows(hidden.shape[1], context.visual_rows, context.visual_mask & ~keep)
        kept_widths = [self.width - first + left for first, left in zip(self.first, after, strict=True)]
        going = ~dropped if self.rows is None else ~dropped & (self.rows >= 0)
        index = keep_index(going, max(kept_widths))
        self.rows = index if self.rows is None else compose(self.rows, index)
        self.ragged = len(set(kept_widths)) > 1
        self.stage_rows[layer] = (self.rows, self.ragged)
        self.counts = quotas
        self._memo.clear()
        self.results.append(StageResult(layer, before, after, rows=self.rows, _positions=context.positions, _keep=keep))
        return take(hidden, index, 1, 0)

    def _skipped(self, layer: int, before: list[int], reason: str) -> StageResult:
        """A stage that drops nothing: what was there before it is kept."""
        if self.results:
            last = self.results[-1]
            return replace(last, layer=layer, before=before, after=before, rows=None, reason=reason)
        mask = self.layout.mask
        positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        return StageResult(layer, before, before, reason=reason, _positions=positions, _keep=mask)

    def _quotas(self, stage: int) -> list[list[int]]:
        """Tokens to keep per sample and group at one stage: the budget's count, shared out in proportion."""
        quotas = []
        for sample, sizes in enumerate(self.counts):
            first = self.first[sample]
            if first == 0:
                quotas.append([0] * len(sizes))
                continue
            wanted = self._wanted(sample)[-1 if self._decides(stage) else stage]
            have = sum(sizes)
            if wanted >= have:
                quotas.append(list(sizes))
                continue
            if wanted == 0:
                quotas.append([0] * len(sizes))
                continue
            if wanted < len(sizes) and self._decides(stage):
                wanted = len(sizes)
            if wanted < len(sizes):
                raise BudgetError(
                    f"sample {sample}: a budget of {wanted} visual tokens for {len(sizes)} images",
                    f"every image keeps at least one: ask for {len(sizes)} or more",
                )
            quotas.append(apportion(wanted, sizes))
        return quotas

    def _wanted(self, sample: int) -> tuple[int, ...]:
        """What the budget leaves of a sample after each stage."""
        first = self.first[sample]
        if first == 0:
            return (0,) * len(self.schedule.layers)
        if first not in self._left:
            schedule = replace(self.schedule, cost=prefill_cost(self.adapter.config, self.width - first))
            self._left[first] = self.method.budget.keep(first, schedule)
        return self._left[first]

    def reduces(self, layer: int) -> bool:
        """Whether anything may be dropped before a stage's layer: if not, nothing has to be observed for it."""
        stage = self.schedule.layers.index(layer)
        fewer = any(self._wanted(sample)[stage] < first for sample, first in enumerate(self.first))
        return fewer or self._decides(stage)

    def _decides(self, stage: int) -> bool:
        """Whether the pruner decides how many survive a stage."""
        stages = len(self.schedule.layers)
        return self.method.budget.open_ended(stage, stages) and self.method.pruner.at(stage).adaptive

    def _check_selection(self, selection: Selection, context: PruneContext, quotas: Tensor, pruner: Pruner) -> None:
        who = type(pruner).__name__
        if selection.keep.shape != context.visual_mask.shape or selection.keep.dtype != torch.bool:
            raise ScoreError(
                f"pruner {who} returned keep of {tuple(selection.keep.shape)} {selection.keep.dtype}",
                f"return bool {tuple(context.visual_mask.shape)}",
            )
        groups = torch.arange(quotas.shape[1], device=context.groups.device)
        member = (context.groups[:, :, None] == groups) & (selection.keep & context.visual_mask)[:, :, None]
        kept = member.sum(1)
        if pruner.across_images:
            kept_all, wanted = kept.sum(1), quotas.sum(1)
            missed = kept_all < wanted if context.open_ended else kept_all != wanted
            wrong = missed | (kept < quotas.clamp(max=1)).any(1)
        else:
            wrong = ((kept < quotas) if context.open_ended else (kept != quotas)).any(1)
        layer = context.layer  # alone: the flags live until the forward ends, and the context is large
        context.check(
            wrong,
            lambda _: ScoreError(
                f"pruner {who} kept {kept.tolist()} tokens per image at layer {layer}",
                f"keep {quotas.tolist()}",
            ),
        )

    def _decided(self, selection: Selection, context: PruneContext) -> list[list[int]]:
        """How many tokens of each image a pruner kept that decides by itself: one transfer."""
        size = max(map(len, self.counts))
        member = context.groups[:, :, None] == torch.arange(size, device=context.groups.device)
        kept = (member & (selection.keep & context.visual_mask)[:, :, None]).sum(1).tolist()
        return [row[: len(sizes)] for row, sizes in zip(kept, self.counts, strict=True)]

    def verify(self) -> None:
        """Raise what components found wrong; one small transfer for all stages."""
        if not self.checks:
            return
        device = self.checks[0][0].device
        flags = torch.stack([bad.to(device) for bad, _ in self.checks]).tolist()
        for samples, (_, error) in zip(flags, self.checks, strict=True):
            if True in samples:
                raise error(samples.index(True))

    # ---- what scorers see ---

    def _context(self, layer: int, hidden: Tensor, quotas: list[list[int]], pruner: Pruner) -> PruneContext:
        """What scorers may see at a stage."""
        rows = self.rows
        is_visual, groups = self.layout.mask.to(hidden.device), self.layout.groups.to(hidden.device)
        if rows is not None:
            gone = rows < 0
            is_visual = is_visual.gather(1, rows.clamp(min=0)) & ~gone
            groups = groups.gather(1, rows.clamp(min=0)).masked_fill(gone, -1)
        size = max(sum(sizes) for sizes in self.counts)
        order = (~is_visual).int().argsort(dim=1, stable=True)[:, :size]
        visual = is_visual.gather(1, order)
        visual_rows = order.masked_fill(~visual, 0)
        # row 0 stands in for slots without a token; in a ragged batch it may itself hold nothing (-1)
        positions = visual_rows if rows is None else rows.gather(1, visual_rows).masked_fill(~visual, 0)
        row_mask = self._row_mask(hidden)
        last = row_mask.int().cumsum(1).argmax(1)
        return PruneContext(
            layer=layer,
            num_layers=self.adapter.num_layers,
            num_heads=self.adapter.num_heads,
            visual_mask=visual,
            visual_rows=visual_rows,
            positions=positions,
            groups=groups.gather(1, order).masked_fill(~visual, -1),
            last_row=last,
            row_mask=row_mask,
            hidden_rows=hidden,
            sample_ids=self.sample_ids,
            sizes=tuple(map(tuple, self.counts)),
            quotas=tuple(map(tuple, quotas)),
            target=tuple(self._wanted(sample)[-1] for sample in range(len(self.first))),
            open_ended=self._decides(self.schedule.layers.index(layer)),
            captured={key.split()[0]: value for key, value in self.captured.items() if key.endswith(f" {layer}")},
            make_probe=(lambda: self._probe(layer)) if "attention" in pruner.needs else None,
            make_prompt=(lambda: self._prompt(hidden)) if "embeddings" in pruner.needs else None,
            make_grid=lambda: self._grid(positions, visual),
            make_frames=lambda: self._frames(positions, visual),
            make_vision=self._vision if pruner.vision_layers else None,
            feature_order=lambda: self._feature_order(positions),
            annotations=self._annotations(positions, visual),
            checks=self.checks,
        )

    def _token_mask(self, device: torch.device) -> Tensor:
        """What of the whole sequence is no padding."""
        given = self.arguments.get("attention_mask")
        whole = torch.ones_like(self.layout.mask)
        if isinstance(given, Tensor) and given.dim() == 2:
            whole = given.bool()
        return whole.to(device)

    def _prompt(self, hidden: Tensor) -> Prompt:
        """The sequence as it entered layer 0, and which rows of it are left."""
        assert self.embeddings is not None
        device, rows = hidden.device, self.rows
        visual = self.layout.mask.to(device)
        if rows is None:
            rows = torch.arange(self.width, device=device).expand(len(visual), -1)
        return Prompt(self.embeddings.to(device), visual, self._token_mask(device) & ~visual, rows)

    def _row_mask(self, hidden: Tensor) -> Tensor:
        whole = self._token_mask(hidden.device)
        if self.rows is None:
            return whole
        return whole.gather(1, self.rows.clamp(min=0)) & (self.rows >= 0)

    def _whole_grid(self, device: torch.device) -> Tensor:
        grid = self.adapter.grid(self.arguments, self.layout)
        if grid is None:
            raise UnsupportedModelError(
                f"the adapter of {self.adapter.name!r} knows no token grid", "use a method that needs none"
            )
        return grid.to(device)

    def _grid(self, positions: Tensor, visual: Tensor) -> Tensor:
        grid = take(self._whole_grid(positions.device), positions, 1, 0)
        return grid.masked_fill(~visual[:, :, None], -1)

    def _frames(self, positions: Tensor, visual: Tensor) -> Tensor:
        """Number, rows and columns of each token's frame, of the whole prompt and not of what is left of it."""
        grid, groups = self._whole_grid(positions.device), self.layout.groups.to(positions.device)
        frame = grid[..., 0].masked_fill(groups < 0, -1)
        frames = number_frames(frame, groups, max(map(len, self.counts)))
        found = torch.cat([frames[..., None], frame_sizes(frames, grid)], -1)
        return take(found, positions, 1, 0).masked_fill(~visual[:, :, None], -1)

    def _vision(self, layer: int) -> TowerLayer | TowerRuns:
        """One layer of the vision tower: it shows every stage the same."""
        if layer not in self._shown:
            self._shown[layer] = self._read_tower(layer)
        return self._shown[layer]

    def _read_tower(self, layer: int) -> TowerLayer | TowerRuns:
        """One layer of the vision tower, as it was seen on the way."""
        kinds = self._kinds()
        runs = [run for run in self.tower if (layer, "key") in run.states][-len(kinds) :]
        if not runs:
            observed = sorted({number for run in self.tower for number, _ in run.states})
            raise ScoreError(
                f"layer {layer} of the vision tower was not observed (observed: {observed or 'none'})",
                "add it to vision_layers, and give pixels, not features",
            )
        parts = []
        for kind, run in zip(kinds, runs, strict=False):  # fewer runs than kinds: the number of features will tell
            where = self.adapter.video_tower_site(layer) if kind == "video" else self.adapter.tower_site(layer)
            query, key, rotary = (run.states[layer, name] for name in ("query", "key", "rotary"))
            parts.append(where.read(query, key, rotary, run.arguments))
        found = parts[0] if len(parts) == 1 else TowerRuns(parts)
        if self.arguments.get("mm_encoder_outputs"):  # ``generate`` runs the tower before it repeats samples as beams
            self.repeats = max(1, sum(self.first) // found.features)
        beams = [row for row in self.first[:: self.repeats] for _ in range(self.repeats)]
        if beams != self.first or found.features * self.repeats != sum(self.first):
            raise UnsupportedModelError(
                f"the vision tower made {found.features} features for {sum(self.first)} visual tokens",
                "use a method that does not read the vision tower",
            )
        return found

    def _kinds(self) -> list[Modality]:
        """Image or video, or both, in the order in which the tower got them."""
        made = self.arguments.get("mm_encoder_outputs") or {}
        kinds: list[Modality] = [kind for kind, output in made.items() if output is not None]
        return kinds or [kind for kind in MODALITIES if pixels(self.arguments, kind) is not None] or list(MODALITIES)

    def _feature_order(self, positions: Tensor) -> Tensor:
        """Number of each visual token among all features that the tower made: they enter the prompts in order.

        All images come first and then all videos (or, under ``generate``, as it encoded them).
        """
        mask = self.layout.mask[:: self.repeats].to(positions.device)
        videos = self.adapter.video_mask(self.arguments)
        late = torch.zeros_like(mask) if videos is None else videos[:: self.repeats].to(mask.device)
        if self._kinds()[0] == "video":
            late = ~late
        first, second = mask & ~late, mask & late
        order = torch.where(late, _running(second) + first.sum(), _running(first)) - 1
        return order.repeat_interleave(self.repeats, dim=0).gather(1, positions.clamp(min=0))

    def _annotations(self, positions: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """The caller's per-token values on the visual axis of this stage."""
        found = {}
        batch, width = self.layout.mask.shape
        for name, items in self.annotations.items():
            if batch % len(items):
                raise ScoreError(
                    f"annotation {name!r} has {len(items)} vectors for a batch of {batch}", "give one per sample"
                )
            repeats = batch // len(items)  # beams and returned sequences repeat every sample
            whole = torch.zeros(batch, width)
            counts = self.first
            where = self.layout.mask.cpu()
            for sample in range(batch):
                values = items[sample // repeats]
                if values.numel() != counts[sample]:
                    raise ScoreError(
                        f"annotation {name!r} of sample {sample} has {values.numel()} values",
                        f"give one per visual token: {counts[sample]}",
                    )
                whole[sample, where[sample]] = values.flatten()
            found[name] = whole.to(positions.device).gather(1, positions).masked_fill(~visual, 0.0)
        return found

    def _probe(self, layer: int) -> AttentionProbe:
        seen = self.probed[layer]
        attention = self.adapter.attention(layer - 1)
        rotate = self.adapter.rotary(layer - 1)
        cos, sin = seen["position_embeddings"]
        mask = seen.get("attention_mask")
        causal = self._is_causal(layer - 1, seen)
        query, key = self.captured[f"query {layer}"], self.captured[f"key {layer}"]

        def rotated(states: Tensor, keys: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            return rotate(states, take(cos, index, -2, -3), take(sin, index, -2, -3)), rotate(keys, cos, sin)

        def visible(index: Tensor) -> Tensor:
            order = torch.arange(query.shape[1], device=query.device)
            earlier = order <= index[:, :, None] if causal else torch.ones_like(order <= index[:, :, None])
            if mask is None:
                return earlier
            if mask.dim() == 2:
                shown: Tensor = earlier & mask.bool()[:, None]
                return shown
            given: Tensor = take(mask[:, :1], index, 2, 0)[:, 0]
            return given if given.dtype == torch.bool else given > torch.finfo(given.dtype).min / 2

        scaling = getattr(attention, "scaling", None) or query.shape[-1] ** -0.5
        softcap = getattr(attention, "attn_logit_softcapping", None)
        return AttentionProbe(query, key, rotated, visible, float(scaling), softcap)

    # ---- what layers get ---

    def compact(self, layer: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """A layer's arguments (without its hidden states) for the rows that are left."""
        rows, width = self.rows, self.width
        assert rows is not None

        def once(kind: str, value: Any, make: Callable[..., Any], *arguments: Any) -> Any:
            """All layers of a stage get the same few tensors: cut each of them once."""
            key = (kind, id(value), id(rows))
            if key not in self._memo:
                self._memo[key] = (value, make(value, *arguments))
            return self._memo[key][1]

        changed = {name: value for name, value in given.items() if name != "hidden_states"}
        for name, value in list(changed.items()):
            if name == "attention_mask":
                changed[name] = once(name, value, self._prefill_mask, layer, given)
            elif name.startswith("position_embeddings"):
                changed[name] = once(name, value, take_nested, rows)
            elif name == "position_ids" and isinstance(value, Tensor):
                # flash attention would take gaps in the positions for several packed sequences
                changed[name] = None if self.flash else once(name, value, take, rows, -1, -2)
            elif name == "cache_position" and isinstance(value, Tensor):
                changed[name] = value[rows[0].clamp(min=0).to(value.device)]
            elif name in self.adapter.sequence_kwargs and isinstance(value, Tensor):
                changed[name] = once(name, value, take, rows, self.adapter.sequence_kwargs[name], 0)
            elif isinstance(value, Tensor) and width > 1 and width in value.shape[:3]:
                raise UnsupportedModelError(
                    f"layers of {type(self.adapter.model).__name__} get {name!r} {tuple(value.shape)}, which seems to"
                    f" follow the {width} tokens of the sequence",
                    "an adapter must name it in sequence_kwargs",
                )
        if "attention_mask" not in given:
            changed["attention_mask"] = self._prefill_mask(None, layer, given)
        return changed

    def _is_causal(self, layer: int, given: Mapping[str, Any]) -> bool:
        """What a layer makes of a mask that is None."""
        causal = given.get("is_causal")
        return bool(getattr(self.adapter.attention(layer), "is_causal", True) if causal is None else causal)

    def _prefill_mask(self, mask: Any, layer: int, given: Mapping[str, Any]) -> Tensor | None:
        rows = self.rows
        assert rows is not None
        if mask is None:
            if not self.ragged:
                return None
            if self.flash:
                return rows >= 0
            made = causal_mask(rows, self._is_causal(layer, given))
            if self.adapter.attention_implementation == "sdpa":
                return made
            additive = self.hidden_dtype
            return torch.zeros_like(made, dtype=additive).masked_fill(~made, torch.finfo(additive).min)
        if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
            raise UnsupportedFeatureError(
                f"layer {layer} got a mask of type {type(mask).__name__}", "use sdpa, eager or flash_attention_2"
            )
        if mask.dim() == 2:
            return take(mask, rows, 1, 0).masked_fill(rows.to(mask.device) < 0, 0)
        return prefill_mask(mask, rows.to(mask.device))


def _running(chosen: Tensor) -> Tensor:
    """How many are chosen up to each place of all samples in a row, ``[batch, seq]``."""
    return chosen.flatten().cumsum(0).view(chosen.shape)


def _mark_rows(width: int, index: Tensor, chosen: Tensor) -> Tensor:
    """Bool ``[batch, width]`` that is True at ``index`` where ``chosen``; repeated indices are joined by "or"."""
    counts = torch.zeros(index.shape[0], width, dtype=torch.int32, device=index.device)
    return counts.scatter_add_(1, index, chosen.int()) > 0


def _replace(hidden: Tensor, target: Tensor, states: Tensor) -> Tensor:
    """``hidden`` with ``states`` at the rows ``target`` (-1: nowhere)."""
    batch, width, dim = hidden.shape
    padded = torch.cat([hidden, hidden.new_zeros(batch, 1, dim)], dim=1)
    index = target.masked_fill(target < 0, width)[:, :, None].expand(-1, -1, dim)
    return padded.scatter(1, index, states)[:, :width]
