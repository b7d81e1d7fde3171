"""Fingerprints of processors, on which the inputs of a model depend."""

import json
from collections.abc import Mapping
from typing import Any

from tokenprune.fingerprint import fingerprint

#: Parts of a tokenizer's state that every call sets anew.
PASSING = ("padding", "truncation")


def processor_fingerprint(processor: Any) -> str | None:
    """The fingerprint of a processor: its settings, its chat template, and its tokenizer.

    Args:
        processor: A processor of transformers. One that is none is known by its class alone: its code is the model's.

    Returns:
        See :func:`tokenprune.fingerprint.fingerprint`.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    shown = processor.to_dict() if hasattr(processor, "to_dict") else {}
    settings = json.dumps(_settings(shown), sort_keys=True, default=str)
    templates = [repr(getattr(part, "chat_template", None)) for part in (processor, tokenizer)]
    return fingerprint(type(processor).__qualname__, settings, templates, _vocabulary(tokenizer))


def _settings(value: Any) -> Any:
    """Settings without the paths that they came from."""
    if isinstance(value, Mapping):
        return {str(key): _settings(item) for key, item in value.items() if "path" not in str(key)}
    return [_settings(item) for item in value] if isinstance(value, list | tuple) else value


def _vocabulary(tokenizer: Any) -> str:
    """The rules by which a tokenizer cuts texts: of a fast one everything, of another one its tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        return json.dumps({name: value for name, value in state.items() if name not in PASSING}, sort_keys=True)
    return json.dumps(tokenizer.get_vocab(), sort_keys=True) if hasattr(tokenizer, "get_vocab") else ""
