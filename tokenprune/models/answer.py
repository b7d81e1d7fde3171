"""Generating answers: the one place where experiments, tunes and looks let a model write text.

Answers of equal samples are equal wherever they are made. Where answers are drawn at random
(``generation: {do_sample: true}``), each sample draws with a generator of its own, whose seed is made of the sample. An
answer then depends neither on the place of the sample in a batch nor on the other samples, apart from rounding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import LogitsProcessorList

from tokenprune.engine.trials.divergence import answer_mask, write_answers
from tokenprune.engine.trials.greedy import greedy, own_settings
from tokenprune.errors import ConfigError, UnsupportedFeatureError
from tokenprune.models.base import LoadedModel
from tokenprune.ops.finite import is_distribution
from tokenprune.tasks.base import Sample, sample_seed


@dataclass(frozen=True)
class Generated:
    """Answers of a batch.

    Attributes:
        ids: The ids of the answers, int64 ``[batch, tokens]``.
        mask: The ids that belong to an answer, bool ``[batch, tokens]``; padding follows the one that ends it.
        texts: The texts of the answers.
        samples: Ids of the samples.
        broken: Per sample, the first answer token whose logits hold NaN or infinity, from 0; -1 for none.
    """

    ids: Tensor
    mask: Tensor
    texts: tuple[str, ...]
    samples: tuple[str, ...]
    broken: tuple[int, ...]

    @property
    def problems(self) -> dict[int, UnsupportedFeatureError]:
        """Place in the batch of every sample whose answer means nothing -> why."""
        return {
            place: not_finite(f"at answer token {token + 1} of sample {name!r}")
            for place, (name, token) in enumerate(zip(self.samples, self.broken, strict=True))
            if token >= 0
        }

    def checked(self) -> Self:
        """Return these answers if all of them mean something.

        Raises:
            UnsupportedFeatureError: The logits of some held NaN or infinity; the message names the first sample.
        """
        for problem in self.problems.values():
            raise problem
        return self


def not_finite(where: str) -> UnsupportedFeatureError:
    """The error for logits that hold NaN or infinity.

    Args:
        where: Of which token or sample they are.
    """
    return UnsupportedFeatureError(
        f"the logits {where} hold NaN or infinity, so the most likely token means nothing",
        "check the weights and the inputs, or use another dtype (bfloat16 where float16 overflows)",
    )


def check_prompt_logits(logits: Tensor, samples: Sequence[Sample]) -> None:
    """Check the logits of the last prompt tokens, which decide the first tokens of the answers.

    Args:
        logits: Floating ``[batch, tokens, vocabulary]``.
        samples: The samples of the batch.

    Raises:
        UnsupportedFeatureError: Some hold NaN or infinity; the message names the first sample.
    """
    for sample, finite in zip(samples, is_distribution(logits[:, -1]).tolist(), strict=True):
        if not finite:
            raise not_finite(f"behind the prompt of sample {sample.id!r}")


def generate(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    inputs: Mapping[str, Tensor],
    length: int,
    draws: Sequence[int] = (),
) -> Generated:
    """Let a model answer a batch, with the settings of ``generate`` that belong to it.

    Args:
        loaded: The model; a method may be applied to it.
        samples: The samples of the batch.
        inputs: The batch: the model's inputs, padded on the left.
        length: Tokens of an answer at most.
        draws: Which answer to the same sample each one is, from 0: where answers are drawn, they differ from one to the
            next. By default all are the first.
    """
    options = {**greedy(loaded.model), **loaded.generation}
    watch, model = _Watch(), loaded.model
    with _drawing(samples, bool(options["do_sample"]), draws):
        ids = write_answers(model, inputs, length, **options, logits_processor=LogitsProcessorList([watch]))
    mask = answer_mask(ids, options.get("eos_token_id", model.generation_config.eos_token_id))
    texts = tuple(loaded.decode(ids))
    return Generated(ids, mask, texts, tuple(sample.id for sample in samples), watch.broken(mask))


#: What the seeds of two draws of a sample differ by: an odd number without a pattern in its bits.
ANOTHER_DRAW = 0x1E3779B97F4A7C15
#: Settings of ``generate`` for which a pruned cache has no exact meaning.
NOT_PRUNED = ("cache_implementation", "cache_config", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


def check_generation(loaded: LoadedModel) -> None:
    """Check the settings of ``generate`` that the user gave, before anything runs.

    Raises:
        ConfigError: Pruned models cannot write with one of them.
    """
    for name in NOT_PRUNED:
        value = loaded.generation.get(name)
        if value not in (None, False, "dynamic", "static"):
            raise ConfigError(
                f"generation: {name}: {value!r} cannot be used while tokens are pruned",
                "remove it: answers are written with a dynamic or a static cache, token by token",
            )


def set_aside(loaded: LoadedModel) -> dict[str, Any]:
    """The checkpoint's own settings of ``generate`` that answers do not use: name -> value."""
    return {name: value for name, value in own_settings(loaded.model).items() if name not in loaded.generation}


class _Watch:
    """Looks at the logits of every step, behind those processors of the model that rule tokens out.

    Nothing waits for the device while the model generates.
    """

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are, ``[rows, vocabulary]``."""
        self._steps.append(is_distribution(scores))
        return scores

    def broken(self, used: Tensor) -> tuple[int, ...]:
        """The first step of each sample that had no finite logits; -1 for none.

        Args:
            used: Tokens of the answers, bool ``[batch, tokens]``: what is computed behind an answer's end is not used.
        """
        if not self._steps:
            return (-1,) * len(used)
        # a beam search has several rows of each sample
        finite = torch.stack([step.reshape(len(used), -1).all(1) for step in self._steps], 1)[:, : used.shape[1]]
        bad = (~finite & used[:, : finite.shape[1]]).cpu()
        return tuple(torch.where(bad.any(1), bad.int().argmax(1), -1).tolist())


@contextmanager
def _drawing(samples: Sequence[Sample], random: bool, draws: Sequence[int]) -> Iterator[None]:
    """Inside the block every sample draws tokens with its own generator; the random state stays as it was."""
    if not random:
        yield
        return
    seeds = [sample_seed(sample) for sample in samples]
    if draws:
        # the first draw has the seed of the sample; torch takes 63 bits
        seeds = [(seed + draw * ANOTHER_DRAW) % 2**63 for seed, draw in zip(seeds, draws, strict=True)]
    with torch.random.fork_rng():
        torch.manual_seed(seeds[0])  # for whatever else a model draws
        with _OwnGenerators(seeds):
            yield


class _OwnGenerators(TorchFunctionMode):
    """Draws each sample's rows of ``torch.multinomial``, by which ``generate`` samples, with a generator of its own.

    Args:
        seeds: The seed of each sample.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()
        self._seeds = seeds
        self._generators: list[torch.Generator] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every torch function that is called inside the block comes through here."""
        kwargs = kwargs or {}
        if func in (torch.multinomial, Tensor.multinomial):
            return self._draw(*args, **kwargs)
        return func(*args, **kwargs)

    def _draw(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows = len(input)
        if input.dim() != 2 or rows % len(self._seeds) or kwargs.get("generator") is not None:
            return torch.multinomial(input, *args, **kwargs)  # not a batch of next tokens
        if self._generators is None:
            self._generators = [torch.Generator(input.device).manual_seed(seed) for seed in self._seeds]
        # NaN would stop the program on a GPU; that the answer means nothing has been noted
        usable = (input.isfinite() & (input >= 0)).all(-1, keepdim=True) & (input.sum(-1, keepdim=True) > 0)
        input = torch.where(usable, input, 1.0)
        copies = rows // len(self._seeds)
        kwargs.pop("generator", None)
        drawn = [
            torch.multinomial(part, *args, **kwargs, generator=generator)
            for part, generator in zip(input.split(copies), self._generators, strict=True)
        ]
        return torch.cat(drawn)
