"""The loaded model of an experiment, with the method of one series on it at a time."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property

import torch

from tokenprune.adapters import adapter_for
from tokenprune.config import Method
from tokenprune.core.clock import timed
from tokenprune.core.forward_errors import forward_errors
from tokenprune.engine.trials.features import SharedFeatures
from tokenprune.errors import SampleError, UnsupportedFeatureError, within
from tokenprune.experiment.batches import Batch
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.series import Series
from tokenprune.fingerprint import fingerprint
from tokenprune.fingerprint.origin import Origin
from tokenprune.models.answer import check_prompt_logits
from tokenprune.models.base import LoadedModel
from tokenprune.models.downsample import Downsampler, Smaller
from tokenprune.models.processor import processor_fingerprint
from tokenprune.pictures.look import Look
from tokenprune.run import Run, apply
from tokenprune.tasks.base import Sample, foreground_tokens, sample_pictures


class SeriesModel:
    """Runs the prefills of an experiment's series.

    Args:
        config: The experiment.
        loaded: Its model.

    Attributes:
        methods: The method of every series by its key, with fixed layers: a selector that searches runs once.
    """

    def __init__(self, config: ExperimentConfig, loaded: LoadedModel) -> None:
        self.config, self.loaded = config, loaded
        self.adapter = adapter_for(loaded.model)
        self.methods: dict[str, Method] = {}
        self._features = SharedFeatures(loaded.model)

    def origin(self, code: Mapping[str, str | None]) -> Origin:
        """The weights, the processor and the code that answers are made with.

        Args:
            code: Versions of the code of components.
        """
        processor = processor_fingerprint(self.loaded.processor)
        return Origin(fingerprint(self.adapter.model), {**code, "processor": processor})

    @cached_property
    def downsampler(self) -> Downsampler:
        """Makes pictures smaller.

        Raises:
            UnsupportedModelError: The model cannot be shown smaller ones.
        """
        return Downsampler(self.loaded, self.adapter)

    def shown(self, item: Series, batch: Batch) -> Batch:
        """The batch as a series is shown it: with smaller pictures, where it has some.

        Raises:
            TokenPruneError: They cannot be made.
        """
        if item.downsampled is None:
            return batch
        made = self.downsampler.smaller(batch.samples, batch.inputs, item.downsampled.budget)
        return replace(batch, inputs=made.inputs, averaged=made.averaged)

    @contextmanager
    def running(self, item: Series, batch: Batch, shared: bool = True) -> Iterator[Run | None]:
        """Put the method of a series on the model inside the block. It yields None where nothing is pruned.

        Args:
            item: The series.
            batch: The samples that the model reads inside the block, as :meth:`shown` returns them.
            shared: Whether the image features of the last pixels are used again. A pruner that reads the tower's layers
                needs the tower to run.
        """
        if item.downsampled is not None:  # its features are no other's
            with self.downsampler.running(Smaller(batch.inputs, batch.averaged)):
                yield None
            return
        method = None if item.unpruned else self.methods[item.key]
        reads_tower = method is not None and bool(method.pruner.vision_layers)
        with self._features.enabled() if shared and not reads_tower else nullcontext():
            if method is None:
                yield None
                return
            with apply(self.loaded.model, method) as run:
                self._annotate(run, batch)
                yield run

    def _annotate(self, run: Run, batch: Batch) -> None:
        values = {}
        visual = self.loaded.visual_tokens
        if visual is not None and all(sample.foreground for sample in batch.samples):
            side = math.isqrt(visual)
            values["foreground"] = [foreground_tokens(sample, side, side) for sample in batch.samples]
        run.annotate(sample_ids=batch.positions, **values)

    @torch.no_grad()
    def prefill_seconds(self, item: Series, batch: Batch, shared: bool = False) -> float:
        """Time a prefill, in seconds; arguments as for :meth:`running`.

        Raises:
            UnsupportedFeatureError: Its logits hold NaN or infinity.
        """
        model, batch = self.loaded.model, self.shown(item, batch)
        with self.running(item, batch, shared):
            output, ms = timed(model.device, lambda: model(**batch.inputs, use_cache=True, logits_to_keep=1))
        check_prompt_logits(output.logits, batch.samples)
        return ms / 1e3

    def time(self, series: Sequence[Series], batch: Batch, progress: Callable[[int], None]) -> dict[str, list[float]]:
        """Prefill times divided by that of the unpruned model in the same round, so that drift cancels out.

        Returns:
            Series key -> one ratio per round.

        Raises:
            TokenPruneError: A series cannot run on the batch.
        """
        ratios: dict[str, list[float]] = {item.key: [] for item in series[1:]}
        for number in range(-1, self.config.timing):  # round -1 warms up
            with named(series[0], batch):
                unpruned = self.prefill_seconds(series[0], batch)
            for item in series[1:]:
                with named(item, batch):
                    ratio = self.prefill_seconds(item, batch) / unpruned
                if number >= 0:
                    ratios[item.key].append(ratio)
            progress(number + 2)
        return ratios

    def check_usable(self, batch: Batch) -> None:
        """Check that the unpruned model can answer a batch: that its logits are finite behind the prompts.

        Raises:
            SampleError: They are not.
            TokenPruneError: The model fails on the batch.
        """
        unpruned = next(self.config.series())
        try:
            with named(unpruned):
                self.prefill_seconds(unpruned, batch, shared=True)
        except UnsupportedFeatureError as error:
            raise SampleError(error.what, error.fix) from error

    @torch.no_grad()
    def look(self, item: Series, batch: Batch) -> Look:
        """Show which tokens of a single sample a method keeps, and where they lie on the sample's pictures.

        Raises:
            TokenPruneError: The method cannot run on the sample, or its tokens cannot be put on its pictures.
        """
        with named(item, batch), self.running(item, batch) as run:
            assert run is not None
            self.loaded.model(**batch.inputs, use_cache=True, logits_to_keep=1)
            return run.look(sample_pictures(batch.samples[0]), self.loaded.processor)


def why_no_foreground(sample: Sample, loaded: LoadedModel) -> str | None:
    """The reason why the tokens of the foreground are unknown; None if they are known."""
    if not sample.foreground:
        return "the task does not say which pixels show the objects"
    if loaded.visual_tokens is None:
        return f"the visual tokens of {loaded.name} are no fixed grid"
    return None


@contextmanager
def named(item: Series, batch: Batch | None = None) -> Iterator[None]:
    """Name the method, and the batch if there is one, in every error from inside the block.

    Raises:
        TokenPruneError: The same error, with the names. Any other exception becomes a :class:`ForwardError`.
    """
    where = "the unpruned model" if item.unpruned else f"method {item.method_name!r}"
    if item.budget is not None:
        where += f" with budget '{item.budget}'"
    if batch is not None:
        first, last = batch.samples[0].id, batch.samples[-1].id
        where += f" on sample {first!r}" if first == last else f" on samples {first!r} to {last!r}"
    with within(where), forward_errors():
        yield
