"""A batch of a race: every method runs on it as a whole, or sample by sample where that fails."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.config import Method
from tokenprune.core.forward_errors import forward_errors, of_samples, release
from tokenprune.engine.trials.fidelity import Fidelity, UnprunedBatch
from tokenprune.errors import TokenPruneError

Inputs = Mapping[str, Any]
#: Answers a batch with the model as it is, and scores the answers: (number of the batch, its inputs, the place of the
#: only sample or None for the whole batch) -> ``[samples]``.
Answer = Callable[[int, Inputs, int | None], Tensor]
#: The inputs of each sample of a batch alone, by the number of the batch.
Alone = Callable[[int], Sequence[Inputs]]


@dataclass
class MeasuredBatch:
    """A batch, and what methods do to it next to the unpruned model.

    Attributes:
        adapter: The model's adapter.
        number: Number of the batch.
        inputs: The batch, as for ``model(**inputs)``.
        firsts: Layers before which the methods will first drop tokens.
        tokens: Tokens of the answer that are compared.
        sample_ids: Numbers of the samples, on which random scores depend.
        names: Names of the samples in errors; None for their numbers.
        answer: Answers and scores the batch; None for none.
        alone: Makes the inputs of its samples alone; None where nobody can: a batch that fails is then an error.
    """

    adapter: Adapter
    number: int
    inputs: Inputs
    firsts: Collection[int]
    tokens: int
    sample_ids: Sequence[int]
    names: Sequence[str] | None = None
    answer: Answer | None = None
    alone: Alone | None = None

    def prepare(self) -> None:
        """Run the unpruned model.

        Raises:
            UnsupportedFeatureError: Its logits of a sample hold NaN.
            ForwardError: It fails on a sample, or on the batch and nobody can divide it.
        """
        if self._whole is None:
            assert self._singles

    def fidelity(self, method: Method, layers: Sequence[int]) -> Fidelity:
        """What a method does to the samples.

        Args:
            method: The method.
            layers: Layers before which it drops tokens.

        Raises:
            TokenPruneError: It cannot run on this model, or on one of the samples.
        """
        if self._whole is not None:
            try:
                return self._measure(self._whole, self.inputs, None, method, layers)
            except TokenPruneError as error:
                if not self._divides(error):
                    raise
                release(error)
        parts = [
            self._measure(unpruned, inputs, place, method, layers)
            for place, (unpruned, inputs) in enumerate(self._singles)
        ]
        return Fidelity.cat(parts)

    def _measure(
        self, unpruned: UnprunedBatch, inputs: Inputs, place: int | None, method: Method, layers: Sequence[int]
    ) -> Fidelity:
        with forward_errors():
            found = unpruned.fidelity(method, layers)
            if self.answer is not None:
                with unpruned.pruned(method, layers):
                    found = replace(found, score=self.answer(self.number, inputs, place))
        return found

    def _divides(self, error: TokenPruneError) -> bool:
        """Whether the samples are tried one by one after an error."""
        return self.alone is not None and len(self.sample_ids) > 1 and of_samples(error)

    @cached_property
    def _whole(self) -> UnprunedBatch | None:
        """The unpruned model's answers to the batch; None if it fails on it."""
        try:
            with forward_errors():
                return UnprunedBatch(self.adapter, self.inputs, self.firsts, self.tokens, self.sample_ids, self.names)
        except TokenPruneError as error:
            if not self._divides(error):
                raise
            release(error)
            return None

    @cached_property
    def _singles(self) -> list[tuple[UnprunedBatch, Inputs]]:
        """The unpruned model's answers to each sample alone."""
        assert self.alone is not None
        made = []
        for place, inputs in enumerate(self.alone(self.number)):
            ids, names = [self.sample_ids[place]], None if self.names is None else [self.names[place]]
            with forward_errors():
                unpruned = UnprunedBatch(self.adapter, inputs, self.firsts, self.tokens, ids, names)
            made.append((unpruned, inputs))
        return made
