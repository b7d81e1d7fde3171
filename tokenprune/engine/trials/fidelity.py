"""Measures how close the answers of a pruned model are to the unpruned one's. It needs no labels."""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.layout import check_not_empty
from tokenprune.config import Method
from tokenprune.engine.engine import attached
from tokenprune.engine.trials.divergence import (
    answer_mask,
    forced_log_probabilities,
    masked_mean,
    mean_divergence,
    not_comparable,
    write_answers,
)
from tokenprune.engine.trials.features import Prefix, SharedFeatures
from tokenprune.engine.trials.greedy import greedy
from tokenprune.errors import ConfigError, UnsupportedFeatureError, UnsupportedModelError
from tokenprune.ops.finite import is_distribution
from tokenprune.recording import Annotations, Recording
from tokenprune.selectors.base import LayerChoice


@dataclass(frozen=True)
class Fidelity:
    """The effect of a method on each of some samples; float32 ``[samples]`` on the host.

    Attributes:
        agreement: Share of the tokens of the unpruned model's answer that the pruned model would also choose.
        divergence: Mean ``KL(unpruned || pruned)`` of the next-token distributions over these tokens, in nats.
        distance: Mean total variation distance of these distributions, from 0 to 1: half the sum of differences.
        average: Visual tokens averaged over all decoder layers.
        flops: FLOPs of the decoder's prefill, divided by those of the unpruned one; NaN without a closed form.
        score: The task's score of the generated answers, from 0 to 1; None where none were generated.
    """

    agreement: Tensor
    divergence: Tensor
    distance: Tensor
    average: Tensor
    flops: Tensor
    score: Tensor | None = None

    def __len__(self) -> int:
        return len(self.agreement)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The samples of all parts, in order. Either all parts have scores, or none has."""
        together: dict[str, Any] = {}
        for field in fields(cls):
            values = [value for part in parts if (value := getattr(part, field.name)) is not None]
            together[field.name] = torch.cat(values) if values else None
        return cls(**together)

    def at(self, places: Sequence[int]) -> Self:
        """Take some of the samples.

        Args:
            places: Their places.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[list(places)] for name, value in values.items() if value is not None})

    @classmethod
    def from_lists(cls, lists: Mapping[str, Sequence[float]]) -> Self:
        """Read the lists of :meth:`to_lists`."""
        names = [field.name for field in fields(cls) if field.name in lists]
        return cls(**{name: torch.tensor(lists[name], dtype=torch.float32) for name in names})

    def to_lists(self) -> dict[str, list[float]]:
        """The numbers by name, JSON-ready but for NaN; without scores where there are none."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.tolist() for name, value in values.items() if value is not None}


class UnprunedBatch:
    """A batch and the unpruned model's answers to it: computed once, for all methods that are compared with it.

    With one token per answer a method costs one forward, from the layer before its first pruned one on. With more, the
    methods are made to write the unpruned model's answer, and run from layer 0 on. The image features are computed once
    in both cases, but for methods that read the vision tower.

    Args:
        adapter: The model's adapter.
        inputs: The batch, as for ``model(**inputs)``.
        firsts: Layers before which the methods will first drop tokens.
        tokens: Tokens of the answer that are compared.
        sample_ids: Numbers of the samples, on which random scores depend.
        names: Names of the samples in errors; None for their numbers.

    Raises:
        ConfigError: The model is in training mode, or the batch is empty.
        UnsupportedFeatureError: The model's output holds NaN; or several tokens of right-padded prompts are asked for.
    """

    def __init__(
        self,
        adapter: Adapter,
        inputs: Mapping[str, Any],
        firsts: Collection[int] = (),
        tokens: int = 1,
        sample_ids: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        if adapter.model.training:
            raise ConfigError("the model is in training mode, so its answers may be random", "call model.eval() first")
        self._adapter, self._inputs, self._tokens, self._names = adapter, inputs, tokens, names
        self._features = SharedFeatures(adapter.model)
        self._prefix = Prefix(adapter.layers)
        batch = next(iter(inputs.values())) if "input_ids" not in inputs else inputs["input_ids"]
        check_not_empty(batch)
        self._sample_ids = tuple(sample_ids) if sample_ids is not None else tuple(range(len(batch)))
        self._ids: Tensor | None = None  # the answers, if several of their tokens are compared
        if tokens > 1:
            _check_left_padded(inputs)
        with torch.no_grad(), self._features.enabled(), self._prefix.recorded(firsts if tokens == 1 else ()):
            if tokens > 1:
                model: Any = adapter.model
                self._ids = write_answers(model, inputs, tokens, **greedy(model))
            self._expected = self._log_probabilities()
        unusable = (~is_distribution(self._expected) & self._mask).any(1)
        if bool(unusable.any()):
            raise UnsupportedFeatureError(
                f"the unpruned model's next-token distribution holds NaN on {self._first(unusable)}, so nothing can be"
                " compared with it",
                "check the weights and the inputs, or use another dtype",
            )

    @torch.no_grad()
    def fidelity(self, method: Method, layers: Sequence[int]) -> Fidelity:
        """Run the batch with a method and compare.

        Args:
            method: The method.
            layers: Layers before which it drops tokens, in place of those of its selector.

        Raises:
            TokenPruneError: The method cannot run on this model or batch.
        """
        reads_tower = bool(method.pruner.vision_layers)
        with self.pruned(method, layers) as recording, self._shared(not reads_tower):
            found = self._log_probabilities(layers[0])
            report = recording.report
        same = found.argmax(-1) == self._expected.argmax(-1)
        distance = (self._expected.exp() - found.exp()).abs().sum(-1) / 2
        samples = range(len(report.before))
        divergence = mean_divergence(self._expected, found, self._mask)
        divergence = divergence.clamp(min=0).float()  # rounding can leave it slightly below
        if not bool(divergence.isfinite().all()):
            raise not_comparable(f"on {self._first(~divergence.isfinite())}")
        return Fidelity(
            masked_mean(same.double(), self._mask).float(),
            divergence,
            masked_mean(distance, self._mask).float(),
            torch.tensor([report.layer_average(index) for index in samples]),
            torch.tensor(self._flops(recording)),
        )

    def _first(self, marked: Tensor) -> str:
        """The first marked sample, bool ``[batch]``, in words."""
        place = int(marked.int().argmax())
        return f"sample {self._sample_ids[place]}" if self._names is None else f"sample {self._names[place]!r}"

    @contextmanager
    def pruned(self, method: Method, layers: Sequence[int]) -> Iterator[Recording]:
        """The model prunes the batch inside the block; arguments and errors as for :meth:`fidelity`."""
        choice = LayerChoice(tuple(layers), "a candidate")
        adapter = self._adapter
        recording = Recording(method, choice, adapter.name, adapter.num_layers, adapter.text_config)
        recording.annotate(Annotations(self._sample_ids))
        with attached(adapter, recording):
            yield recording

    @contextmanager
    def _shared(self, shared: bool) -> Iterator[None]:
        if not shared:  # the engine reads the tower while it runs
            yield
            return
        with self._features.enabled():
            yield

    def _log_probabilities(self, first: int | None = None) -> Tensor:
        """float64 ``[batch, tokens, vocabulary]`` on the host."""
        model: Any = self._adapter.model
        if self._ids is not None:
            return forced_log_probabilities(model, self._inputs, self._ids).double().cpu()
        if first is None:
            logits = last_token_logits(model, self._inputs)
        else:
            with self._prefix.reused(first):
                logits = last_token_logits(model, self._inputs)
        return logits.double().log_softmax(-1).cpu()[:, None]

    @cached_property
    def _mask(self) -> Tensor:
        """Tokens that belong to the answers, bool ``[batch, tokens]``."""
        if self._ids is None:
            return torch.ones(self._expected.shape[:2], dtype=torch.bool)
        model: Any = self._adapter.model
        return answer_mask(self._ids.cpu(), model.generation_config.eos_token_id)

    def _flops(self, recording: Recording) -> list[float]:
        mask = self._inputs.get("attention_mask")
        report = recording.report
        padding = (mask == 0).sum(1).tolist() if mask is not None and mask.dim() == 2 else [0] * len(report.before)
        report = replace(report, text_tokens=[n - p for n, p in zip(report.text_tokens, padding, strict=True)])
        try:
            return [report.flops(index) / report.flops(index, pruned=False) for index in range(len(padding))]
        except UnsupportedModelError:
            return [float("nan")] * len(padding)


def _check_left_padded(inputs: Mapping[str, Any]) -> None:
    """Refuse prompts with padding between them and their answers: ``generate`` would go on behind the padding.

    Raises:
        UnsupportedFeatureError: There is such padding.
    """
    mask = inputs.get("attention_mask")
    if mask is not None and mask.dim() == 2 and not bool(mask[:, -1].all()):
        raise UnsupportedFeatureError(
            "several tokens of answers cannot be compared: the prompts are padded on the right",
            "pad them on the left (padding_side='left'), or compare one token",
        )


@torch.no_grad()
def last_token_logits(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Logits of every sample's last prompt token, from one forward without a cache.

    Args:
        model: The model, pruned or not.
        inputs: A batch, padded on either side.

    Returns:
        Float32 ``[batch, vocabulary]``.
    """
    mask = inputs.get("attention_mask")
    inputs = {**inputs, "use_cache": False}
    if mask is None or mask.dim() != 2 or bool(mask[:, -1].all()):
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            inputs["logits_to_keep"] = 1  # the other rows of logits would cost more than a pruned decoder
        output: Tensor = model(**inputs).logits[:, -1]
        return output.float()
    logits = model(**inputs).logits
    # padding on the right is never dropped: counted from the end, the last token is where it was
    after = mask.long().flip(1).argmax(1).to(logits.device)
    rows = torch.arange(len(logits), device=logits.device)
    chosen: Tensor = logits[rows, logits.shape[1] - 1 - after]
    return chosen.float()
