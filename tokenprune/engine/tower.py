"""Records what layers of the vision tower show, and reads it for the visual tokens of a prefill."""

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.layout import VisualLayout
from tokenprune.adapters.modalities import MODALITIES, Modality, pixels
from tokenprune.adapters.towers import TowerRun, TowerSite
from tokenprune.core.call_arguments import bound_arguments
from tokenprune.engine import hooks
from tokenprune.engine.calls import Call
from tokenprune.errors import ScoreError, UnsupportedModelError
from tokenprune.ops.vision import TowerRuns, on_visual_axis
from tokenprune.signals.recorded_tower import RecordedTower
from tokenprune.signals.rows import VisualAxis
from tokenprune.signals.signals import GatheredTower, TowerSignals


class _ThreadRuns(threading.local):
    """Tower runs on one thread that do not belong to a model call yet.

    Attributes:
        pending: Runs of the tower that ``generate`` made for its prefill.
        encoding: Whether ``generate`` is encoding its images. Runs that the caller makes belong to no prefill.
        encoder: The arguments of the encoder that is running.
    """

    def __init__(self) -> None:
        self.pending: list[TowerRun] = []
        self.encoding = False
        self.encoder: dict[str, Any] = {}


class TowerRecorder:
    """Records runs of the vision tower. A run belongs to the call that it is part of.

    ``generate`` runs the tower before the model, once for all beams (transformers 5.23): such a run belongs to the next
    prefill on the same thread.

    Args:
        adapter: The model's adapter.
        sites: Layers of the tower that are read, and where.
        values: Whether value states are read, too.
        current: The call that runs on this thread; None where it is not to be recorded.
        generates: Whether the generation that runs on this thread is to be recorded.
        layers_read: Names what is recorded; methods that read the same share the recorder.

    Attributes:
        layers_read: As given.
        hooks: The hooks on the towers, for the time in which they are needed.
    """

    def __init__(
        self,
        adapter: Adapter,
        sites: Sequence[tuple[int, TowerSite]],
        values: bool,
        current: Callable[[], Call | None],
        generates: Callable[[], bool] = lambda: True,
        layers_read: Hashable = None,
    ) -> None:
        self._adapter = adapter
        self._sites = sites
        self._values = values
        self._current, self._generates = current, generates
        self._thread = _ThreadRuns()
        self.layers_read = layers_read
        self.hooks = hooks.SharedHooks(self.hook_towers)

    def replace_methods(self) -> list[hooks.Removable]:
        """Follow what encodes the images."""
        handles: list[hooks.Removable] = []
        if self._sites:
            name = "_prepare_multimodal_encoder_kwargs_for_generation"
            handles.append(hooks.PatchedMethod(self._adapter.model, name, self._encoding))
        model = getattr(self._adapter.model, "base_model", self._adapter.model)
        for name, wanted in self._adapter.encoders.items() if self._sites else ():
            handles.append(hooks.observe_calls(model, name, self._note_encoder(wanted)))
        return handles

    def hook_towers(self) -> list[hooks.Removable]:
        """Put the hooks on the towers."""
        handles: list[hooks.Removable] = []
        for tower in dict.fromkeys(site.tower for _, site in self._sites):
            handles.append(hooks.before(tower, self._start))
        for layer, site in self._sites:
            handles.append(hooks.before(site.attention, self._keep_rotary(layer)))
            observed = {"query": site.query, "key": site.key, "output": site.block}
            if self._values and site.value is not None:
                observed["value"] = site.value
            for name, module in observed.items():
                handles.append(hooks.after(module, self._keep_states(layer, name)))
        return handles

    def take_pending(self, encoded: bool) -> list[TowerRun]:
        """The runs that a prefill starts with: those before it, if ``generate`` has encoded its images."""
        pending, self._thread.pending = self._thread.pending, []
        return pending if encoded else []

    def drop_pending(self) -> None:
        """Forget runs that ``generate`` made for a prefill that never came: they belong to no other."""
        self._thread.pending = []

    def _encoding(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let ``generate`` encode the images of its prefill, which then starts with these runs."""
        if not self._generates():
            return original(*args, **kwargs)
        self._thread.pending, self._thread.encoding = [], True
        try:
            return original(*args, **kwargs)
        finally:
            self._thread.encoding = False

    def _runs(self) -> list[TowerRun]:
        call = self._current()
        if call is not None:
            return call.tower_runs
        return self._thread.pending if self._thread.encoding else []

    def _start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = bound_arguments(module.forward, args, kwargs)
        small = {k: v for k, v in arguments.items() if not (isinstance(v, Tensor) and v.is_floating_point())}
        self._runs().append(TowerRun({**self._thread.encoder, **small}))

    def _note_encoder(self, wanted: Sequence[str]) -> Callable[[Mapping[str, Any]], None]:
        def note(arguments: Mapping[str, Any]) -> None:
            known = {name: arguments[name] for name in wanted if arguments.get(name) is not None}
            self._thread.encoder = {name: _shape_of_pixels(value) for name, value in known.items()}

        return note

    def _keep_rotary(self, layer: int) -> hooks.BeforeHook:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if runs := self._runs():
                runs[-1].states[layer, "rotary"] = kwargs.get("position_embeddings")

        return hook

    def _keep_states(self, layer: int, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if runs := self._runs():
                runs[-1].states[layer, name] = output[0] if isinstance(output, tuple) else output

        return hook


def _shape_of_pixels(value: Any) -> Any:
    """A tensor of pixels without its memory: only its shape is read."""
    return value.to("meta") if isinstance(value, Tensor) and value.is_floating_point() else value


class TowerReader:
    """The layers of the vision tower that were recorded for one prefill, seen from its visual tokens.

    Args:
        adapter: The model's adapter.
        arguments: The arguments of the model's forward, by name.
        layout: Where the visual tokens are.
        counts: Visual tokens per sample before any stage.
        runs: The runs of the tower.
    """

    def __init__(
        self,
        adapter: Adapter,
        arguments: Mapping[str, Any],
        layout: VisualLayout,
        counts: Sequence[int],
        runs: list[TowerRun],
    ) -> None:
        self._adapter = adapter
        self._arguments = arguments
        self._layout = layout
        self._counts = list(counts)
        self._runs = runs
        self._layers: dict[int, RecordedTower] = {}  # all stages read them

    def view(self, layer: int, axis: VisualAxis) -> TowerSignals:
        """One layer of the tower for the visual tokens that are left.

        Args:
            layer: Layer of the tower.
            axis: These tokens.

        Raises:
            ScoreError: The layer was not recorded.
            UnsupportedModelError: The tower's features are not the prompt's visual tokens.
        """
        if layer not in self._layers:
            self._layers[layer] = self._read(layer)
        recorded = self._layers[layer]
        order = self._feature_order(axis.positions, recorded.repeats)
        return GatheredTower(recorded, partial(on_visual_axis, order=order, visual_mask=axis.mask))

    def _read(self, layer: int) -> RecordedTower:
        modalities = self._modalities()
        runs = [run for run in self._runs if (layer, "key") in run.states][-len(modalities) :]
        if not runs:
            recorded = sorted({number for run in self._runs for number, _ in run.states})
            raise ScoreError(
                f"layer {layer} of the vision tower was not observed (observed: {recorded or 'none'})",
                "add it to vision_layers, and give pixels, not features",
            )
        read = []
        for modality, run in zip(modalities, runs, strict=False):  # fewer runs: the number of features will tell
            video = modality == "video"
            site = self._adapter.video_tower_site(layer) if video else self._adapter.tower_site(layer)
            query, key, rotary = (run.states[layer, name] for name in ("query", "key", "rotary"))
            output = run.states[layer, "output"]
            packed = output if output.dim() == 3 else output[None]  # Qwen-VL's towers have one row of patches
            made = site.read(query, key, rotary, run.arguments)
            value = run.states.get((layer, "value"))
            split = None if value is None else site.split_value(value, made.key)
            read.append(replace(made, output=packed, value=split))
        states = read[0] if len(read) == 1 else TowerRuns(read)
        visual, repeats = sum(self._counts), 1
        if self._arguments.get("mm_encoder_outputs"):  # ``generate`` ran the tower before it repeated samples as beams
            repeats = max(1, visual // states.features)
        beams = [count for count in self._counts[::repeats] for _ in range(repeats)]
        if beams != self._counts or states.features * repeats != visual:
            raise UnsupportedModelError(
                f"the vision tower made {states.features} features for {visual} visual tokens",
                "use a method that does not read the vision tower",
            )
        # a call that names another layer of features has another projector
        projector = None if self._arguments.get("vision_feature_layer") else self._adapter.projector(layer)
        return RecordedTower(states, self._counts, repeats, projector)

    def _modalities(self) -> list[Modality]:
        """Image or video, or both, in the order in which the tower got them."""
        encoded = self._arguments.get("mm_encoder_outputs") or {}
        kinds: list[Modality] = [kind for kind, output in encoded.items() if output is not None]
        return kinds or [kind for kind in MODALITIES if pixels(self._arguments, kind) is not None] or list(MODALITIES)

    def _feature_order(self, positions: Tensor, repeats: int) -> Tensor:
        """Number of each visual token among all features that the tower made: they enter the prompts in order.

        All images come first and then all videos (or, under ``generate``, in the order in which it encoded them).

        Args:
            positions: Unpruned positions of the visual tokens, long ``[batch, n_visual]``.
            repeats: Times that the prompts repeat each sample.
        """
        mask = self._layout.mask[::repeats].to(positions.device)
        videos = self._adapter.video_mask(self._arguments)
        second = torch.zeros_like(mask) if videos is None else videos[::repeats].to(mask.device)
        if self._modalities()[0] == "video":
            second = ~second
        ahead, behind = mask & ~second, mask & second
        order = torch.where(second, _count_up_to(behind) + ahead.sum(), _count_up_to(ahead)) - 1
        return order.repeat_interleave(repeats, dim=0).gather(1, positions.clamp(min=0))


def _count_up_to(chosen: Tensor) -> Tensor:
    """Running count of the chosen places over all samples in a row, ``[batch, seq]``."""
    return chosen.flatten().cumsum(0).view(chosen.shape)
