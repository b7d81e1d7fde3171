"""Distance of a pruned model's output from the unpruned one's, teacher-forced on its answers. It needs no labels."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessorList

from tokenprune.engine.trials.greedy import greedy
from tokenprune.errors import UnsupportedFeatureError


class _Forced:
    """Makes ``generate`` write the given ids.

    Args:
        ids: int64 ``[batch, tokens]``.
        start: Tokens of the prompt.
    """

    def __init__(self, ids: Tensor, start: int) -> None:
        self.ids, self.start = ids, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[batch, vocabulary]`` of which only that of the given id is finite."""
        token = self.ids[:, input_ids.shape[1] - self.start, None]
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


@torch.no_grad()
def write_answers(model: GenerationMixin, inputs: Mapping[str, Any], length: int, **options: Any) -> Tensor:
    """Let a model write behind prompts.

    Args:
        model: The model, pruned or not.
        inputs: A left-padded batch of prompts.
        length: Tokens of an answer at most.
        **options: Options of ``generate``.

    Returns:
        The answers without the prompts, int64 ``[batch, tokens]``.
    """
    ids: Tensor = model.generate(**inputs, **options, max_new_tokens=length)
    return ids[:, inputs["input_ids"].shape[1] :]


@torch.no_grad()
def forced_log_probabilities(
    model: GenerationMixin,
    inputs: Mapping[str, Tensor],
    ids: Tensor,
    watch: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The log-probabilities of every next token while the model is made to give an answer.

    Args:
        model: The model, pruned or not.
        inputs: A left-padded batch of prompts.
        ids: The answers, int64 ``[batch, tokens]``, as ``generate`` returned them.
        watch: A processor of logits that sees those of each step behind the processors of the model, which rule tokens
            out.

    Returns:
        float32 ``[batch, tokens, vocabulary]``.
    """
    forced = _Forced(ids, inputs["input_ids"].shape[1])
    # the logits before any processor
    options = greedy(model) | {"return_dict_in_generate": True, "output_logits": True}
    processors = LogitsProcessorList([forced] if watch is None else [watch, forced])
    out = model.generate(**inputs, **options, max_new_tokens=ids.shape[1], logits_processor=processors)
    return torch.stack([step.float().log_softmax(-1) for step in out.logits], dim=1)


def answer_mask(ids: Tensor, end: int | list[int] | None) -> Tensor:
    """Mark the ids that belong to the answer: all up to and including the first that ends it.

    Args:
        ids: int64 ``[batch, tokens]``.
        end: The ids that end an answer.
    """
    if end is None:
        return torch.ones_like(ids, dtype=torch.bool)
    is_end = torch.isin(ids, torch.as_tensor(end, device=ids.device).reshape(-1))
    return is_end.cumsum(1) - is_end.long() == 0


def mean_divergence(unpruned: Tensor, pruned: Tensor, mask: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence ``KL(unpruned || pruned)`` over the tokens of each answer, in nats.

    Args:
        unpruned: Log-probabilities, floating ``[batch, tokens, vocabulary]``.
        pruned: Those of the pruned model.
        mask: Tokens that belong to the answer, bool ``[batch, tokens]``.

    Returns:
        ``[batch]``.
    """
    probabilities = unpruned.exp()
    # a probability of zero adds nothing, also where the log-probability is minus infinity
    terms = torch.where(probabilities == 0, 0.0, probabilities * (unpruned - pruned))  # NaN stays NaN
    return masked_mean(terms.sum(-1), mask)


def not_comparable(where: str) -> UnsupportedFeatureError:
    """The error for a pruned model whose distributions have no divergence from the unpruned model's.

    Args:
        where: On which sample.
    """
    return UnsupportedFeatureError(
        f"the pruned model's next-token distribution holds NaN, or zero for a token that the unpruned model may give,"
        f" {where}",
        "use another method or dtype",
    )


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row's values that the mask marks.

    Args:
        values: Floating ``[batch, tokens]``.
        mask: bool ``[batch, tokens]``.
    """
    return values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)
