"""Renumbered positions: the tokens that are left follow each other without gaps, as in a shortened prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.adapters.base import Adapter
from tokenprune.engine.cache import pruned_layer
from tokenprune.engine.caches.rows import Rows
from tokenprune.engine.decode import DecodeStep
from tokenprune.engine.hooks import SharedHooks
from tokenprune.engine.layer_call import LayerCalls
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError
from tokenprune.ops.rows import seen_columns, take

_FIX = "use positions: original"


def rotary_modules(decoder: nn.Module) -> list[nn.Module]:
    """The modules that make a decoder's rotary cosines and sines."""
    return [module for module in decoder.modules() if "rotary" in type(module).__name__.lower()]


@dataclass(frozen=True)
class _RotaryCall:
    original: Callable[..., Any]
    arguments: Mapping[str, Any]
    value: Any


@dataclass(frozen=True)
class Rotation:
    """Makes cosines and sines of positions, as a rotary module did in a prefill.

    Attributes:
        original: The forward of the module.
        others: Its other arguments by name; nothing of a prompt's size is among them.
        leading: Shape of its positions before ``[batch, rows]``: empty, or the number of their axes (M-RoPE).
    """

    original: Callable[..., Any]
    others: Mapping[str, Any]
    leading: tuple[int, ...]

    def at(self, positions: Tensor) -> Any:
        """The cosines and sines at some positions, long ``[batch, rows]``."""
        return self.original(**self.others, position_ids=positions.expand(*self.leading, *positions.shape))


class RotaryCalls:
    """The cosines and sines that one call of the model made, so that they can be made again for other positions."""

    def __init__(self) -> None:
        self._calls: list[_RotaryCall] = []

    def record(self, original: Callable[..., Any], arguments: Mapping[str, Any], value: Any) -> None:
        """Note that a rotary module made ``value`` of some arguments."""
        # hidden states are read for their dtype and device only: one number is kept of them
        small = {k: v.new_zeros(1, 1, 1) if _is_states(v) else v for k, v in arguments.items()}
        self._calls.append(_RotaryCall(original, small, value))

    def again(self, value: Any, move: Callable[[Tensor], Tensor]) -> Any:
        """Run the rotary module that made ``value`` again, with new positions.

        Args:
            value: Its cosines and sines.
            move: Gives the new positions from those that it was given, long ``[..., batch, rows]``.

        Raises:
            UnsupportedModelError: No rotary module made ``value`` of positions.
        """
        call = self._of(value)
        return call.original(**{**call.arguments, "position_ids": move(call.arguments["position_ids"])})

    def rotation(self, value: Any) -> Rotation:
        """How the rotary module that made ``value`` makes others.

        Raises:
            UnsupportedModelError: No rotary module made ``value`` of positions.
        """
        call = self._of(value)
        others = {name: argument for name, argument in call.arguments.items() if name != "position_ids"}
        return Rotation(call.original, others, tuple(call.arguments["position_ids"].shape[:-2]))

    def _of(self, value: Any) -> _RotaryCall:
        for call in self._calls:
            if call.value is value and isinstance(call.arguments.get("position_ids"), Tensor):
                return call
        raise _unknown_rotary()

    @property
    def position_ids(self) -> Tensor:
        """The positions that the model gave its prompt, long ``[..., batch, seq]``.

        Raises:
            UnsupportedModelError: No rotary module was given any.
        """
        for call in self._calls:
            ids = call.arguments.get("position_ids")
            if isinstance(ids, Tensor):
                return ids
        raise _unknown_rotary()


def _is_states(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _unknown_rotary() -> UnsupportedModelError:
    return UnsupportedModelError(
        "the layers were not given cosines and sines that a rotary module of the decoder made of positions", _FIX
    )


class Renumbering:
    """The positions of the rows that are left: the sample's first token keeps its own, and the others count on.

    A model whose positions have several axes (M-RoPE) gets the same number on every axis, as for text. A sample that
    loses nothing keeps its positions, whatever is dropped of the samples that share its batch.

    Args:
        rotary: The cosines and sines that the rotary modules made in this call.
        rows: Rows of the unpruned sequence that are left, long ``[batch, kept]``, -1 for padding.
        tokens: Tokens without padding, bool ``[batch, seq]``.
        begins: In a later turn, the position of its first token, long ``[batch]``; -1 for samples that have lost
            nothing in earlier turns. None where no sample has.
    """

    def __init__(self, rotary: RotaryCalls, rows: Tensor, tokens: Tensor, begins: Tensor | None = None) -> None:
        self._rotary = rotary
        self._rows = rows
        self._first = tokens.int().argmax(1, keepdim=True)
        real = (rows >= 0) & tokens.gather(1, rows.clamp(min=0))
        self._rank = (real.long().cumsum(1) - 1).clamp(min=0)
        self._count = real.sum(1, keepdim=True)
        self._whole = self._count == tokens.sum(1, keepdim=True)
        self._begins = None if begins is None else begins[:, None].to(rows.device)
        if self._begins is not None:
            self._whole = self._whole & (self._begins < 0)

    def ids(self, old: Tensor) -> Tensor:
        """The positions of the rows that are left, long ``[..., batch, kept]``, from those of all rows."""
        counted = self._from(take(old, self._first, -1, -2)) + self._rank.to(old.device)
        return torch.where(self._whole.to(old.device), take(old, self._rows, -1, -2), counted)

    def embeddings(self, value: Any) -> Any:
        """The cosines and sines of the rows that are left."""
        return self._rotary.again(value, self.ids)

    def rotations(self, others: Mapping[str, Any], name: str) -> dict[str, Rotation]:
        """How the cosines and sines among a layer's arguments, whose names begin with ``name``, were made."""
        return {key: self._rotary.rotation(value) for key, value in others.items() if key.startswith(name)}

    def following(self) -> Tensor:
        """The position of the first token after the prompt, long ``[batch]``; -1 where a sample keeps its positions.

        It does not ask where the model would go on: models have several rules, which differ where a video's time axis
        runs past the text behind it (``generate`` adds one to the last token's, ``rope_deltas`` to the largest).
        """
        first = take(self._rotary.position_ids, self._first, -1, -2)
        first = self._from(first.reshape(-1, len(self._first), 1).amax(0))  # the same on every axis, as for text
        return (first + self._count.to(first.device)).masked_fill(self._whole.to(first.device), -1)[:, 0]

    def _from(self, first: Tensor) -> Tensor:
        """Where the counting begins, from the position that the model gave the first token, ``[..., batch, 1]``."""
        if self._begins is None:
            return first
        begins = self._begins.to(first.device)
        return torch.where(begins < 0, first, begins)


class RenumberedStep(DecodeStep):
    """A decode step whose positions go on after the renumbered prompt, one for each token that is no padding.

    Args:
        layers: The calls of each decoder layer.
        hooks: The hooks on the layers.
        adapter: The model's adapter.
        hides: See :class:`DecodeStep`.
        window: The smallest window of a pruned layer; None where all see everything.
        mask: The call's attention mask, in any form.
    """

    reads_rotary = True

    def __init__(
        self,
        layers: Sequence[LayerCalls],
        hooks: SharedHooks,
        adapter: Adapter,
        hides: bool,
        window: int | None,
        mask: Any,
    ) -> None:
        super().__init__(layers, hooks, adapter, hides)
        self._rotary = RotaryCalls()
        self._names = adapter.layer_signature
        self._window = window
        self._tokens = seen_columns(mask)
        # layers of one stage get the same cosines and sines; the key's objects are kept, so that ids stay their own
        self._moved: dict[tuple[int, int], tuple[Any, Tensor | None, Any]] = {}

    def see_rotary(self, original: Callable[..., Any], arguments: Mapping[str, Any], value: Any) -> None:
        """See :meth:`tokenprune.engine.calls.Call.see_rotary`."""
        self._rotary.record(original, arguments, value)

    def before_layer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See :meth:`tokenprune.engine.calls.Call.before_layer`."""
        args, kwargs = super().before_layer(layer, args, kwargs) or (args, kwargs)
        calls = self._layers[layer]
        others, hidden = calls.others(args, kwargs), calls.hidden(args, kwargs)
        cache_layer: Any = pruned_layer(calls.cache(others), layer)
        if cache_layer is None or cache_layer.rows.following is None:
            return (hidden,), others
        width, new = int(cache_layer.get_seq_length()) + hidden.shape[1], hidden.shape[1]
        if self._window is not None:
            check_window(self._window, width)
        rows, moved = cache_layer.rows, dict(others)

        def move(ids: Tensor) -> Tensor:
            return self._continued(rows, ids, width, new)

        for name, value in others.items():
            if name.startswith(self._names.position_embeddings):
                moved[name] = self._once(value, rows, lambda value: self._rotary.again(value, move))
            elif name == self._names.position_ids and isinstance(value, Tensor):
                moved[name] = self._once(value, rows, move)
        return (hidden,), moved

    def _continued(self, rows: Rows, ids: Tensor, width: int, new: int) -> Tensor:
        """The positions of a step's tokens, long ``[..., batch, new]``, from those that the model gave them."""
        following = rows.following
        assert following is not None
        if self._tokens is not None:
            number = (self._tokens[:, rows.length : width].cumsum(1) - 1).clamp(min=0)[:, -new:].to(ids.device)
        else:
            number = torch.arange(width - rows.length - new, width - rows.length, device=ids.device)[None]
        following = following[:, None].to(ids.device)
        return torch.where(following < 0, ids, following + number.to(ids.device))

    def _once(self, value: Any, rows: Rows, make: Callable[[Any], Any]) -> Any:
        key = (id(value), id(rows.following))
        if key not in self._moved:
            self._moved[key] = (value, rows.following, make(value))
        return self._moved[key][2]


def smallest_window(adapter: Adapter, first: int) -> int | None:
    """The smallest window of the layers from ``first`` on; None where all see everything."""
    windows = (adapter.stack.window(layer) for layer in range(first, adapter.num_layers))
    return min((window for window in windows if window is not None), default=None)


def check_window(window: int, tokens: int) -> None:
    """Refuse sequences that are longer than a window, which is counted in original positions.

    Raises:
        UnsupportedFeatureError: They are.
    """
    if tokens > window:
        raise UnsupportedFeatureError(
            f"positions: renumbered with {tokens} tokens, and layers whose window is {window}: which tokens a window"
            " holds would differ from the shortened prompt",
            f"use positions: original, or at most {window} tokens",
        )
