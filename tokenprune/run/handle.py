"""A method applied to a model, as its caller sees it."""

from __future__ import annotations

import logging
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from tokenprune.budgets.slug import slug
from tokenprune.config import Method
from tokenprune.errors import ConfigError, TokenPruneError, UnsupportedFeatureError, UnsupportedModelError
from tokenprune.pictures.convert import as_pictures
from tokenprune.pictures.draw import draw
from tokenprune.pictures.html import html_of
from tokenprune.pictures.look import Look
from tokenprune.pictures.place import grids_of, views_of
from tokenprune.recording.record import StageResult
from tokenprune.recording.recording import Annotations, Recording
from tokenprune.recording.report import Report
from tokenprune.selectors.base import LayerChoice

if TYPE_CHECKING:  # matplotlib is optional: only pictures need it
    from matplotlib.figure import Figure


class Run:
    """A method applied to a model, until it is closed. Returned by :func:`tokenprune.apply`.

    Like an open file it is closed at the end of a ``with`` block or by :meth:`close`. One that is dropped before takes
    the method off the model and warns.

    Several threads can use the model at once. ``stages`` and ``report`` show the prefill that started last, on any
    thread, also after the run was closed.

    Args:
        recording: What the method records.
        end: Takes the method off the model, and returns what only a whole run shows to be wrong. None where somebody
            else does: the run shows the recording, and there is nothing to close.
    """

    def __init__(self, recording: Recording, end: Callable[[], TokenPruneError | None] | None = None) -> None:
        self.recording = recording
        self._end = end
        self._entered = False
        # at the end of the process, while everything is there still
        self._at_exit = None if end is None else weakref.finalize(self, end)

    # ---- its life ---

    def __enter__(self) -> Run:
        if self.closed:
            raise UnsupportedFeatureError("this run was closed: its method is off the model", "call apply again")
        if self._entered:
            raise UnsupportedFeatureError("a with block of this run has begun: its end would end both", "use one block")
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        wrong = self._take_off()
        if wrong is not None and error is None:
            raise wrong

    def close(self) -> None:
        """Take the method off the model. Closing twice does nothing.

        Raises:
            UnsupportedFeatureError: The model ran and never read a prompt, so that nothing was pruned.
        """
        self.__exit__(None, None, None)

    @property
    def closed(self) -> bool:
        """Whether the method is off the model."""
        return self._end is None

    def _take_off(self) -> TokenPruneError | None:
        end, self._end = self._end, None
        if end is None:
            return None
        if self._at_exit is not None:
            self._at_exit.detach()
        wrong = end()
        self.recording.settle()
        return wrong

    def __copy__(self) -> Run:
        """A copy shows the recording; only the run itself, and not the end of a copy, takes the method off."""
        return Run(self.recording)

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        """As a copy: so a model that holds its run can be copied."""
        return Run(self.recording)

    def __reduce__(self) -> NoReturn:
        raise UnsupportedFeatureError(
            "a run cannot be pickled: it belongs to the model of this process",
            "save run.report, or take the run off the object that is saved",
        )

    def __del__(self) -> None:
        if self._end is None or sys.is_finalizing():  # at the end of the process nothing runs any more
            return
        self._take_off()
        what = (
            f"a run of {self._name!r} was dropped without close(), so its method was taken off the model: keep what"
            " apply returns, or use it in a with block"
        )
        logging.getLogger("tokenprune").warning(what)  # Python hides ResourceWarnings unless it is asked for them
        warnings.warn(what, ResourceWarning, stacklevel=2, source=self)

    # ---- what it shows ---

    @property
    def method(self) -> Method:
        """The method."""
        return self.recording.method

    @property
    def choice(self) -> LayerChoice:
        """The layers before which the method prunes, and why these were chosen."""
        return self.recording.choice

    @property
    def stages(self) -> list[StageResult]:
        """The stages of the last prefill; see :class:`StageResult`."""
        return self.recording.prefill.stages

    @property
    def report(self) -> Report:
        """Summary of the last prefill."""
        return self.recording.report

    @property
    def _name(self) -> str:
        return self.method.label or type(self.method.pruner).__name__.lower()

    def look(
        self,
        pictures: Sequence[Any] = (),
        processor: Any = None,
        *,
        sample: int = 0,
        question: str = "",
        answer: str | None = None,
        expected: str | None = None,
    ) -> Look:
        """What can be drawn of one sample of the last prefill; see :func:`tokenprune.draw`.

        Args:
            pictures: The sample's pictures in the order of the prompt, as Pillow images or uint8 arrays
                ``[height, width, 3]``; a video is its frames. Without pictures, grids are drawn on grey.
            processor: The model's processor. It may cut off a part of a picture before the model sees it, and only
                with it the patches can be put at their place on the whole picture.
            sample: Number of the sample in the batch.
            question: The question, for the title.
            answer: The answer under the method.
            expected: The expected answer.

        Raises:
            UnsupportedFeatureError: The model has read no prompt with visual tokens yet.
            UnsupportedModelError: The family's adapter knows no token grid.
            ConfigError: The number of pictures is not that of the prompt, or there is no such sample.
        """
        stages = self.recording.prefill.stages
        if not stages or not any(stages[0].before):
            raise UnsupportedFeatureError(
                "there is nothing to draw: no prompt with visual tokens was read, or the last one is still being read",
                "run the model inside the block first",
            )
        if not 0 <= sample < len(stages[0].before):
            raise ConfigError(
                f"there is no sample {sample}: the last batch has {len(stages[0].before)}", "samples count from 0"
            )
        items = self.recording.prefill.places()
        if items is None:
            raise UnsupportedModelError(
                f"the adapter of {self.recording.family!r} knows no token grid: it cannot be drawn",
                "write an adapter that overrides grid()",
            )
        shown = as_pictures(pictures)
        sizes = [(picture.shape[1], picture.shape[0]) for picture in shown]
        if processor is None and any(width != height for width, height in sizes):
            raise ConfigError(
                "pictures that are no squares were given without a processor, which may crop them",
                "give the model's processor, too: run.figure(pictures, processor)",
            )
        views, cells = views_of(items[sample], sizes, processor) if shown else grids_of(items[sample])
        places = torch.cat([item.positions for item in items[sample]]).sort().values.numpy()
        return Look(
            method=self._name,
            views=views,
            cells=cells,
            stages=tuple(stage.look(sample, places) for stage in stages),
            pictures=tuple(shown),
            budget=slug(self.method.budget),
            question=question,
            answer=answer,
            expected=expected,
        )

    def figure(self, pictures: Sequence[Any] = (), processor: Any = None, **more: Any) -> Figure:
        """A picture of one sample of the last prefill: dropped patches dimmed, a panel per stage, and the scores.

        Args:
            pictures: See :meth:`look`, which also describes the further arguments and errors.
            processor: See :meth:`look`.
            **more: See :meth:`look`.

        Returns:
            A figure of matplotlib: ``figure.savefig("kept.png")``.

        Raises:
            MissingDataError: matplotlib is not installed.
        """
        return draw([self.look(pictures, processor, **more)])

    def _repr_html_(self) -> str:
        """What a notebook shows of the run: the report, and the kept tokens of the last prefill's first sample."""
        try:
            looks = [self.look()]
        except TokenPruneError:  # no prompt yet, or no grid: the report says so
            looks = []
        return html_of(looks, str(self.report))

    def annotate(self, sample_ids: Sequence[int] | None = None, **values: Sequence[Tensor | Sequence[float]]) -> None:
        """Provide data for the following prefills that is not in the model's inputs.

        A thread that calls this uses its own annotations. Other threads use the latest annotations of any thread.

        Args:
            sample_ids: One stable integer per sample. Random scores depend on it and not on the batch. By default
                samples are counted in the order in which the run processes them.
            values: One vector per sample with a value for each of its visual tokens, e.g. ``foreground=[...]``.
        """
        ids = None if sample_ids is None else tuple(int(i) for i in sample_ids)
        vectors = {
            name: [torch.as_tensor(item, dtype=torch.float32) for item in items] for name, items in values.items()
        }
        self.recording.annotate(Annotations(ids, vectors))
