"""A method applied to a model, as its caller sees it."""

from __future__ import annotations

import logging
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from tokenprune.config import Method
from tokenprune.errors import ConfigError, TokenPruneError, UnsupportedFeatureError
from tokenprune.pictures.draw import draw
from tokenprune.pictures.html import html_of
from tokenprune.pictures.look import Look
from tokenprune.pictures.recorded import recorded_look
from tokenprune.recording.record import Report, StageResult
from tokenprune.recording.recording import Annotations, Recording
from tokenprune.run.methods import check_is_method, with_budget
from tokenprune.selectors.base import LayerChoice

if TYPE_CHECKING:  # matplotlib is optional: only pictures need it
    from matplotlib.figure import Figure


class Run:
    """A method applied to a model, until it is closed. Returned by :func:`tokenprune.apply`.

    Like an open file it is closed at the end of a ``with`` block or by :meth:`close`. One that is dropped before takes
    the method off the model and warns.

    Several threads can use the model at once. ``stages`` and ``report`` show the prefill that started last, on any
    thread, also after the run was closed. A service opens a block with :meth:`using` for each request: it has the
    method and the budget of this request, and a report of its own.

    Args:
        recording: The records of the method.
        end: Takes the method off the model, and returns an error that only a whole run shows. None where somebody
            else does: the run shows the recording, and there is nothing to close.
        use: Opens a block whose calls use another method (None: no method), and shows what is recorded there.
    """

    def __init__(
        self,
        recording: Recording,
        end: Callable[[], TokenPruneError | None] | None = None,
        use: Callable[[Method | None], AbstractContextManager[Recording]] | None = None,
    ) -> None:
        self.recording = recording
        self._end, self._use = end, use
        self._entered = False
        # at the end of the process, while everything is there still
        self._at_exit = None if end is None else weakref.finalize(self, end)

    # ---- its life ---

    def __enter__(self) -> Run:
        if self.closed and self._at_exit is None:
            raise UnsupportedFeatureError(
                "this run shows a using block, or is a copy: there is nothing to close", "use it without a with block"
            )
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
        end, self._end, self._use = self._end, None, None
        if end is None:
            return None
        if self._at_exit is not None:
            self._at_exit.detach()
        wrong = end()
        self.recording.detach_places()
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
            f"a run of {self.recording.name!r} was dropped without close(), so its method was taken off the model: keep"
            " what apply returns, or use it in a with block"
        )
        logging.getLogger("tokenprune").warning(what)  # Python hides ResourceWarnings unless it is asked for them
        warnings.warn(what, ResourceWarning, stacklevel=2, source=self)

    # ---- calls with another method ---

    def using(self, method: Method | None, budget: str | None = None, **fields: Any) -> AbstractContextManager[Run]:
        """Let the calls of the model inside the block use another method or budget.

        ::

            with run.using(run.method, keep_tokens=64) as part:
                ids = model.generate(**inputs)
            print(part.report)

        The block belongs to its context (:mod:`contextvars`): to this thread or task of asyncio, and to calls in
        ``asyncio.to_thread``. Other threads and tasks may be in blocks of their own at the same time. Blocks may be
        nested; calls outside any use the run's own method. Inside, everything is as under an ``apply`` of its own:
        samples are numbered from 0, and annotations are those of the part.

        What a prompt leaves in its KV cache goes on with the method that pruned it, in any later block of the run and
        outside; only new prompts are pruned by the method of the block.

        Args:
            method: The method; ``run.method`` for the run's own. None leaves the calls unpruned.
            budget: Another budget for the method, as for :func:`tokenprune.load_method`.
            fields: One of the keywords of :func:`tokenprune.load_method`, e.g. ``keep_tokens=64``; with ``budget``, the
                fields of that budget.

        Returns:
            For a ``with`` block. Its value is a run that shows the calls inside the block, and no others; also after
            it. There is nothing to close.

        Raises:
            TokenPruneError: The method cannot run on the model, or the budget is wrong; as for
                :func:`tokenprune.apply`.
            ConfigError: The method's layers are measured, and it was not among those that ``apply`` was given.
            UnsupportedFeatureError: The run was closed. Or at the end, no call was made inside the block: a thread that
                is started inside begins with a context of its own. Or another thread or task ends the block than began
                it: a generator was advanced by both.
        """
        if self._use is None:
            raise UnsupportedFeatureError(
                "this run takes no method off and on: it was closed, shows a using block, or is a copy",
                "use the run that apply returned, before it is closed",
            )
        if method is not None:
            check_is_method(method, "using")
            method = with_budget(method, budget, fields)
        elif budget is not None or fields:
            raise ConfigError("using(None) prunes nothing, and a budget stands beside it", "give a method, too")
        return self._part(self._use(method))

    @staticmethod
    @contextmanager
    def _part(use: AbstractContextManager[Recording]) -> Iterator[Run]:
        with use as recording:
            yield Run(recording)

    # ---- what it shows ---

    @property
    def method(self) -> Method | None:
        """The method; None for calls that are not pruned."""
        return self.recording.method if self.recording.prunes else None

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
        """Collect what can be drawn of one sample of the last prefill; see :func:`tokenprune.draw`.

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
        return recorded_look(
            self.recording, pictures, processor, sample=sample, question=question, answer=answer, expected=expected
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
        """HTML for a notebook: the report, and the kept tokens of the last prefill's first sample."""
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
