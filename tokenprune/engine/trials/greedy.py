"""Greedy answers: the most likely token at every step, whatever a checkpoint's own settings of ``generate`` say."""

from collections.abc import Mapping
from typing import Any

#: Settings of ``generate`` that change which token is taken, where an answer ends, or what is returned, with the values
#: that change nothing. Tokens that a checkpoint rules out (``suppress_tokens``, ``bad_words_ids``) stay ruled out.
NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "sequence_bias": None,
    "guidance_scale": None,
    "watermarking_config": None,
    "remove_invalid_values": False,
    "penalty_alpha": None,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "min_length": 0,
    "min_new_tokens": None,
    "max_time": None,
    "stop_strings": None,
    "token_healing": False,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "use_mtp": False,
    "use_cache": True,
    "cache_implementation": None,
    "cache_config": None,
    "prefill_chunk_size": None,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
}


def greedy(model: Any) -> dict[str, Any]:
    """Options of ``generate`` with which a model answers greedily.

    Args:
        model: A transformers model; options are only named where its own ``generation_config`` says otherwise.
    """
    return {"do_sample": False, **{name: NEUTRAL[name] for name in own_settings(model)}}


def own_settings(model: Any) -> dict[str, Any]:
    """The settings of a model's ``generation_config`` that greedy answers do not use: name -> value."""
    config = getattr(model, "generation_config", None)
    found = {name: getattr(config, name, None) for name in NEUTRAL}
    return {name: value for name, value in found.items() if value is not None and value != NEUTRAL[name]}
