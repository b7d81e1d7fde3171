"""A model with one method on it that answers samples, and says what each of them cost."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from tokenprune.adapters import adapter_for
from tokenprune.budgets.base import Budget
from tokenprune.config import Method
from tokenprune.core.forward_errors import forward_errors, of_samples, release
from tokenprune.core.references import DOWNSAMPLED, UNPRUNED
from tokenprune.core.text import one_line
from tokenprune.errors import SampleError, TokenPruneError, TokenPruneWarning, within
from tokenprune.experiment.cost import batch_costs, known_shapes
from tokenprune.experiment.series import Downsampled, Series, definitions
from tokenprune.fingerprint import fingerprint
from tokenprune.fingerprint.definition import CODE
from tokenprune.harness.forced import continuation_ids, log_probabilities
from tokenprune.models.answer import check_generation, generate
from tokenprune.models.base import LoadedModel
from tokenprune.models.downsample import Downsampler, Smaller, check_budget
from tokenprune.models.encode import encode_one
from tokenprune.models.processor import processor_fingerprint
from tokenprune.models.usable import usable
from tokenprune.run import Run, apply, choose_layers, chosen
from tokenprune.selectors.base import LayerChoice
from tokenprune.selectors.fixed import Fixed
from tokenprune.tasks.base import Sample


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first stop text in it, without it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


class StopTexts(StoppingCriteria):  # type: ignore[misc]
    """Ends an answer of ``generate`` when its last tokens show a stop text.

    It saves time alone: what is left of an answer is decided by :func:`cut`, on the whole text.

    Args:
        decode: Ids ``[batch, tokens]`` -> the texts.
        start: Tokens of the prompts.
        stops: The stop texts, none of them empty.
    """

    def __init__(self, decode: Callable[[Tensor], list[str]], start: int, stops: Sequence[str]) -> None:
        self._decode, self._start, self._stops = decode, start, stops
        self._window = 4 + max(len(stop.encode()) for stop in stops)  # a token is a byte or more

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are done, bool ``[batch]``."""
        texts = self._decode(input_ids[:, max(self._start, input_ids.shape[1] - self._window) :])
        done = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(done, device=input_ids.device)


Inputs = Mapping[str, Tensor]
Cost = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """The answer to a sample.

    Attributes:
        text: The answer, without special tokens and surrounding spaces.
        tokens: Tokens that were generated, with the one that ends the answer.
        prompt: Tokens of the prompt before pruning, without padding.
        cut: Whether a stop text ended it.
        cost: Of the prefill without padding: ``visual_before``, ``visual_after``, ``layer_average`` (visual tokens),
            ``flops``, ``flops_unpruned``, ``kv_bytes``, ``kv_bytes_unpruned``; the last four are None for families
            without a closed form.
    """

    text: str
    tokens: int
    prompt: int
    cut: bool
    cost: Cost


@dataclass(frozen=True)
class Likelihood:
    """How likely a continuation is behind a sample's prompt.

    Attributes:
        log_probability: The natural logarithm of its probability: the sum over its tokens.
        tokens: Its tokens.
        prompt: See :class:`Answer`.
        greedy: Whether greedy decoding would write it.
        cost: See :class:`Answer`.
    """

    log_probability: float
    tokens: int
    prompt: int
    greedy: bool
    cost: Cost


class Answerer:
    """A model that answers samples with one method, for evaluation harnesses of others.

    Answers are those of an experiment with this method. The method stays on the model until :meth:`close`, or the end
    of a ``with`` block.

    Args:
        loaded: The model; nothing else may be applied to it.
        method: The method; None for the unpruned model.
        calibration: Samples on which its layer selector may measure the model. Those that the model cannot run are
            passed over.
        smaller: Without a method, the visual tokens of the smaller pictures that the unpruned model is shown instead;
            see :mod:`tokenprune.models.downsample`.

    Attributes:
        loaded: The model.
        method: The method with fixed layers, and with the pruner that its selector chose; None for the unpruned model.
        choice: The layers and why these; None for the unpruned model.

    Raises:
        TokenPruneError: The method cannot run on the model, or no calibration sample can be used.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        method: Method | None,
        calibration: Sequence[Sample] = (),
        smaller: Budget | None = None,
    ) -> None:
        self.loaded, self.smaller = loaded, smaller
        self._adapter = adapter_for(loaded.model)
        self._shapes = known_shapes(self._adapter)
        self.method: Method | None = None
        self.choice: LayerChoice | None = None
        self._run: Run | None = None
        self._downsampler: Downsampler | None = None
        self._said = False
        if method is not None:
            self.choice = choose_layers(loaded.model, method, self._measured(calibration))
            self.method = chosen(method, self.choice).model_copy(update={"layers": Fixed(layers=self.choice.layers)})
            self._run = apply(loaded.model, self.method)
        elif smaller is not None:
            check_budget(smaller)
            self._downsampler = Downsampler(loaded, self._adapter)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._run is not None:
            self._run.__exit__(kind, error, traceback)

    def close(self) -> None:
        """Take the method off the model. Closing twice does nothing."""
        self.__exit__(None, None, None)

    @property
    def name(self) -> str:
        """The method's label, or what stands in its place."""
        if self.method is not None:
            return self.method.label or "the method"
        return UNPRUNED if self.smaller is None else DOWNSAMPLED

    def fingerprint(self) -> str | None:
        """A text that changes with what answers depend on: weights, processor, method and the code of its parts.

        None where one of them is unknown, e.g. the code of a class in a notebook.
        """
        smaller = None if self.smaller is None else Downsampled(budget=self.smaller)
        defined = definitions([Series(self.name, self.method, None, None, downsampled=smaller)])
        if any(code is None for item in defined.values() for code in (item or {}).get(CODE, {}).values()):
            return None
        parts = [fingerprint(self._adapter.model), processor_fingerprint(self.loaded.processor), repr(defined)]
        return None if None in parts else fingerprint(*parts)

    def answer(
        self,
        samples: Sequence[Sample],
        tokens: int,
        *,
        numbers: Sequence[int] | None = None,
        generation: Mapping[str, Any] | None = None,
        stops: Sequence[str] = (),
        draws: Sequence[int] | None = None,
    ) -> list[Answer | TokenPruneError]:
        """Answer a batch. What cannot be answered together is answered one by one.

        Args:
            samples: The samples.
            tokens: Tokens of an answer at most.
            numbers: A number per sample that is the same in every batch: random choices of tokens depend on it.
            generation: Settings of ``generate``; without them answers are greedy.
            stops: Texts that end an answer, and are not part of it.
            draws: Which answer to the same sample this is, from 0: drawn answers differ from one to the next.

        Returns:
            One per sample; an error stands for a sample that fails alone.

        Raises:
            ConfigError: Answers of pruned models cannot have one of the settings.
            TokenPruneError: The model or the method fails, whatever the samples are.
        """
        loaded = replace(self.loaded, generation={**self.loaded.generation, **(generation or {})})
        check_generation(loaded)
        draws = [0] * len(samples) if draws is None else draws

        def ask(places: Sequence[int]) -> list[Answer]:
            some = [samples[place] for place in places]
            with self._running(some, self._numbers(numbers, places)) as (inputs, costs):
                given = generate(
                    self._stopping(loaded, inputs, stops), some, inputs, tokens, [draws[place] for place in places]
                ).checked()
                counts = given.mask.sum(1).tolist()
                found = []
                rows = zip(given.texts, self._raw(given.ids), counts, _prompts(inputs), costs(), strict=True)
                for text, raw, count, prompt, cost in rows:
                    kept = cut(raw, stops)
                    stopped = kept != raw
                    found.append(Answer(kept.strip() if stopped else text, int(count), len(prompt), stopped, cost))
            return found

        return self._each(samples, ask)

    def log_likelihoods(
        self, samples: Sequence[Sample], continuations: Sequence[str], *, numbers: Sequence[int] | None = None
    ) -> list[Likelihood | TokenPruneError]:
        """How likely a given text is behind the prompt of each sample of a batch.

        The model is made to write the text token by token, so what is pruned depends on the prompt alone.

        Args:
            samples: The samples.
            continuations: One text per sample, as it stands behind the prompt.
            numbers: See :meth:`answer`, also for what is returned and raised.
        """

        def ask(places: Sequence[int]) -> list[Likelihood]:
            some = [samples[place] for place in places]
            names = [sample.id for sample in some]
            with self._running(some, self._numbers(numbers, places)) as (inputs, costs):
                prompts = _prompts(inputs)
                ids = [
                    continuation_ids(self.loaded, prompt, continuations[place], name)
                    for prompt, place, name in zip(prompts, places, names, strict=True)
                ]
                values = log_probabilities(self.loaded.model, inputs, ids, names)
                return [
                    Likelihood(value, len(row), len(prompt), greedy, cost)
                    for (value, greedy), row, prompt, cost in zip(values, ids, prompts, costs(), strict=True)
                ]

        return self._each(samples, ask)

    # ---- batches ---

    def _each(self, samples: Sequence[Sample], ask: Callable[[Sequence[int]], list[T]]) -> list[T | TokenPruneError]:
        """Ask about all samples together; about each alone where that fails."""
        places = range(len(samples))
        try:
            with self._named(samples):
                return list(ask(places))
        except TokenPruneError as error:
            if not of_samples(error):
                raise
            release(error)
            if len(samples) == 1:
                return [error]
            self._say(error)
        found: list[T | TokenPruneError] = []
        for place in places:
            try:
                with self._named(samples[place : place + 1]):
                    found += ask([place])
            except TokenPruneError as error:
                if not of_samples(error):
                    raise
                release(error)
                found.append(error)
        return found

    @contextmanager
    def _named(self, samples: Sequence[Sample]) -> Iterator[None]:
        first, last = samples[0].id, samples[-1].id
        on = f"sample {first!r}" if first == last else f"samples {first!r} to {last!r}"
        who = "the unpruned model" if self.method is None else f"method {self.name!r}"
        with within(f"{who} on {on}"), forward_errors():
            yield

    def _say(self, error: TokenPruneError) -> None:
        """Tell once that batches fail: answers of single samples may differ from those of a batch by rounding."""
        if not self._said:
            self._said = True
            text = f"{one_line(error)}: the samples of this batch, and of others that fail, are asked one by one"
            warnings.warn(text, TokenPruneWarning, stacklevel=2)

    @staticmethod
    def _numbers(numbers: Sequence[int] | None, places: Sequence[int]) -> list[int] | None:
        return None if numbers is None else [numbers[place] for place in places]

    @contextmanager
    def _running(
        self, samples: Sequence[Sample], numbers: Sequence[int] | None
    ) -> Iterator[tuple[Inputs, Callable[[], list[Cost]]]]:
        """The inputs of samples as the model is shown them; and what tells the costs once it has read them."""
        inputs = encode_one(self.loaded, samples[0]) if len(samples) == 1 else self.loaded.encode(samples)
        if self._downsampler is None or self.smaller is None:
            if self._run is not None:
                self._run.annotate(sample_ids=numbers)
            yield inputs, lambda: self._costs(inputs, self._run)
            return
        made: Smaller = self._downsampler.smaller(samples, inputs, self.smaller)
        with self._downsampler.running(made):
            yield made.inputs, lambda: self._costs(made.inputs, None, inputs)

    def _costs(self, inputs: Inputs, run: Run | None, whole: Inputs | None = None) -> list[Cost]:
        return batch_costs(self._adapter, self._shapes, self.loaded.model.dtype.itemsize, inputs, run, whole)

    # ---- answers ---

    def _stopping(self, loaded: LoadedModel, inputs: Inputs, stops: Sequence[str]) -> LoadedModel:
        """The model with a rule that ends answers at a stop text. Beams end in their own way, and are cut later."""
        if not stops or loaded.generation.get("num_beams", 1) != 1:
            return loaded
        rule = StopTexts(self._raw, inputs["input_ids"].shape[1], stops)
        return replace(loaded, generation={**loaded.generation, "stopping_criteria": StoppingCriteriaList([rule])})

    def _raw(self, ids: Tensor) -> list[str]:
        """The texts of ids ``[batch, tokens]``, with surrounding spaces: a stop text may be one."""
        texts: list[str] = self.loaded.processor.batch_decode(ids, skip_special_tokens=True)
        return texts

    def _measured(self, calibration: Sequence[Sample]) -> list[Inputs] | None:
        """Inputs of the calibration samples that the model can run; None if there are no samples."""
        if not calibration:
            return None
        found = usable(self.loaded, list(calibration), 1)
        if not found.batches:
            raise SampleError(f"no sample can be used for the calibration; {next(iter(found.skipped.values()))}")
        return found.batches


def _prompts(inputs: Inputs) -> list[list[int]]:
    """The ids of every prompt, without padding."""
    mask = inputs.get("attention_mask")
    rows: list[list[int]] = []
    for index, row in enumerate(inputs["input_ids"]):
        rows.append((row if mask is None else row[mask[index] != 0]).tolist())
    return rows
