"""One pruned prefill: keeps tokens at each stage, and cuts the arguments of the layers behind it. No hooks here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.layout import VisualLayout
from tokenprune.adapters.structure import generates, head_error
from tokenprune.adapters.towers import TowerRun
from tokenprune.core.call_arguments import given_cache, returned_cache
from tokenprune.core.clock import Moment
from tokenprune.engine.arguments import CompactArguments
from tokenprune.engine.cache import cache_bytes, cut, mark, reserve, rounded_as
from tokenprune.engine.caches.rows import Rows
from tokenprune.engine.calls import Call, Observation
from tokenprune.engine.continuation import Continuation
from tokenprune.engine.deepstack import Deepstack, take_over
from tokenprune.engine.earlier import EarlierTurns
from tokenprune.engine.hooks import SharedHooks
from tokenprune.engine.layer_call import LayerCalls
from tokenprune.engine.logits import KeptLogits
from tokenprune.engine.loss import LABELS, loss_of_rows, own_loss_error
from tokenprune.engine.plan import Plan, Stage
from tokenprune.engine.prompt import PromptMap
from tokenprune.engine.quotas import Quotas
from tokenprune.engine.renumber import Renumbering, RotaryCalls
from tokenprune.engine.replay import Choice, Replays
from tokenprune.engine.selection import count_kept, replace_rows, rows_of, select
from tokenprune.engine.stage_signals import StageSignals
from tokenprune.engine.tower import TowerReader
from tokenprune.errors import UnsupportedModelError
from tokenprune.ops.per_image import PerImage
from tokenprune.ops.rows import behind_earlier, compose, keep_index, place_of, take
from tokenprune.recording import PrefillRecord, StageResult, StageTokens
from tokenprune.signals.context import PruneContext
from tokenprune.signals.rows import VisualAxis
from tokenprune.signals.signals import DeclaredSignals


@dataclass(frozen=True)
class Applied:
    """The parts of an applied method that all its prefills share.

    Attributes:
        adapter: The model's adapter.
        plan: The method's stages.
        layers: The calls of each decoder layer.
        owner: Owns the caches that the method prunes.
        layer_hooks: The hooks on the decoder layers.
        reads_logits_to_keep: Whether the model reads ``logits_to_keep``.
    """

    adapter: Adapter
    plan: Plan
    layers: Sequence[LayerCalls]
    owner: Continuation
    layer_hooks: SharedHooks
    reads_logits_to_keep: bool


@dataclass(frozen=True)
class PromptInputs:
    """The inputs of one prefill.

    Attributes:
        arguments: The arguments of the model's forward, by name.
        layout: Where the visual tokens are.
        sample_ids: One stable integer per sample.
        annotations: Values that the caller gave per visual token, by name.
        replay: Choices to use again, by stage, when this is the next step of a generation without a cache.
        generating: Whether ``generate`` runs: it reads the logits of the last position, also of models without
            ``logits_to_keep``.
        earlier: The turns before this one, if the prompt continues a conversation.
    """

    arguments: Mapping[str, Any]
    layout: VisualLayout
    sample_ids: tuple[int, ...]
    annotations: Mapping[str, Sequence[Tensor]]
    replay: Mapping[int, Choice] | None
    generating: bool
    earlier: EarlierTurns | None = None


class Prefill(Call):
    """The state of one prefill, from the model's call to its output.

    Args:
        applied: The applied method.
        inputs: The inputs.
        quotas: Numbers of tokens that survive each stage.
        record: The part of the prefill that the run shows; filled on the way.
        tower_runs: Runs of the vision tower that belong to this prefill.
        replays: Where finished steps of generations without a cache are remembered.
    """

    prunes = True

    def __init__(
        self,
        applied: Applied,
        inputs: PromptInputs,
        quotas: Quotas,
        record: PrefillRecord,
        tower_runs: list[TowerRun],
        replays: Replays,
    ) -> None:
        super().__init__()
        self.reads_rotary = applied.plan.renumbered
        self.continues_pruned = inputs.earlier is not None  # layers that are whole do not ask
        self._rotary = RotaryCalls()
        self.tower_runs = tower_runs
        self.record = record
        self._applied, self._inputs, self._quotas, self._replays = applied, inputs, quotas, replays
        self._tower_reader = TowerReader(applied.adapter, inputs.arguments, inputs.layout, quotas.initial, tower_runs)
        self._prompt_map: PromptMap | None = None
        # of the latest stage that dropped something; in a later turn, before that, of all rows
        self._compact: CompactArguments | None = None
        self._whole: CompactArguments | None = None  # that of all rows
        self._stage_rows: dict[int, CompactArguments] = {}  # by the stage's layer
        self._observations: dict[int, Observation] = {}  # by the stage's number
        self._embeddings: Tensor | None = None
        self._deepstack: Deepstack | None = None
        self._choices: dict[int, Choice] = {}
        self._checks: list[tuple[Tensor, Callable[[int], Exception]]] = []
        self._asked_for_cache: bool | None = None
        self._awaits_loss = inputs.arguments.get("labels") is not None
        self._left: Any = None  # the decoder's hidden states, where rows are missing in them

    # ---- what the engine tells ---

    def observation(self, stage: int) -> Observation | None:
        """See :meth:`tokenprune.engine.calls.Call.observation`."""
        if self._inputs.replay is not None or stage < len(self.record.stages) or not self._quotas.may_drop(stage):
            return None
        return self._observations.setdefault(stage, Observation())

    def stored_keys(self, layer: int) -> Tensor | None:
        """See :meth:`tokenprune.engine.calls.Call.stored_keys`."""
        return None if self._inputs.earlier is None else self._inputs.earlier.stored_keys(layer)

    def see_input(self, hidden: Tensor) -> None:
        """See :meth:`tokenprune.engine.calls.Call.see_input`."""
        if self._inputs.replay is None:
            self._embeddings = hidden

    def see_rotary(self, original: Callable[..., Any], arguments: Mapping[str, Any], value: Any) -> None:
        """See :meth:`tokenprune.engine.calls.Call.see_rotary`."""
        self._rotary.record(original, arguments, value)

    def enter_decoder(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """See :meth:`tokenprune.engine.calls.Call.enter_decoder`."""
        self._asked_for_cache = arguments.get("use_cache")  # what became of the call's, and of the configs of all parts
        arguments = {name: value for name, value in arguments.items() if name not in LABELS}
        arguments, self._deepstack = take_over(arguments, self._applied.plan.first, self._applied.adapter.num_layers)
        self.changes_outputs = self._deepstack is not None
        return arguments

    def leave_decoder(self, output: Any) -> Any:
        """See :meth:`tokenprune.engine.calls.Call.leave_decoder`."""
        if self._compact is None or not self._stage_rows:
            return output
        inputs = self._inputs
        wanted = inputs.arguments.get("logits_to_keep") if self._applied.reads_logits_to_keep else None
        logits = KeptLogits(wanted, inputs.layout, inputs.generating)
        output = logits.spread(output, self._compact.rows, self._checks)
        self._left = output[0]
        return output

    def before_layer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See :meth:`tokenprune.engine.calls.Call.before_layer`."""
        first, earlier = self._applied.plan.first, self._inputs.earlier
        if layer < first and (earlier is None or earlier.rows(layer) is None):
            return None  # hooked for the decode steps, where its cache is cut
        calls = self._applied.layers[layer]
        hidden = calls.hidden(args, kwargs)
        if earlier is not None and self._compact is None:
            self._compact = self._whole = self._all_rows(hidden)
        stage = self._applied.plan.stage_of(max(layer, first))
        if layer == stage.layer:
            if stage.number != len(self.record.stages):
                raise UnsupportedModelError(
                    f"layer {layer} ran twice in one prefill, or before an earlier stage",
                    "tokens can be dropped only once before a layer: do not run layers by hand inside a forward",
                )
            hidden = self.prune(stage, hidden, calls.others(args, kwargs))
        if self._compact is None:
            return None
        if earlier is not None and earlier.rows(layer) is None and not self._stage_rows:
            return None  # the layer holds everything and gets everything
        others = calls.others(args, kwargs)
        free = 0
        if earlier is None:
            free = reserve(calls.cache(others), layer, self._compact.width, self._compact.rows.shape[1])
        if self._compact.renumbering is not None and isinstance(calls.cache(others), StaticCache):
            renumbering = self._compact.renumbering(layer)
            rotations = renumbering.rotations(others, calls.signature.position_embeddings)
            self._applied.owner.rotations[layer] = rotations
        return (hidden,), self._compact.cut(layer, others, free)

    def after_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """See :meth:`tokenprune.engine.calls.Call.after_layer`."""
        return hidden if self._deepstack is None else self._deepstack.add(layer, hidden, self._rows)

    def loss(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See :meth:`tokenprune.engine.calls.Call.loss`."""
        value, self.record.targets = loss_of_rows(function, args, kwargs, self._rows)
        self._awaits_loss = False
        return value

    def finish(self, output: Any) -> None:
        """Tell the cache which rows it holds, and raise what was wrong.

        Raises:
            UnsupportedModelError: A stage was never reached: the layers did not run as usual. Or a model that does not
                generate returned something else than the decoder's hidden states. Or a loss was computed of other rows.
        """
        passed = len(self.record.stages)
        if passed != len(self._applied.plan.stages):
            missed = ", ".join(str(stage.layer) for stage in self._applied.plan.stages[passed:])
            model = type(self._applied.adapter.model).__name__
            raise UnsupportedModelError(
                f"the prompt was not pruned: layer {missed} of {model} never ran as a module of this model",
                "apply the method to the model that really runs; something replaced or compiled its layers",
            )
        if self._left is not None and not generates(self._applied.adapter.model) and output[0] is not self._left:
            raise head_error(self._applied.adapter.model, "its language model")
        self._left = None  # as large as a layer's activations
        if self._awaits_loss and self._stage_rows:
            raise own_loss_error(self._applied.adapter.model)
        self._finish_cache(output)
        self.verify()

    def _finish_cache(self, output: Any) -> None:
        cache = cache_after(output, self._inputs.arguments)
        if cache is None:
            self.unseen_cache = self._uses_cache
            if self._inputs.arguments.get("labels") is None:
                self._replays.remember(self._inputs.arguments, self._choices)
            return
        seen = dict(sorted(self._stage_rows.items()))
        held: dict[tuple[int, int], Rows] = {}  # layers of a stage share them
        for first, end in pairwise([*seen, self._applied.adapter.num_layers]):
            for layer in range(first, end):
                mark(cache, layer, self._held(layer, seen[first], held))
        if seen and self._applied.plan.cuts_earlier:
            self._cut_earlier(cache, seen)
        if seen and isinstance(cache, StaticCache):
            self._applied.layer_hooks.hold()
        self.record.kv_bytes, self.record.kv_rounded = cache_bytes(cache), rounded_as(cache)
        self.record.kv_bytes_unpruned = cache_bytes(cache, unpruned=True)

    def _held(self, layer: int, seen: CompactArguments, made: dict[tuple[int, int], Rows]) -> Rows:
        """The rows that the cache of a layer holds after the prefill, whose rows in the layer were ``seen``."""
        earlier = self._inputs.earlier
        key = (id(seen), 0 if earlier is None else id(earlier.rows(layer)))
        if key not in made:
            following = None if seen.renumbering is None else seen.renumbering(layer).following()
            made[key] = self._rows_of(layer, seen, following)
        return made[key]

    def _rows_of(self, layer: int, seen: CompactArguments, following: Tensor | None) -> Rows:
        owner, earlier = self._applied.owner, self._inputs.earlier
        if earlier is None:
            return Rows(seen.rows, seen.width, seen.ragged, owner, following)
        return earlier.continued(layer, seen.rows, seen.width, seen.ragged, owner, following)

    def _cut_earlier(self, cache: Any, seen: Mapping[int, CompactArguments]) -> None:
        """Cut the caches of the layers before each stage to the rows of the last one.

        The keys that stay keep the positions that they have in their layer, and its later tokens go on behind these.
        """
        last, earlier = seen[max(seen)], self._inputs.earlier
        for first, end in pairwise([0, *seen]):
            own = seen.get(first, self._whole)  # the latter is there in later turns only
            index = last.rows if own is None else place_of(last.rows, own.rows)
            width = last.width if own is None else own.rows.shape[1]
            renumbering = None if own is None else own.renumbering
            for layer in range(first, end):
                before = 0 if earlier is None else earlier.counted(layer)
                # where nothing of this turn was dropped, positions are new only if they were so before it
                moved = first in seen or (earlier is not None and earlier.is_renumbered(layer))
                following = renumbering(layer).following() if renumbering is not None and moved else None
                rows = self._rows_of(layer, last, following)
                cut(cache, layer, rows, behind_earlier(index, before), before + width)

    @property
    def _uses_cache(self) -> bool:
        """Whether the decoder is to make a KV cache."""
        asked = self._asked_for_cache
        return bool(getattr(self._applied.adapter.text_config, "use_cache", False) if asked is None else asked)

    def verify(self) -> None:
        """Raise what components found wrong; one small transfer for all stages."""
        if not self._checks:
            return
        device = self._checks[0][0].device
        flags = torch.stack([bad.to(device) for bad, _ in self._checks]).tolist()
        for samples, (_, error) in zip(flags, self._checks, strict=True):
            if True in samples:
                raise error(samples.index(True))

    # ---- one stage ---

    @property
    def _rows(self) -> Tensor | None:
        return None if self._compact is None else self._compact.rows

    def prune(self, stage: Stage, hidden: Tensor, others: Mapping[str, Any]) -> Tensor:
        """Score, select and compact before a stage's layer.

        Args:
            stage: The stage.
            hidden: Hidden states that enter its layer, ``[batch, rows, dim]``.
            others: The other arguments of the layer by name, as the model gave them.

        Returns:
            The hidden states that go on.
        """
        if hidden.dim() != 3:
            model = type(self._applied.adapter.model).__name__
            raise UnsupportedModelError(
                f"layers of {model} pass hidden states of shape {tuple(hidden.shape)}",
                "only [batch, tokens, dim] can be pruned",
            )
        before = self._quotas.totals
        replay = self._inputs.replay
        choice = None if replay is None else replay.get(stage.number)
        if replay is None:
            quotas, decides = self._quotas.at(stage.number), self._quotas.pruner_decides(stage.number)
        else:
            quotas, decides = self._quotas.sizes if choice is None else choice.counts, False
        if choice is None and [sum(sizes) for sizes in quotas] == before and not decides:
            self.record.stages.append(self._skipped(stage.layer, before))
            return hidden
        start = Moment(hidden.device)
        context, axis = self._context(stage, hidden, others, quotas)
        selection = select(stage.pruner, context) if choice is None else choice.selection
        if choice is None and (decides or (stage.pruner.shares_quota_itself and max(map(len, quotas)) > 1)):
            quotas = count_kept(selection, context)
        self._choices[stage.number] = Choice(selection.detached(), quotas)
        self.record.clock.append((start, Moment(hidden.device)))
        self._forget(stage)
        keep = selection.keep & axis.mask
        if selection.hidden is not None:
            target = axis.rows.masked_fill(~keep, -1)
            hidden = replace_rows(hidden, target, selection.hidden.to(hidden.dtype))
        index = self._drop(stage, axis, keep, quotas, hidden)
        after = [sum(sizes) for sizes in quotas]
        scores = None if selection.scores is None else selection.scores.detach()  # else the record holds the graph
        tokens = StageTokens(axis.positions, axis.mask, keep, scores, selection.merged)
        result = StageResult(stage.layer, before, after, rows=self._rows, tokens=tokens)
        self.record.stages.append(result)
        return take(hidden, index, 1, 0)

    def _drop(self, stage: Stage, axis: VisualAxis, keep: Tensor, quotas: list[list[int]], hidden: Tensor) -> Tensor:
        """Make the rows that go on the rows of the prefill; returns their index among the rows before."""
        width = self._inputs.layout.mask.shape[1]
        # a row goes on when it is no visual token, or a kept one; padding of an earlier stage is dropped again
        dropped = rows_of(hidden.shape[1], axis.rows, axis.mask & ~keep)
        widths = [width - initial + sum(sizes) for initial, sizes in zip(self._quotas.initial, quotas, strict=True)]
        rows = self._rows
        going = ~dropped if rows is None else ~dropped & (rows >= 0)
        index = keep_index(going, max(widths))
        left = index if rows is None else compose(rows, index)
        self._compact = self._arguments_of(left, len(set(widths)) > 1, hidden.dtype)
        self._stage_rows[stage.layer] = self._compact
        self._quotas.sizes = quotas
        return index

    def _all_rows(self, hidden: Tensor) -> CompactArguments:
        """The arguments of a later turn before anything of it is dropped: caches may miss rows of earlier turns."""
        batch, width = self._inputs.layout.mask.shape
        rows = torch.arange(width, device=hidden.device).expand(batch, -1)
        return self._arguments_of(rows, ragged=False, dtype=hidden.dtype)

    def _arguments_of(self, rows: Tensor, ragged: bool, dtype: torch.dtype) -> CompactArguments:
        return CompactArguments(
            self._applied.adapter,
            rows,
            self._inputs.layout.mask.shape[1],
            ragged,
            dtype,
            renumbering=self._renumbering(rows) if self._applied.plan.renumbered else None,
            earlier=self._inputs.earlier,
        )

    def _renumbering(self, rows: Tensor) -> Callable[[int], Renumbering]:
        """Tells the new positions of the rows that are left; they differ between layers whose earlier turns do."""
        tokens, rotary = self._prompt(rows.device).tokens.to(rows.device), self._rotary
        earlier = self._inputs.earlier
        made: dict[int, Renumbering] = {}

        def of_layer(layer: int) -> Renumbering:
            key = 0 if earlier is None else id(earlier.rows(layer))
            if key not in made:
                begins = None if earlier is None else earlier.begins(layer)
                made[key] = Renumbering(rotary, rows, tokens, begins)
            return made[key]

        return of_layer

    def _skipped(self, layer: int, before: list[int]) -> StageResult:
        """A stage that drops nothing: what was there before it is kept."""
        reason = "nothing more to drop" if self._stage_rows else "not pruned: the budget is no reduction"
        if self.record.stages:
            tokens = self.record.stages[-1].tokens
            left = None if tokens is None else tokens.survivors()
            return StageResult(layer, before, before, reason=reason, tokens=left)
        every = StageTokens.every(self._inputs.layout.mask)
        return StageResult(layer, before, before, reason=reason, tokens=every)

    def _forget(self, stage: Stage) -> None:
        """Let go of what was observed: it is as large as a layer's activations."""
        self._observations.pop(stage.number, None)
        if not any(later.reads_prompt for later in self._applied.plan.stages[stage.number + 1 :]):
            self._embeddings = None

    def _prompt(self, device: torch.device) -> PromptMap:
        """The prompt before any stage; on the device on which it is asked for first."""
        if self._prompt_map is None:
            inputs, images = self._inputs, max(map(len, self._quotas.sizes))
            past = 0 if inputs.earlier is None else inputs.earlier.past
            self._prompt_map = PromptMap(self._applied.adapter, inputs.arguments, inputs.layout, images, device, past)
        return self._prompt_map

    def _context(
        self, stage: Stage, hidden: Tensor, others: Mapping[str, Any], quotas: list[list[int]]
    ) -> tuple[PruneContext, VisualAxis]:
        """The stage as scorers and pruners see it, and its visual tokens as the engine sees them."""
        device, rows = hidden.device, self._rows
        prompt = self._prompt(device)
        is_visual, image, tokens = (x.to(device) for x in (prompt.visual, prompt.image, prompt.tokens))
        if rows is not None:
            absent, rows = rows < 0, rows.to(device)
            is_visual, image, tokens = (x.gather(1, rows.clamp(min=0)) for x in (is_visual, image, tokens))
            is_visual, image, tokens = is_visual & ~absent, image.masked_fill(absent, -1), tokens & ~absent
        axis = VisualAxis.of(is_visual, image, max(self._quotas.totals), rows)
        signals = StageSignals(
            adapter=self._applied.adapter,
            layer=stage.layer,
            prompt_map=prompt,
            observation=self._observations.get(stage.number, Observation()),
            entering_states=hidden,
            arguments=self._compact.cut(stage.layer, others) if self._compact and stage.reads_entering else others,
            stored_keys=self.stored_keys,
            embeddings=self._embeddings,
            tower_reader=self._tower_reader,
            rows=rows,
            row_mask=tokens,
            axis=axis,
            counts=self._quotas.initial,
            annotations=self._inputs.annotations,
            ids=self._inputs.sample_ids,
        )
        context = PruneContext(
            layer=stage.layer,
            num_layers=self._applied.adapter.num_layers,
            num_heads=self._applied.adapter.stack.num_heads(max(stage.layer - 1, 0)),  # of the states that are read
            visual_mask=axis.mask,
            per_image=PerImage(axis.images, self._quotas.sizes, quotas),
            signals=DeclaredSignals(signals, stage.pruner.needs, stage.pruner.vision_layers),
            target=self._quotas.targets if self._inputs.replay is None else (),  # a replay chooses nothing
            open_ended=self._quotas.pruner_decides(stage.number),
            checks=self._checks,
        )
        return context, axis


def cache_after(output: Any, arguments: Mapping[str, Any]) -> Any:
    """The cache that a forward filled: in its output, in its tuple (``return_dict=False``), or given to it."""
    cache = returned_cache(output)
    return given_cache(arguments) if cache is None else cache
