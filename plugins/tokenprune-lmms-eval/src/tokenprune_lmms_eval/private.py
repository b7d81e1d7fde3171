"""Every private name of lmms-eval that this plugin uses, and what is done with it.

lmms-eval has interfaces for models, but none for what an error does to the exit code, and none for what a cached answer
depends on. What is used instead is listed here and checked before anything is loaded.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from tokenprune.authoring import ConfigError, TokenPruneError, UnsupportedFeatureError

#: Minor versions of lmms-eval that the tests ran.
TESTED = ("0.7",)
#: Module, names in it.
NAMES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lmms_eval.evaluator", ("ResponseCache", "evaluate", "simple_evaluate")),
    ("lmms_eval.loggers.evaluation_tracker", ("GeneralConfigTracker", "sanitize_model_name")),
    ("lmms_eval.utils", ("get_datetime_str", "simple_parse_args_string")),
)
#: How the log line begins with which lmms-eval's command swallows an exception, before it ends with exit code 0.
SWALLOWED = "Error during evaluation"


def check() -> None:
    """Check that this lmms-eval is one that the tests ran, and has every name.

    Raises:
        TokenPruneError: It is not, or lacks names; or it cannot run beside the installed filelock.
    """
    found = version("lmms-eval")
    if not found.startswith(tuple(f"{minor}." for minor in TESTED)):
        raise UnsupportedFeatureError(
            f"tokenprune-lmms-eval was tested with lmms-eval {', '.join(TESTED)}, and {found} is installed",
            f"pip install --no-deps 'lmms-eval=={TESTED[-1]}.*'",
        )
    locks = version("filelock")
    if int(locks.partition(".")[0]) >= 4:
        raise UnsupportedFeatureError(
            f"lmms-eval {found} uses private names of filelock 3, and {locks} is installed", "pip install 'filelock<4'"
        )
    missing = [f"{module}.{name}" for module, names in NAMES for name in names if not hasattr(_module(module), name)]
    if SWALLOWED not in inspect.getsource(_module("lmms_eval.__main__")):
        missing.append(f"the log line {SWALLOWED!r}")
    if missing:
        raise TokenPruneError(f"lmms-eval {found} lacks what tokenprune-lmms-eval uses: {', '.join(missing)}")


def _module(name: str) -> Any:
    return importlib.import_module(name)


def fail_with_exit_code() -> None:
    """Let lmms-eval's command end with exit code 1 where it swallows an exception.

    It logs the exception and goes on to exit code 0. From now on this line of the log ends the process, with the same
    line on stderr. In Python nothing writes that line: there exceptions are exceptions.
    """
    from loguru import logger

    def stop(message: Any) -> None:
        text = message.record["message"].removeprefix(f"{SWALLOWED}: ").partition(". Please set `--verbosity=DEBUG`")[0]
        print(f"error: {text}", file=sys.stderr, flush=True)
        raise SystemExit(1)

    logger.add(stop, level="ERROR", format="{message}", filter=lambda record: record["message"].startswith(SWALLOWED))


def parsed(text: str) -> dict[str, Any]:
    """The arguments in a text like ``pretrained=folder,keep_ratio=0.5``.

    Raises:
        ConfigError: A part of it has no ``=``, or a name stands twice.
    """
    try:
        found: dict[str, Any] = _module("lmms_eval.utils").simple_parse_args_string(text)
    except ValueError as error:
        raise ConfigError(f"model_args {text!r} is not understood", "write name=value,name=value") from error
    return found


class CacheKeys:
    """Makes lmms-eval's cache of answers (``--use_cache``) depend on what answers depend on, until :meth:`undo`.

    lmms-eval knows a model by the text of its arguments. A method's file, a checkpoint, the calibration data or the
    code may change behind this text, and answers of another method would be used again.

    Args:
        fingerprint: A text that changes with the answers; it is asked for only if there is a cache. None: unknown.
        named: Whether samples that fail get empty answers: the cache's log would give them as answers later.
    """

    def __init__(self, fingerprint: Callable[[], str | None], named: bool) -> None:
        self._evaluator = _module("lmms_eval.evaluator")
        current = self._evaluator.ResponseCache
        self._plain = plain = getattr(current, "plain", current)  # an evaluation that failed left its own

        class Keyed(plain):  # type: ignore[misc, valid-type]
            """The cache, with a fingerprint in the place where it knows the model by."""

            @classmethod
            def create(cls, cache_root: str, **known: Any) -> Any:
                """As the original; refuses what could give wrong answers."""
                if named:
                    raise ConfigError(
                        "errors=name and --use_cache: the cache would keep empty answers", "use errors=stop"
                    )
                found = fingerprint()
                if found is None:
                    raise ConfigError(
                        "--use_cache: what answers depend on is unknown (code of a notebook, or offloaded weights)",
                        "leave --use_cache out",
                    )
                known["model_args"] = f"{known.get('model_args', '')},tokenprune:{found}"
                return super().create(cache_root, **known)

            def execute(self, lm: Any, reqtype: str, requests: list[Any]) -> list[Any]:
                """As the original. It stores pairs of a value and a truth, and lmms-eval's evaluator needs results."""
                if reqtype != "loglikelihood":
                    found: list[Any] = super().execute(lm, reqtype, requests)
                    return found
                result = _module("lmms_eval.api.instance").GenerationResult
                return [result(tuple(pair)) for pair in super().execute(_Pairs(lm), reqtype, requests)]

        Keyed.plain = plain
        self._evaluator.ResponseCache = Keyed

    def undo(self) -> None:
        """Give lmms-eval its own cache back."""
        self._evaluator.ResponseCache = self._plain


class _Pairs:
    """A model whose log-likelihoods are plain pairs.

    Args:
        model: The model; its results hold the pairs as text, which lmms-eval's evaluator leaves as it is. A plain pair
            it would turn into the text of one.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """The pairs."""
        return [item.text for item in self._model.loglikelihood(requests)]
