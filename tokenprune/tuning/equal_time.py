"""Equal measured time: how many tokens each candidate may keep if its prefill shall take a given time."""

import statistics
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from tokenprune.adapters.base import Adapter
from tokenprune.budgets.base import Schedule
from tokenprune.budgets.keep import ladder
from tokenprune.budgets.layer_average import LayerAverage, layer_average
from tokenprune.config import Method
from tokenprune.core.clock import timed
from tokenprune.errors import BudgetError, TokenPruneError
from tokenprune.run.apply import apply
from tokenprune.selectors.fixed import Fixed
from tokenprune.tuning.budgets import PrefillTime
from tokenprune.tuning.candidate_maker import Candidate

#: Steps of the bisection, rounds of each timing, and how near to the wanted share of time is near enough.
STEPS, ROUNDS, NEAR = 5, 3, 0.02

#: Milliseconds of one prefill with a method, or of the unpruned model.
Clock = Callable[[Method | None], float]


def prefill_clock(adapter: Adapter, inputs: Mapping[str, Any]) -> Clock:
    """A clock that runs prefills of a batch on the model."""
    model: Any = adapter.model

    def prefill() -> Any:
        with torch.no_grad():
            return model(**inputs, use_cache=True, logits_to_keep=1)

    def clock(method: Method | None) -> float:
        if method is None:
            return timed(model.device, prefill)[1]
        with apply(model, method):
            return timed(model.device, prefill)[1]

    return clock


def equal_time(
    candidates: Sequence[Candidate],
    wanted: PrefillTime,
    *,
    visual: int,
    num_layers: int,
    clock: Clock,
    known: MutableMapping[str, float],
    remember: Callable[[], object] = lambda: None,
) -> tuple[list[Candidate], dict[str, str]]:
    """Give each candidate the layer average at which its prefill takes the wanted share of the unpruned one's time.

    Args:
        candidates: The candidates.
        wanted: The wanted share.
        visual: Visual tokens of the timed samples.
        num_layers: Decoder layers of the model.
        clock: Times one prefill.
        known: Layer averages that an earlier call found, by candidate; new ones are added.
        remember: Called whenever one was added.

    Returns:
        The candidates with their budgets, and why others cannot take so little time.
    """
    fitting, refused = [], {}
    clock(None)  # warms up
    for candidate in candidates:
        if candidate.name not in known:
            try:
                known[candidate.name] = _search(candidate.method, wanted.ratio, visual, num_layers, clock)
            except TokenPruneError as error:
                refused[candidate.name] = str(error)
                continue
            remember()
        fitting.append(Candidate(candidate.name, _at(candidate.method, known[candidate.name]), candidate.origin))
    return fitting, refused


def _search(method: Method, wanted: float, visual: int, num_layers: int, clock: Clock) -> float:
    """The layer average, as a share, whose measured time is nearest to the wanted one among those tried."""
    assert isinstance(method.layers, Fixed)
    low, high = _least(method.layers.layers, visual, num_layers), 1.0
    share = _share(_at(method, low), clock)
    if share > wanted + NEAR:
        raise BudgetError(
            f"its prefill takes {share:.2f} of the unpruned time even with one visual token per sample, which is more"
            f" than {wanted:g}"
        )
    nearest = (abs(share - wanted), low)
    for _ in range(STEPS):
        if nearest[0] <= NEAR:
            break
        middle = (low + high) / 2
        share = _share(_at(method, middle), clock)
        nearest = min(nearest, (abs(share - wanted), middle))
        low, high = (middle, high) if share < wanted else (low, middle)
    return nearest[1]


def _share(method: Method, clock: Clock) -> float:
    """Median over the rounds of the pruned time divided by the unpruned time of the same round."""
    return statistics.median(clock(method) / clock(None) for _ in range(ROUNDS))


def _at(method: Method, ratio: float) -> Method:
    return method.model_copy(update={"budget": LayerAverage(ratio=ratio)})


def _least(layers: tuple[int, ...], visual: int, num_layers: int) -> float:
    """The least layer average that leaves a token after the last stage, rounded up, as a share."""
    least = layer_average(visual, ladder(visual, 1, len(layers)), Schedule(layers, num_layers)) / visual
    return min(1.0, least * (1 + 1e-6))
