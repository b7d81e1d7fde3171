"""The loss of a pruned forward: every row that is left predicts the token that follows it in the unpruned prompt."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from tokenprune.core.call_arguments import bound_arguments, named_parameters
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError
from tokenprune.recording import Targets

#: What transformers and its collators write where there is nothing to predict.
IGNORED = -100

#: Arguments that the loss function reads. Some models hand them on to their decoder and its layers, which do not.
LABELS = ("labels", "shift_labels")


def check_labels(model: nn.Module, text_config: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse labels where the loss over the rows that are left would not be that of the model.

    Args:
        model: The model.
        text_config: Config of its decoder.
        arguments: The arguments of its forward, by name; labels are among them.

    Raises:
        UnsupportedModelError: Its forward computes the loss in a way of its own.
        UnsupportedFeatureError: Its loss function takes no ``shift_labels``; or the call asks for the logits of some
            positions, or for the load-balancing loss of a mixture of experts.
    """
    name = type(model).__name__
    code = getattr(inspect.unwrap(model.forward), "__code__", None)
    function = getattr(model, "loss_function", None)
    if function is None or (code is not None and "loss_function" not in code.co_names):
        raise own_loss_error(model)
    missing = {"logits", "labels", "shift_labels"}.difference(named_parameters(function))
    if missing:
        raise UnsupportedFeatureError(
            f"labels with the loss function {getattr(function, '__name__', type(function).__name__)} of {name}, which"
            f" takes no {' and no '.join(sorted(missing))}: a pruned forward has fewer logits than labels",
            "give it the arguments logits, labels and shift_labels; the last, [batch, rows], is the token that each row"
            " of the logits predicts, -100 for none",
        )
    kept = arguments.get("logits_to_keep")
    if not (kept is None or (isinstance(kept, int) and kept == 0)):
        raise UnsupportedFeatureError(
            "labels with logits_to_keep: the loss is that of all rows that are left", "leave out one of the two"
        )
    routed = arguments.get("output_router_logits")
    if getattr(text_config, "output_router_logits", False) if routed is None else routed:
        raise UnsupportedFeatureError(
            f"labels with output_router_logits: the load-balancing loss of {name} counts as many tokens in every layer",
            "call the model with output_router_logits=False",
        )


def check_width(labels: Tensor, width: int) -> None:
    """Refuse labels of another length than the prompt: those of a whole conversation in a later turn.

    Args:
        labels: The labels, long ``[batch, tokens]``.
        width: Tokens that the call brings.

    Raises:
        UnsupportedFeatureError: The lengths differ.
    """
    if labels.shape[-1] != width:
        raise UnsupportedFeatureError(
            f"labels of {labels.shape[-1]} tokens for a call that brings {width}",
            "pass one label for each token of the call",
        )


def own_loss_error(model: nn.Module) -> UnsupportedModelError:
    """The error for a model whose forward does not ask ``loss_function`` for the loss."""
    name = type(model).__name__
    return UnsupportedModelError(
        f"labels: the forward of {name} does not compute its loss by {name}.loss_function, and a pruned forward has"
        " fewer logits than labels",
        "leave out labels, and compute the loss from the logits (run.stages[-1].rows holds their positions)",
    )


def prompt_targets(labels: Tensor) -> Targets:
    """The targets of a prompt that is not pruned."""
    return _count(_following(labels, IGNORED), None, IGNORED)


def loss_of_rows(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: Tensor | None
) -> tuple[Any, Targets]:
    """The loss over the rows that are left.

    A target whose predicting row was dropped does not count. ``num_items_in_batch`` is used as it was given.

    Args:
        function: The model's loss function.
        args: Its positional arguments, as the model gave them.
        kwargs: Its keyword arguments; ``labels`` and ``shift_labels`` are those of the unpruned prompt.
        rows: Position of each row that is left, long ``[batch, rows]``, -1 for padding; None if none was dropped.

    Returns:
        The loss, and the targets.

    Raises:
        UnsupportedFeatureError: The logits have another number of rows: the model picked some.
    """
    named = bound_arguments(function, args, kwargs)
    default = inspect.signature(function).parameters.get("ignore_index")
    ignored = named.get("ignore_index", IGNORED if default is None else default.default)
    labels, shifted = named["labels"], named.get("shift_labels")
    following = _following(labels, ignored) if shifted is None else shifted
    targets = _count(following, rows, ignored)
    if rows is None:
        return function(*args, **kwargs), targets
    found = named["logits"].shape[1]
    if found != rows.shape[1]:
        raise UnsupportedFeatureError(
            f"labels: {rows.shape[1]} rows are left of the prompt, and the model computed the logits of {found}",
            "leave out labels, or what asks for the logits of some positions",
        )
    left = {"labels": _of_rows(labels, rows, ignored), "shift_labels": _of_rows(following, rows, ignored)}
    return function(**{**named, **left}), targets


def _following(labels: Tensor, ignored: int) -> Tensor:
    """The label of the next position."""
    return nn.functional.pad(labels, (0, 1), value=ignored)[:, 1:]


def _of_rows(values: Tensor, rows: Tensor, ignored: int) -> Tensor:
    rows = rows.to(values.device)
    return values.gather(1, rows.clamp(min=0)).masked_fill(rows < 0, ignored)


def _count(following: Tensor, rows: Tensor | None, ignored: int) -> Targets:
    given = (following != ignored).sum(1)
    left = given if rows is None else (_of_rows(following, rows, ignored) != ignored).sum(1)
    return Targets(given, given - left)
