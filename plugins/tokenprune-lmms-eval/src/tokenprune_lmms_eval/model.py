"""The model ``tokenprune`` of lmms-eval: chat tasks, and with ``--force_simple`` simple ones and multiple choice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.loggers.evaluation_tracker import GeneralConfigTracker, sanitize_model_name
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.utils import get_datetime_str
from loguru import logger
from tqdm import tqdm

from tokenprune import TokenPruneError
from tokenprune.authoring import Answerer, ConfigError, Sample, SampleError, UnsupportedFeatureError
from tokenprune_lmms_eval import private, report
from tokenprune_lmms_eval.generation import Generation, generation_of
from tokenprune_lmms_eval.prompts import Turn, sample_of, turn_of, turns_of
from tokenprune_lmms_eval.settings import UNPRUNED, Arguments

#: What lmms-eval calls copies of a request that only keep processes in step.
PADDING = "__padding_only__"


@dataclass(frozen=True)
class Asked:
    """A request of lmms-eval.

    Attributes:
        place: Its place among the requests.
        task: The task.
        document: The number of the document in its split.
        read: Makes the sample; raises :class:`~tokenprune.authoring.SampleError`.
        counts: Whether it is counted in the report: copies are not.
        continuation: The text whose probability is asked for; None where an answer is.
        negated: Whether lmms-eval expects a loss, and not a log-probability.
    """

    place: int
    task: str
    document: int
    read: Callable[[], Sample]
    counts: bool
    continuation: Callable[[], str] | None = None
    negated: bool = False

    @property
    def name(self) -> str:
        """The document in words."""
        return f"{self.task}, document {self.document}"


class TokenPrune(lmms):  # type: ignore[misc]
    """Any model that tokenprune loads, pruned by one method; see :class:`~tokenprune_lmms_eval.settings.Settings`.

    Args:
        **given: The arguments, as ``--model_args`` names them.

    Raises:
        TokenPruneError: An argument is wrong, the model cannot be loaded, or the method cannot run on it.
    """

    is_simple = False

    def __init__(self, **given: Any) -> None:
        super().__init__()
        private.check()
        self.arguments = Arguments.of(given)
        self.settings = self.arguments.settings
        method, smaller = self.arguments.method()
        samples = self.arguments.calibration()
        loaded = self.arguments.spec.load()
        self._answerer: Answerer | None = Answerer(loaded, method, samples, smaller)
        self._device: torch.device = loaded.model.device
        self._records: report.Records = {}
        self._command: Any = None
        self._seconds = 0.0
        self._keys = private.CacheKeys(self._fingerprint, self.settings.errors == "name")
        self._facts = self._what_runs(len(samples))
        logger.info(
            f"tokenprune: {self._facts['method_name']}, layers {self._facts['layers']} ({self._facts['reason']})"
        )

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """Make the model from ``--model_args`` and what other options of the command say.

        Raises:
            TokenPruneError: See the class; or an option says otherwise than ``--model_args``.
        """
        private.fail_with_exit_code()
        given = private.parsed(arg_string)
        more = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if more.pop("max_batch_size", None) is not None:
            raise ConfigError("--max_batch_size is for automatic batch sizes", "give --batch_size alone")
        if "batch_size" in given and str(more.get("batch_size")) == "1":  # the command's own default
            more.pop("batch_size")
        for name, value in more.items():
            if name in given and str(given[name]) != str(value):
                raise ConfigError(f"--{name} {value} and {name}={given[name]} in --model_args", "give one of them")
        return cls(**{**given, **more})

    # ---- what lmms-eval asks ---

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    @property
    def batch_size(self) -> int:
        """Samples that are answered together."""
        return self.settings.batch_size

    @property
    def chat_template(self) -> NoReturn:
        """lmms-eval asks for it with ``--apply_chat_template``, which would put one template into another."""
        raise ConfigError("--apply_chat_template: the checkpoint's own chat template is always used", "leave it out")

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """The answers to requests, in their order."""
        groups: dict[tuple[str, str], list[tuple[Asked, Generation, int]]] = {}
        seen: dict[tuple[str, int], int] = {}
        for place, instance in enumerate(requests):
            asked, given = self._asked(place, instance)
            generation = generation_of(given, self.settings, asked.task)
            draw = seen.get((asked.task, asked.document), -1) + 1
            seen[(asked.task, asked.document)] = draw
            groups.setdefault((asked.task, repr(generation)), []).append((asked, generation, draw))
        found: list[GenerationResult | None] = [None] * len(requests)
        with self._progress(len(requests)) as bar:
            for group in groups.values():
                generation = group[0][1]
                draws = {asked.place: draw for asked, _, draw in group}
                record = self._records.setdefault(group[0][0].task, report.TaskRecord())
                if generation.shown not in record.generation:
                    record.generation.append(generation.shown)
                for batch in self._batches([asked for asked, _, _ in group]):
                    self._generate(batch, generation, draws, found)
                    bar.update(len(batch))
        return [_known(item) for item in found]

    def loglikelihood(self, requests: list[Any]) -> list[GenerationResult]:
        """Value and greediness of the continuation of each request, in their order.

        For multiple choice lmms-eval takes the *smallest* value, so there it is the negative log-probability.
        """
        found: list[GenerationResult | None] = [None] * len(requests)
        asked = [self._asked_continuation(place, instance) for place, instance in enumerate(requests)]
        groups: dict[str, list[Asked]] = {}
        for item in asked:
            groups.setdefault(item.task, []).append(item)
        with self._progress(len(requests)) as bar:
            for task, group in groups.items():
                self._records.setdefault(task, report.TaskRecord())
                for batch in self._batches(group):
                    self._weigh(batch, found)
                    bar.update(len(batch))
        return [_known(item) for item in found]

    def generate_until_multi_round(self, requests: list[Any]) -> NoReturn:
        """Refused."""
        raise UnsupportedFeatureError("tasks of several rounds (generate_until_multi_round)", "use another task")

    def generate_visual_cot(self, requests: list[Any]) -> NoReturn:
        """Refused: the model makes no pictures."""
        raise UnsupportedFeatureError("tasks that make pictures (generate_visual_cot)", "use another task")

    def clean(self) -> None:
        """Write the report, and let go of the model. lmms-eval calls it on every process after the last request."""
        answerer, self._answerer = self._answerer, None
        self._keys.undo()
        if answerer is None:
            return
        answerer.close()
        self._finish()
        super().clean()

    # ---- requests ---

    def _asked(self, place: int, instance: Any) -> tuple[Asked, dict[str, Any]]:
        """A request for an answer, and its generation settings."""
        _, messages, given, document, task, split = instance.args
        self._look_at(messages)
        owner = getattr(messages, "__self__", None)
        config = getattr(owner, "config", None)
        if getattr(config, "num_fewshot", None) and getattr(config, "doc_to_visual", None) is not None:
            raise ConfigError(f"task {task!r}: lmms-eval shows chat models no examples", "use --force_simple")
        if getattr(self._command, "system_instruction", None):
            raise ConfigError(
                "--system_instruction: lmms-eval does not show it to chat models", "use system=... in model_args"
            )

        def turns(doc: Any, name: str) -> list[Turn]:
            return turns_of(messages(doc), name)

        return self._made(place, instance, task, split, document, turns), dict(given or {})

    def _asked_continuation(self, place: int, instance: Any) -> Asked:
        """A request for the probability of a text; only simple tasks have some."""
        if len(instance.args) != 6:
            raise UnsupportedFeatureError("requests without a document (acc_mutual_info)", "use another metric")
        context, target, visual, document, task, split = instance.args
        self._look_at(visual)

        def turns(doc: Any, name: str) -> list[Turn]:
            return turn_of(context, visual(doc), name)

        def continuation() -> str:
            return str(target(self._document(task, split, document)) if callable(target) else target)

        made = self._made(place, instance, task, split, document, turns)
        return Asked(
            made.place, made.task, made.document, made.read, made.counts, continuation, negated=not callable(target)
        )

    def _made(
        self,
        place: int,
        instance: Any,
        task: str,
        split: str,
        document: int,
        turns: Callable[[Any, str], list[Turn]],
    ) -> Asked:
        name = f"{task}, document {document}"

        def read() -> Sample:
            return sample_of(_guarded(turns, self._document(task, split, document), name), self.settings, name)

        counts = not (instance.metadata or {}).get(PADDING)
        return Asked(place, task, int(document), read, counts)

    def _document(self, task: str, split: str, document: int) -> Any:
        try:
            return self.task_dict[task][split][document]
        except Exception as error:  # data sets decode pictures when they are asked for a row
            raise SampleError(f"{task}, document {document}: it cannot be read ({_one_line(error)})") from error

    def _look_at(self, method: Any) -> None:
        """Remember the options of the command, which lmms-eval gives to tasks alone."""
        command = getattr(getattr(method, "__self__", None), "args", None)
        self._command = self._command or command

    def _batches(self, asked: Sequence[Asked]) -> Iterator[Sequence[Asked]]:
        for start in range(0, len(asked), self.batch_size):
            yield asked[start : start + self.batch_size]

    def _progress(self, total: int) -> Any:
        return tqdm(total=total, disable=self.rank != 0, desc="Model Responding")

    # ---- answers ---

    @property
    def answerer(self) -> Answerer:
        """The model with its method.

        Raises:
            UnsupportedFeatureError: lmms-eval has cleaned it.
        """
        if self._answerer is None:
            raise UnsupportedFeatureError("this model has finished an evaluation", "make a new one for the next")
        return self._answerer

    def _generate(
        self,
        batch: Sequence[Asked],
        generation: Generation,
        draws: dict[int, int],
        found: list[GenerationResult | None],
    ) -> None:
        readable, samples = self._read(batch, found)
        if not readable:
            return
        start = time.perf_counter()
        answers = self.answerer.answer(
            samples,
            generation.tokens,
            numbers=[asked.document for asked in readable],
            generation=generation.settings,
            stops=generation.stops,
            draws=[draws[asked.place] for asked in readable],
        )
        self._seconds += time.perf_counter() - start
        for asked, answer in zip(readable, answers, strict=True):
            if isinstance(answer, TokenPruneError):
                self._fail(asked, answer, found)
                continue
            if asked.counts:
                self._records[asked.task].add(answer.cost, answer.tokens, answer.cut)
            counts = report.PrunedCounts(answer.prompt, answer.tokens, answer.cost)
            found[asked.place] = GenerationResult(answer.text, counts)

    def _weigh(self, batch: Sequence[Asked], found: list[GenerationResult | None]) -> None:
        readable, samples = self._read(batch, found)
        if not readable:
            return
        texts = [asked.continuation() for asked in readable if asked.continuation is not None]
        start = time.perf_counter()
        values = self.answerer.log_likelihoods(samples, texts, numbers=[asked.document for asked in readable])
        self._seconds += time.perf_counter() - start
        for asked, value in zip(readable, values, strict=True):
            if isinstance(value, TokenPruneError):
                self._fail(asked, value, found)
                continue
            if asked.counts:
                self._records[asked.task].add(value.cost, 0)
            number = value.log_probability / (value.tokens if self.settings.likelihood == "mean" else 1)
            pair: Any = (-number if asked.negated else number, value.greedy)
            found[asked.place] = GenerationResult(pair, report.PrunedCounts(value.prompt, 0, value.cost))

    def _read(self, batch: Sequence[Asked], found: list[GenerationResult | None]) -> tuple[list[Asked], list[Sample]]:
        """The requests whose samples can be read, and the samples."""
        readable, samples = [], []
        for asked in batch:
            try:
                samples.append(asked.read())
            except TokenPruneError as error:
                self._fail(asked, error, found)
            else:
                readable.append(asked)
        return readable, samples

    def _fail(self, asked: Asked, error: TokenPruneError, found: list[GenerationResult | None]) -> None:
        """End the run, or name the document; its answer is then an empty one.

        A choice without a value would decide which other one wins, so there the run always ends.
        """
        if self.settings.errors == "stop" or asked.continuation is not None:
            raise error
        logger.warning(f"tokenprune: no answer to {asked.name}: {error}")
        if asked.counts:
            self._records[asked.task].failed.append({"document": asked.document, "error": str(error)})
        found[asked.place] = GenerationResult("")

    # ---- the report ---

    def _what_runs(self, measured: int) -> dict[str, Any]:
        """The part of the report that is known before the first answer."""
        answerer = self.answerer
        choice, method, smaller = answerer.choice, answerer.method, answerer.smaller
        return {
            "versions": {name: version(name) for name in ("tokenprune-mllm", "tokenprune-lmms-eval", "lmms-eval")},
            "model": answerer.loaded.name,
            "model_args": self.arguments.given,
            "method_name": answerer.name,
            "method": None if method is None else method.model_dump(mode="json", exclude_none=True),
            "smaller_pictures": None if smaller is None else smaller.model_dump(mode="json"),
            "layers": [] if choice is None else list(choice.layers),
            "reason": f"{UNPRUNED}: all tokens stay" if choice is None else choice.reason,
            "promise": None if choice is None or choice.promise is None else choice.promise.model_dump(mode="json"),
            "calibration_samples": measured,
        }

    def _fingerprint(self) -> str | None:
        """A text that changes with what answers depend on; None where that is unknown."""
        found = self.answerer.fingerprint()
        if found is None:
            return None
        free = {"batch_size", "report", "errors"}
        said = self.settings.model_dump(mode="json", exclude=free), self.arguments.spec.model_dump(mode="json")
        texts = [found, json.dumps(said, sort_keys=True), json.dumps(self._facts["versions"], sort_keys=True)]
        return hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()

    def _finish(self) -> None:
        """Put together what all processes did; the first one writes it."""
        parts = [self._records]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [{} for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(parts, self._records)
        if self.rank != 0:
            return
        records = report.merged(parts)
        means = report.averages(records)
        tokens = sum(record.tokens for record in records.values())
        if means:
            log_metrics(self._seconds, tokens, tokens / self._seconds if self._seconds else 0.0, means)
        path = self._report_path()
        failed = sum(len(record.failed) for record in records.values())
        if failed:
            logger.warning(f"tokenprune: {failed} documents have no answer; the report names them")
        if path is None:
            logger.info("tokenprune: no report is written without --output_path or report=FILE")
            return
        shown = {**self._facts, "processes": len(parts), "tasks": {name: item.shown for name, item in records.items()}}
        report.write(shown, path)
        logger.info(f"tokenprune: report in {path}")

    def _report_path(self) -> Path | None:
        """Where the report goes: beside lmms-eval's results, which are in a folder named after the model."""
        if self.settings.report is not None:
            return Path(self.settings.report).expanduser()
        folder: str | None = getattr(self._command, "output_path", None)
        if not folder:
            return None
        name: str = sanitize_model_name(GeneralConfigTracker._get_model_name(self._command.model_args))
        now: str = get_datetime_str(timezone=self._command.timezone).replace(":", "-")
        return Path(folder) / name / f"{now}_tokenprune_report.json"


class TokenPruneSimple(TokenPrune):
    """The same for simple tasks (``--force_simple``): prompts are a context and pictures. It takes multiple choice."""

    is_simple = True

    def _asked(self, place: int, instance: Any) -> tuple[Asked, dict[str, Any]]:
        context, given, visual, document, task, split = instance.args
        self._look_at(visual)

        def turns(doc: Any, name: str) -> list[Turn]:
            return turn_of(context, visual(doc), name)

        return self._made(place, instance, task, split, document, turns), dict(given or {})


def _guarded(turns: Callable[[Any, str], list[Turn]], doc: Any, name: str) -> list[Turn]:
    """The turns of a document; whatever a task raises becomes an error of a line."""
    try:
        return turns(doc, name)
    except TokenPruneError:
        raise
    except Exception as error:
        raise SampleError(f"{name}: the task cannot make its prompt ({_one_line(error)})") from error


def _known(item: GenerationResult | None) -> GenerationResult:
    assert item is not None, "a request was passed over"
    return item


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
