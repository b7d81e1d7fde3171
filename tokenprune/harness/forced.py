"""The log-probability of a given continuation: a model is made to write it behind its prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.engine.trials.divergence import forced_log_probabilities
from tokenprune.errors import SampleError
from tokenprune.models.answer import not_finite
from tokenprune.models.base import LoadedModel

#: Tokens at the end of a prompt that are looked at for the seam between prompt and continuation.
SEAM = 16


def continuation_ids(loaded: LoadedModel, prompt: Sequence[int], text: str, name: str) -> list[int]:
    """The ids of a text behind a prompt, cut as where both are one text.

    Tokenizers cut the start of a text otherwise than its middle (a first space, for example). So the text is cut
    together with the last tokens of the prompt; on its own only where these and it would join in one token.

    Args:
        loaded: The model.
        prompt: The ids of the prompt, without padding.
        text: The continuation.
        name: The sample, for errors.

    Raises:
        SampleError: The text has no tokens, or goes on behind the token that ends an answer.
    """
    tokenizer = loaded.processor.tokenizer
    found = tokenizer.encode(text, add_special_tokens=False)
    for count in range(min(SEAM, len(prompt)), 0, -1):
        tail = list(prompt[-count:])
        words = tokenizer.decode(tail, clean_up_tokenization_spaces=False)
        if tokenizer.encode(words, add_special_tokens=False) == tail:
            whole = tokenizer.encode(words + text, add_special_tokens=False)
            if whole[:count] == tail and len(whole) > count:
                found = whole[count:]
                break
    if not found:
        raise SampleError(f"sample {name!r}: the continuation {text!r} has no tokens", "give one that has some")
    ends = loaded.model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    if ends & set(found[:-1]):
        raise SampleError(f"sample {name!r}: the continuation {text!r} goes on behind the end of an answer", "cut it")
    return list(found)


def log_probabilities(
    model: Any, inputs: Mapping[str, Tensor], ids: Sequence[Sequence[int]], names: Sequence[str]
) -> list[tuple[float, bool]]:
    """The log-probability of each continuation in nats, and whether greedy decoding would write it.

    Args:
        model: The model, pruned or not. What it prunes depends on the prompt alone, as when it answers.
        inputs: A left-padded batch of prompts.
        ids: The continuations.
        names: The samples, for errors.

    Raises:
        UnsupportedFeatureError: A log-probability is NaN.
    """
    longest = max(map(len, ids))
    padded = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in ids]).to(inputs["input_ids"].device)
    best = _Best()
    given = forced_log_probabilities(model, inputs, padded, best)
    greedy = torch.stack(best.steps, 1) == padded
    found = []
    for row, name, steps, forced, likely in zip(ids, names, given, padded, greedy, strict=True):
        used, tokens = steps[: len(row)], forced[: len(row), None]
        value = float(used.gather(1, tokens).double().sum())
        if value != value:
            raise not_finite(f"of the continuation of sample {name!r}")
        found.append((value, bool(likely[: len(row)].all())))
    return found


class _Best:
    """Keeps the most likely token of every step, of those that the model may write."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are, ``[rows, vocabulary]``."""
        self.steps.append(scores.argmax(-1))
        return scores
