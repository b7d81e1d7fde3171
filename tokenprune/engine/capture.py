"""Records the layers before the stages: only what a stage's pruner needs, and only while a prefill runs."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.projections import Projection
from tokenprune.engine import hooks
from tokenprune.engine.calls import Call, Observation
from tokenprune.engine.layer_call import LayerCalls
from tokenprune.engine.plan import Plan, Stage


class Captures:
    """The hooks that observe the layers before the stages.

    Args:
        plan: The method's stages.
        adapter: The model's adapter.
        layers: The calls of each decoder layer.
        current: The call that runs on this thread.
    """

    def __init__(
        self, plan: Plan, adapter: Adapter, layers: Sequence[LayerCalls], current: Callable[[], Call | None]
    ) -> None:
        self._plan = plan
        self._adapter = adapter
        self._layers = layers
        self._current = current

    def register(self) -> list[hooks.Removable]:
        """Put the hooks on the model."""
        handles = []
        if any(stage.reads_prompt for stage in self._plan.stages):
            # first, because the next hook may prune there already
            handles.append(hooks.before(self._adapter.layers[0], self._keep_input, first=True))
        for stage in self._plan.stages:
            if stage.layer_states:
                projections = self._adapter.stack.projections(stage.layer - 1, stage.layer_states)
                for name, projection in projections.items():
                    handles.append(hooks.after(projection.module, self._keep_states(stage, name, projection)))
            if "previous" in stage.pruner.needs:
                handles.append(hooks.before(self._adapter.layers[stage.layer - 1], self._keep_hidden(stage)))
            if stage.reads_attention:
                handles.append(hooks.before(self._adapter.layers[stage.layer - 1], self._keep_arguments(stage)))
        return handles

    def _observation(self, stage: Stage) -> Observation | None:
        call = self._current()
        return None if call is None else call.observation(stage.number)

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self._current()
        if call is not None:
            call.see_input(self._layers[0].hidden(args, kwargs))

    def _keep_states(self, stage: Stage, name: str, projection: Projection) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            observation = self._observation(stage)
            if observation is not None:
                observation.states[name] = projection.read(output)

        return hook

    def _keep_hidden(self, stage: Stage) -> hooks.BeforeHook:
        layer = self._layers[stage.layer - 1]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            observation = self._observation(stage)
            if observation is not None:
                observation.states["previous"] = layer.hidden(args, kwargs)

        return hook

    def _keep_arguments(self, stage: Stage) -> hooks.BeforeHook:
        layer = self._layers[stage.layer - 1]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            observation, call = self._observation(stage), self._current()
            if observation is not None and call is not None:
                observation.arguments = layer.others(args, kwargs)
                observation.earlier = call.stored_keys(stage.layer - 1)

        return hook
