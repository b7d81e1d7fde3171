"""Matrix entropy of the visual tokens' states behind every layer of the vision tower, taken while the tower runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.layout import VisualLayout
from tokenprune.adapters.modalities import MODALITIES, pixels
from tokenprune.adapters.towers import TowerSite
from tokenprune.engine import hooks
from tokenprune.engine.calls import Call
from tokenprune.engine.tower import TowerReader, TowerRecorder
from tokenprune.errors import TokenPruneError
from tokenprune.ops.entropy import state_entropy
from tokenprune.signals.rows import VisualAxis


class TowerEntropy:
    """The entropy behind the layers of the vision tower in one forward of the model, one number per sample.

    The states of a token are those of :attr:`tokenprune.signals.signals.TowerSignals.features`: of its patch, or the
    mean over its patches where the projector merges some. A visual token that is made of no patch (a newline) has no
    states in the tower and does not count there.

    The number is computed when a layer has run, and the layer's states are let go. Only where a batch holds images and
    videos, the states of the first run of the tower wait for the second: a sample may have both.

    Args:
        adapter: The model's adapter.
        inputs: The arguments of the model's forward, by name.
        layout: Where the visual tokens are.

    Attributes:
        refused: Why the tower cannot be read; empty where it can.
    """

    def __init__(self, adapter: Adapter, inputs: Mapping[str, Any], layout: VisualLayout) -> None:
        self.refused = ""
        self._adapter, self._inputs, self._layout = adapter, inputs, layout
        self._counts: list[int] = layout.mask.sum(1).tolist()
        self._entropy: dict[int, Tensor] = {}
        self._call = Call()
        self._sites: list[tuple[int, TowerSite]] = []
        try:
            self._depth = adapter.tower_depth()
            self._sites = adapter.tower_sites(range(self._depth))
        except TokenPruneError as error:
            self.refused = error.what
        if inputs.get("vision_feature_layer") is not None:
            self.refused = "a calibration sample names its own vision_feature_layer"
        given = [kind for kind in MODALITIES if pixels(inputs, kind) is not None]
        self._runs_expected = len(given or MODALITIES)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the tower inside the block, in which the model runs once."""
        handles: list[hooks.Removable] = []
        try:
            if not self.refused:
                recorder = TowerRecorder(self._adapter, self._sites, False, lambda: self._call)
                handles += recorder.replace_methods() + recorder.hook_towers()
                handles += [hooks.after(site.block, self._left(layer)) for layer, site in self._sites]
            yield
        finally:
            for handle in reversed(handles):
                handle.remove()

    def curves(self) -> Tensor | None:
        """What was measured, float64 ``[batch, layers]`` on the host; None where :attr:`refused` says why."""
        for layer in range(0 if self.refused else self._depth):
            if layer not in self._entropy:  # the tower ran in another number of runs than the inputs let expect
                self._measure(layer, self._layout.mask.device)
        self._call.tower_runs.clear()
        if self.refused:
            return None
        return torch.stack([self._entropy[layer] for layer in range(self._depth)], dim=1)

    def _left(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if len(self._call.tower_runs) == self._runs_expected:
                self._measure(layer, states.device)

        return hook

    def _measure(self, layer: int, device: torch.device) -> None:
        """Note the entropy of a layer, or why there is none, and let its states go."""
        if not self.refused:
            mask, groups = self._layout.mask.to(device), self._layout.groups.to(device)
            axis = VisualAxis.of(mask, groups, max(self._counts))
            runs = self._call.tower_runs
            try:
                reader = TowerReader(self._adapter, self._inputs, self._layout, self._counts, runs)
                states = reader.view(layer, axis).features
            except TokenPruneError as error:
                self.refused = error.what
            else:
                patched = (states != 0).any(-1)  # a token of no patch has zeros
                counted = axis.mask & (patched | ~patched.any(1, keepdim=True))
                self._entropy[layer] = state_entropy(states, counted).cpu()
        for run in self._call.tower_runs:
            for key in [key for key in run.states if key[0] == layer]:
                del run.states[key]
