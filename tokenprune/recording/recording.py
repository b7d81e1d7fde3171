"""The records that a running method makes for its caller, and the annotations that the caller gives it."""

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor

from tokenprune.config import Method
from tokenprune.recording.record import PrefillRecord, Report
from tokenprune.selectors.base import LayerChoice


@dataclass(frozen=True)
class Annotations:
    """Data that the caller provides for the following prefills.

    Attributes:
        sample_ids: One stable integer per sample; None to count the samples.
        values: One vector per sample, by name.
    """

    sample_ids: tuple[int, ...] | None = None
    values: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)


class Recording:
    """Records and annotations of a running method. The engine holds this, and not the caller's run.

    Attributes:
        method: The method.
        choice: The layers before which it prunes, and why these were chosen.
        family: Family of the model.
        num_layers: Decoder layers.
        text_config: Config of the decoder, from which FLOPs are computed.
        prunes: Whether the method prunes; if not, it stands for none.
        prefill: The prefill that started last, on any thread.
    """

    def __init__(
        self,
        method: Method,
        choice: LayerChoice,
        family: str,
        num_layers: int,
        text_config: Any,
        prunes: bool = True,
    ) -> None:
        self.method, self.choice, self.prunes = method, choice, prunes
        self.family, self.num_layers, self.text_config = family, num_layers, text_config
        self.prefill = PrefillRecord()
        self._annotations = Annotations()
        self._of_thread = threading.local()  # annotations given on the current thread

    @property
    def name(self) -> str:
        """The method's name in messages and pictures."""
        return self.method.label or type(self.method.pruner).__name__.lower()

    @property
    def annotations(self) -> Annotations:
        """Annotations for a prefill on this thread: those given on it, otherwise the latest of any thread."""
        annotations: Annotations = getattr(self._of_thread, "annotations", self._annotations)
        return annotations

    def annotate(self, annotations: Annotations) -> None:
        """Use these annotations for the following prefills of this thread, and of threads without their own."""
        self._annotations = self._of_thread.annotations = annotations

    def begin(self, record: PrefillRecord) -> None:
        """Start a new prefill, whose record the engine fills while the model runs."""
        self.prefill = record

    def detach_places(self) -> None:
        """Find out where the visual tokens of the last prefill lie. Afterwards nothing of the model is held.

        What goes wrong is raised when somebody asks for a picture: it has nothing to do with pruning.
        """
        if sys.is_finalizing():  # torch is partly gone, and nobody will ask
            return
        record = self.prefill
        try:
            items = record.places()
        except Exception as raised:
            error = raised.with_traceback(None)  # which holds the model

            def places() -> NoReturn:
                raise error

            record.places = places
        else:
            record.places = lambda: items

    @property
    def report(self) -> Report:
        """Summary of the last prefill."""
        record = self.prefill
        targets = record.targets
        return Report(
            model=self.family,
            choice=self.choice,
            stages=list(record.stages),
            num_layers=self.num_layers,
            text_tokens=record.text_tokens,
            kv_bytes=record.kv_bytes,
            kv_bytes_unpruned=record.kv_bytes_unpruned,
            kv_rounded=record.kv_rounded,
            score_ms=sum(stop.since(start) for start, stop in record.clock),
            text_config=self.text_config,
            cuts_earlier=self.method.cut_earlier_caches,
            targets=None if targets is None else targets.given.tolist(),
            lost_targets=None if targets is None else targets.lost.tolist(),
            cached=list(record.cached),
        )
