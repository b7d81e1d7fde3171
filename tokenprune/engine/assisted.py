"""Assisted decoding and prompt lookup: the candidates come after the prompt.

transformers gives the first candidates to the model together with the prompt. What a method keeps would then depend on
them, e.g. where it reads the attention of the last token. Inside an ``apply`` block the first candidates are not used:
the prompt is pruned as in greedy decoding. Everything behind it is verified as usual, and tokens that are not accepted
are cropped from the pruned cache.
"""

from collections.abc import Callable
from typing import Any

from tokenprune.core.call_arguments import bound_arguments, given_cache
from tokenprune.engine.plan import Plan
from tokenprune.errors import UnsupportedFeatureError


class AfterPrompt:
    """A generator of candidates that has none for the prompt. For all else it is the one that it was given.

    Args:
        candidates: The generator of transformers.
    """

    def __init__(self, candidates: Any) -> None:
        self._candidates, self._forwards = candidates, 0

    def get_candidates(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """The prompt alone at first; then what the generator proposes."""
        self._forwards += 1
        proposed = self._candidates.get_candidates(input_ids, *args, **kwargs)  # an assistant reads the prompt with it
        return (input_ids, None) if self._forwards == 1 else proposed

    def update_candidate_strategy(self, *args: Any, **kwargs: Any) -> None:
        """Tell the generator what became of its candidates, once it had some."""
        if self._forwards > 1:
            self._candidates.update_candidate_strategy(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._candidates, name)


def candidates_after_prompt(
    plan: Callable[[], Plan | None], original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Make the generator of candidates of one generation, in place of the model's ``_get_candidate_generator``.

    Args:
        plan: Tells the plan of the method that the generation uses; None where it is not pruned.
        original: The model's method.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        UnsupportedFeatureError: The candidates come from layers of the model itself; or the cache holds earlier turns.
    """
    made = original(*args, **kwargs)
    if plan() is None:
        return made
    cache = given_cache(bound_arguments(original, args, kwargs).get("model_kwargs") or {})
    if cache is not None and cache.get_seq_length():
        raise UnsupportedFeatureError(
            "assisted decoding or prompt lookup in a later turn: transformers passes all tokens again, behind those of"
            " the KV cache",
            "generate this turn without an assistant, or prefill the conversation anew",
        )
    if getattr(made, "requires_model_outputs", False) or getattr(made, "assistant_early_exit", None) is not None:
        raise UnsupportedFeatureError(
            f"assisted decoding with {type(made).__name__}: the candidates come from layers of the model itself, on the"
            " cache that was pruned",
            "use an assistant model, or prompt_lookup_num_tokens",
        )
    return AfterPrompt(made)
