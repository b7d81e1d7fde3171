"""``generation_kwargs`` of a task as settings of ``generate``: what cannot be honoured is refused, not dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import GenerationConfig

from tokenprune.authoring import ConfigError
from tokenprune_lmms_eval.settings import Settings

#: Settings that only matter where answers are drawn.
DRAWING = ("temperature", "top_p", "top_k", "typical_p", "min_p", "epsilon_cutoff", "eta_cutoff")
#: Settings of which only one value can be honoured: one answer per request.
ONE = ("num_return_sequences", "n", "best_of")
#: Settings that decide how lmms-eval or this plugin calls ``generate``.
OURS = ("max_length", "return_dict_in_generate", "stop_strings", "assistant_model", "tokenizer", "streamer")


@dataclass(frozen=True)
class Generation:
    """How answers are written.

    Attributes:
        tokens: Tokens of an answer at most.
        stops: Texts that end an answer.
        settings: Settings of ``generate``.
        ignored: Settings of the task that were passed over, as the user asked.
    """

    tokens: int
    stops: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def shown(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        more = {"ignored": list(self.ignored)} if self.ignored else {}
        return {"max_new_tokens": self.tokens, "until": list(self.stops), **self.settings, **more}


def generation_of(given: Mapping[str, Any], settings: Settings, task: str) -> Generation:
    """Read a task's ``generation_kwargs``, over which lmms-eval has put ``--gen_kwargs``.

    ``do_sample`` decides whether answers are drawn; where it is not stated, a temperature above 0 does.

    Args:
        given: The settings.
        settings: ``max_new_tokens`` and ``ignore`` count.
        task: The task, for errors.

    Raises:
        ConfigError: One of them is unknown, or cannot be honoured.
    """
    ignored = tuple(name for name in given if name in settings.ignore)
    left = {name: value for name, value in given.items() if name not in ignored}
    tokens = left.pop("max_new_tokens", None)
    tokens = settings.max_new_tokens if tokens is None else _whole(tokens, f"{task}: max_new_tokens")
    stops = _stops(left.pop("until", None), task)
    drawn = {name: left.pop(name) for name in DRAWING if name in left}
    stated = left.pop("do_sample", None)
    temperature = _number(drawn.get("temperature"), f"{task}: temperature")
    draws = temperature > 0 if stated is None else _truth(stated, f"{task}: do_sample")
    if draws and "temperature" in drawn and drawn["temperature"] is not None and temperature <= 0:
        raise ConfigError(
            f"task {task!r}: do_sample with temperature {drawn['temperature']!r}", "use --gen_kwargs do_sample=false"
        )
    for name in ONE:
        if left.pop(name, None) not in (None, 1):
            raise ConfigError(f"task {task!r}: {name}={given[name]!r}", "one answer per request: use --repeats")
    known = GenerationConfig().to_dict()
    for name in left:
        if name in OURS or name not in known or name.startswith(("_", "output_", "transformers")):
            raise ConfigError(
                f"task {task!r}: the generation setting {name}={left[name]!r} cannot be honoured",
                f"add ignore={name} to model_args to answer without it",
            )
    chosen = {name: value for name, value in left.items() if value is not None}
    if draws:
        # a top_p of 0 is how tasks write that it is not set
        chosen |= {"do_sample": True, **{name: value for name, value in drawn.items() if value}}
    return Generation(tokens, stops, chosen, ignored)


def _stops(value: Any, task: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else list(value or ())
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"task {task!r}: until={value!r}", "give a text, or a list of texts")
    return tuple(dict.fromkeys(text for text in texts if text))


def _whole(value: Any, where: str) -> int:
    number = _number(value, where)
    if number != int(number) or number < 1:
        raise ConfigError(f"{where}={value!r}", "give a whole number from 1 on")
    return int(number)


def _number(value: Any, where: str) -> float:
    if value is None:
        return 0.0
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}={value!r} is no number", "correct it, or use --gen_kwargs") from None


def _truth(value: Any, where: str) -> bool:
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise ConfigError(f"{where}={value!r} is neither true nor false", "correct it, or use --gen_kwargs")
