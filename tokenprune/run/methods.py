"""The methods that the calls of one applied model use, with their layers: chosen once, and kept."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from tokenprune.adapters.base import Adapter
from tokenprune.budgets.keep import KeepRatio
from tokenprune.budgets.stated import stated_budget
from tokenprune.config import Method
from tokenprune.core.references import UNPRUNED
from tokenprune.engine.plan import Plan
from tokenprune.errors import ConfigError
from tokenprune.pruners.topk import TopK
from tokenprune.recording import Recording
from tokenprune.scorers.random import Random
from tokenprune.selectors.base import LayerChoice, SelectorContext
from tokenprune.selectors.fixed import Fixed

#: Plans that are kept, those used last. Whoever lets clients name any budget must not fill the memory with them.
KEPT = 256


def check_is_method(method: object, function: str) -> None:
    """Refuse what is no method.

    Raises:
        ConfigError: It is none; the message names ``function``.
    """
    if not isinstance(method, Method):
        raise ConfigError(
            f"{function} needs a Method, got {type(method).__name__}", "use tp.load_method(name) or tp.Method"
        )


def chosen(method: Method, choice: LayerChoice) -> Method:
    """The method as its selector wants it: with the pruner that the selector chose, if it chose one."""
    return method if choice.pruner is None else method.model_copy(update={"pruner": choice.pruner})


def keeps_everything() -> Method:
    """What stands for no method in recordings and reports."""
    return Method(
        layers=Fixed(layers=(0,)),
        pruner=TopK(scorer=Random()),
        budget=KeepRatio(ratio=1.0),
        label=UNPRUNED,
    )


def with_budget(method: Method, budget: str | None, fields: Mapping[str, Any]) -> Method:
    """The method with another budget; arguments and errors as for :func:`tokenprune.load_method`."""
    stated = stated_budget(budget, fields, "using")
    if stated is None:
        return method
    return Method.from_dict({**method.model_dump(mode="json"), "budget": stated}, "using")


class RunMethods:
    """The methods that the calls of one applied model may use.

    Args:
        adapter: The model's adapter.
        context: Makes what the selector of a method sees of the model without running it.
        calibrated: Whether ``apply`` was given calibration samples.
    """

    def __init__(
        self,
        adapter: Adapter,
        context: Callable[[Method], SelectorContext],
        calibrated: bool,
    ) -> None:
        self._adapter, self._context, self._calibrated = adapter, context, calibrated
        self._choices: dict[str, LayerChoice] = {}
        self._plans: OrderedDict[str, tuple[Recording, Plan]] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, method: Method, choice: LayerChoice) -> None:
        """Keep the layers of a method, also as it is with the pruner that its selector chose."""
        for same in (method, chosen(method, choice)):
            self._choices[_key(same)] = choice

    def of(self, method: Method) -> tuple[Recording, Plan]:
        """A new recording of a method, and its plan.

        Raises:
            TokenPruneError: The method cannot run on the model; or its layers are measured, and ``apply``, which
                measured those of others, was not told of it.
        """
        key = method.model_dump_json()
        with self._lock:
            kept = self._plans.get(key)
            if kept is not None:
                self._plans.move_to_end(key)
        if kept is None:
            choice = self._choice(method)
            applied = chosen(method, choice)
            kept = self._recording(applied, choice), Plan.of(applied, choice.layers, self._adapter)
            with self._lock:
                self._plans[key] = kept
                while len(self._plans) > KEPT:
                    self._plans.popitem(last=False)
        recording, plan = kept
        return self._recording(recording.method, recording.choice), plan

    def unpruned(self) -> Recording:
        """A recording of calls that are not pruned."""
        return self._recording(keeps_everything(), LayerChoice((0,), "none: the call is not pruned"), prunes=False)

    def _choice(self, method: Method) -> LayerChoice:
        known = self._choices.get(_key(method))
        if known is not None:
            return known
        context = self._context(method)
        if self._calibrated and method.layers.known_layers(context) is None:
            name = method.label or type(method.pruner).__name__.lower()
            raise ConfigError(
                f"the layers of {name!r} with this budget are measured, and apply was not told of it: a model that"
                " answers cannot be measured",
                "use tp.apply(model, method, calibration, also=[...]) with every such method and budget",
            )
        return method.layers.select(context)

    def _recording(self, method: Method, choice: LayerChoice, prunes: bool = True) -> Recording:
        adapter = self._adapter
        return Recording(method, choice, adapter.name, adapter.num_layers, adapter.text_config, prunes)


def _key(method: Method) -> str:
    """What the choice of a method's layers depends on."""
    unread = {"label"} if method.layers.runs_the_method else {"label", "budget"}
    return method.model_dump_json(exclude=unread)
