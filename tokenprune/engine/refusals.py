"""Uses of a model that a method cannot follow exactly, refused before anything runs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.layout import features_in_place
from tokenprune.core.call_arguments import CACHE_NAMES, given_cache
from tokenprune.engine import hooks
from tokenprune.engine.plan import Cuts, Plan
from tokenprune.errors import UnsupportedFeatureError

#: Entries of continuous batching: they run the decoder on packed sequences and caches of their own.
CONTINUOUS_BATCHING = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


def register(adapter: Adapter, plan: Callable[[], Plan | None]) -> list[hooks.Removable]:
    """Refuse ways to generate that a method cannot follow, when they are asked for.

    Args:
        adapter: The model's adapter.
        plan: Tells the plan of the method that a generation on this thread uses; None where it is not pruned.
    """
    model = adapter.model
    refused: list[hooks.Removable] = [
        hooks.observe_calls(model, "_prefill", partial(_check_chunks, adapter, plan)),
    ]
    return refused + [hooks.PatchedMethod(model, name, _refuse_batching) for name in CONTINUOUS_BATCHING]


def _check_chunks(adapter: Adapter, plan: Callable[[], Plan | None], arguments: Mapping[str, Any]) -> None:
    size = getattr(arguments.get("generation_config"), "prefill_chunk_size", None)
    ids, more = arguments.get("input_ids"), arguments.get("model_kwargs", {})
    if size is None or ids is None:
        return
    cache, mask = given_cache(more), more.get("attention_mask")
    if cache is not None and isinstance(mask, torch.Tensor) and mask.shape[-1] == ids.shape[1]:
        ids = ids[:, int(cache.get_seq_length()) :]  # the whole conversation was given
    followed = plan()
    if followed is None:
        return
    # a chunk of one token would look like a decode step
    visual = adapter.visual_mask({"input_ids": ids})
    if visual is not None and bool(visual[:, size:].any()):
        raise UnsupportedFeatureError(
            f"prefill_chunk_size={size}: images lie behind the first chunk",
            "leave prefill_chunk_size out, or make the first chunk hold all images",
        )
    if followed.cuts_earlier and visual is not None and ids.shape[1] > size and bool(visual.any()):
        raise UnsupportedFeatureError(
            f"prefill_chunk_size={size} with cut_earlier_caches: the caches would be cut after the first chunk, and the"
            " rest of the prompt would not see the dropped tokens",
            "leave prefill_chunk_size out, or set cut_earlier_caches to false",
        )


def _refuse_batching(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise UnsupportedFeatureError(
        f"continuous batching ({getattr(original, '__name__', 'generate_batch')}) is not supported inside an apply"
        " block",
        "use model.generate with a padded batch",
    )


def check_not_traced() -> None:
    """Refuse to be recorded: a trace would hold the choice made for one input.

    Raises:
        UnsupportedFeatureError: ``torch.export`` or ``torch.jit.trace`` runs the model.
    """
    is_exporting = getattr(torch.compiler, "is_exporting", None)  # torch 2.7
    if (is_exporting is not None and is_exporting()) or torch._C._is_tracing():
        raise UnsupportedFeatureError(
            "a model cannot be exported or traced inside an apply block: the trace would fix which tokens are kept",
            "export the model outside the block",
        )


def pruned_elsewhere() -> UnsupportedFeatureError:
    """The error for a cache that another ``apply`` block pruned."""
    return UnsupportedFeatureError(
        "the KV cache was pruned by another apply block", "keep a conversation inside one block"
    )


def images_of_another_method(began: Cuts, here: Cuts) -> UnsupportedFeatureError:
    """The error for new images on a cache that was pruned elsewhere in the model.

    Args:
        began: How the method that pruned the cache cuts it.
        here: How the method in use would.
    """
    return UnsupportedFeatureError(
        f"images in a later turn: the KV cache was pruned {began}, and the method in use prunes {here}",
        "use a method that prunes there, with any pruner and budget, or prefill the conversation anew",
    )


def check_repeats(arguments: Mapping[str, Any], adapter: Adapter) -> None:
    """Refuse beams and several returned sequences where a later turn brings images.

    transformers repeats pixels by the images of all ids that it is given: with a cache, and ids of the whole
    conversation, samples get each other's pixels, pruned or not.

    Args:
        arguments: The arguments of ``_expand_inputs_for_generation``, by name.
        adapter: The model's adapter.

    Raises:
        UnsupportedFeatureError: They would be repeated.
    """
    more = arguments.get("model_kwargs", arguments)
    cache, ids = given_cache(more), arguments.get("input_ids")
    past = 0 if cache is None else int(cache.get_seq_length())
    if int(arguments.get("expand_size", 1)) == 1 or not past or ids is None:
        return
    mask = more.get("attention_mask")
    new = ids[:, past:] if isinstance(mask, torch.Tensor) and mask.shape[-1] == ids.shape[1] else ids
    visual = adapter.visual_mask({"input_ids": new})
    if visual is not None and bool(visual.any()):
        raise UnsupportedFeatureError(
            "beams or several returned sequences, with images in a later turn: transformers gives the samples each"
            " other's pixels there",
            "use greedy decoding or sampling of one sequence, or prefill the conversation anew",
        )


def check_mask_width(mask: Any, width: int) -> None:
    """Refuse a cache that holds fewer tokens than the attention mask covers.

    A cache rebuilt by hand from the tensors of a pruned one does not know what was dropped.

    Args:
        mask: The call's attention mask, or None.
        width: Tokens of the cache and of the call together.

    Raises:
        UnsupportedFeatureError: A two-dimensional mask covers more tokens.
    """
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.shape[1] > width:
        raise UnsupportedFeatureError(
            f"the attention mask covers {mask.shape[1]} tokens, and the KV cache and the input hold {width}: the cache"
            " was rebuilt from a pruned one",
            "pass on the cache that the model returned",
        )


def check_features(adapter: Adapter, arguments: Mapping[str, Any]) -> None:
    """Refuse prompts in which visual features are in place already: nothing tells them from text.

    Args:
        adapter: The model's adapter.
        arguments: The arguments of the model's forward, by name.

    Raises:
        UnsupportedFeatureError: A row of embeddings that is no padding is the embedding of no text; or a token is a
            piece of a picture.
    """
    ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    given = embeds if ids is None else ids
    if isinstance(given, torch.Tensor) and given.shape[1] == 1:
        return  # a decode step
    found = features_in_place(adapter.model, arguments, adapter.picture_ids)
    if found is None or not bool(found.any()):
        return
    sample, position = found.nonzero()[0].tolist()
    name, what = ("inputs_embeds", "rows") if ids is None else ("input_ids", "tokens")
    raise UnsupportedFeatureError(
        f"{int(found.sum())} {what} of {name} (the first at position {position} of sample {sample}) are no text: visual"
        " features seem to be in place already, and nothing tells which image they belong to",
        "pass the placeholder tokens, as ids or as embeddings, and the pixels",
    )


def check_cache_arrived(arguments: Mapping[str, Any], after_unseen: bool) -> None:
    """Refuse a call that goes on with a sequence whose KV cache the engine does not see.

    It would be taken for a new prompt, and a pruned cache would meet masks that nobody cuts.

    Args:
        arguments: The arguments of the model's forward, by name; no KV cache is among them.
        after_unseen: Whether the call before pruned, and returned no KV cache although one was asked for.

    Raises:
        UnsupportedFeatureError: The attention mask covers more tokens than the call brings; or a single token comes
            after such a call.
    """
    mask, ids, embeds = (arguments.get(name) for name in ("attention_mask", "input_ids", "inputs_embeds"))
    brought = embeds if ids is None else ids
    if not isinstance(brought, torch.Tensor):
        return
    new, fix = brought.shape[1], f"pass the cache as {' or '.join(CACHE_NAMES)}"
    if isinstance(mask, torch.Tensor) and mask.dim() in (2, 4) and mask.shape[-1] > new:
        raise UnsupportedFeatureError(
            f"the attention mask covers {mask.shape[-1]} tokens and the call brings {new}, but no KV cache that is a"
            " transformers Cache is among its arguments",
            f"{fix}, or a mask of the tokens that the call brings",
        )
    if after_unseen and new == 1 and arguments.get("use_cache") is not False:
        raise UnsupportedFeatureError(
            "one token follows a pruned prefill that returned no KV cache that is a transformers Cache, and none is"
            " among the arguments: its layers do not know which rows they hold",
            f"{fix}, or generate with use_cache=False",
        )


def check_generates_with_cache(cached: bool) -> None:
    """Refuse to generate without a KV cache with a method that cuts caches: nothing tells later tokens from the prompt.

    Args:
        cached: Whether the call fills a cache, or nothing is generated behind it.

    Raises:
        UnsupportedFeatureError: It does not.
    """
    if not cached:
        raise UnsupportedFeatureError(
            "cut_earlier_caches in a generation without a KV cache: there is nothing to cut, and each step would see in"
            " the earlier layers what a cache has dropped",
            "generate with use_cache=True, or set cut_earlier_caches to false",
        )


def check_checkpointing(layers: Sequence[nn.Module]) -> None:
    """Refuse gradient checkpointing that runs a layer's hooks again in the backward pass.

    The hooks would meet no running call there, and the layer would be computed on all rows. Older versions of
    transformers checkpoint ``__call__``, newer ones ``forward``, which leaves hooks alone.

    Args:
        layers: The decoder layers whose rows may be dropped.

    Raises:
        UnsupportedFeatureError: One of them is checkpointed so, and gradients are computed.
    """
    for layer in layers:
        checkpointed = layer.training and getattr(layer, "gradient_checkpointing", False)
        if checkpointed and torch.is_grad_enabled() and type(layer).__call__ is not nn.Module.__call__:
            raise UnsupportedFeatureError(
                f"gradient checkpointing in transformers {transformers.__version__}: the backward pass would run"
                f" {type(layer).__name__} again on the rows that were dropped, too",
                "use a newer transformers (5.23 does not), call model.gradient_checkpointing_disable(), or compute no"
                " gradients (torch.no_grad, model.eval)",
            )
