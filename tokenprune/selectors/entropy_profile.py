"""Entropy curves of a model over its layers, and the search for the layer where they collapse."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tokenprune.errors import ConfigError, MissingDataError
from tokenprune.selectors.verdict import Verdict, verdict_key
from tokenprune.tables.column import Column, fill, number, text
from tokenprune.tables.html import parts_html


class EntropyProfile(BaseModel):
    """Matrix entropy of the visual tokens' states along their path through the model, per calibration sample.

    The path leads behind every layer of the vision tower and to the input of every decoder layer. The output of the
    projector is the input of decoder layer 0 (at most scaled, which leaves the entropy as it is), and so it has no
    number of its own.

    Attributes:
        family: Family of the model.
        num_layers: Number of decoder layers.
        curves: One curve of ``num_layers`` numbers per sample.
        verdicts: Outcomes of verifications of methods on these samples, one per method and budget.
        model: The model's :func:`~tokenprune.fingerprint.fingerprint`; empty where it is unknown.
        tower: One curve per sample over the layers of the vision tower that lead to the language model, of the states
            that leave them; empty where the tower was not measured.
        tower_refused: Why the tower was not measured; empty, too, in older files, which hold decoders alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    num_layers: int
    curves: tuple[tuple[float, ...], ...]
    verdicts: tuple[Verdict, ...] = ()
    model: str = ""
    tower: tuple[tuple[float, ...], ...] = ()
    tower_refused: str = ""

    @model_validator(mode="after")
    def _shape(self) -> EntropyProfile:
        if not self.curves or any(len(curve) != self.num_layers for curve in self.curves):
            raise ValueError(f"expected at least one curve of {self.num_layers} numbers")
        if not all(math.isfinite(value) for curve in self.curves for value in curve):
            raise ValueError("a curve holds NaN or infinity")
        if self.tower and (len(self.tower) != len(self.curves) or len({*map(len, self.tower), 0}) != 2):
            raise ValueError("expected a curve of the vision tower per sample, all over the same layers")
        if not all(math.isfinite(value) for curve in self.tower for value in curve):
            raise ValueError("a curve of the vision tower holds NaN or infinity")
        if self.tower and self.tower_refused:
            raise ValueError("the vision tower has curves, and a reason why it has none")
        return self

    @property
    def knows_tower(self) -> bool:
        """Whether the profile has the tower's curves or says why not; files of earlier versions do neither."""
        return bool(self.tower or self.tower_refused)

    @property
    def tower_layers(self) -> int:
        """Layers of the vision tower on the path; 0 where it was not measured."""
        return len(self.tower[0]) if self.tower else 0

    @property
    def path(self) -> dict[str, tuple[float, ...]]:
        """The numbers of all samples at every point of the path: behind ``tower 0`` ..., entering ``layer 0`` ..."""
        points = {f"tower {layer}": values for layer, values in enumerate(zip(*self.tower, strict=True))}
        return points | {f"layer {layer}": values for layer, values in enumerate(zip(*self.curves, strict=True))}

    @property
    def mean(self) -> list[float]:
        """The mean of the decoder's curves."""
        return [statistics.fmean(column) for column in zip(*self.curves, strict=True)]

    @property
    def path_mean(self) -> dict[str, float]:
        """The mean over the samples at every point of :attr:`path`."""
        return {point: statistics.fmean(values) for point, values in self.path.items()}

    def _repr_html_(self) -> str:
        """HTML for a notebook: the mean entropy at every point of the path, and how far the samples differ."""
        columns: tuple[Column[tuple[str, tuple[float, ...]]], ...] = (
            text("states behind tower layers, entering decoder layers", lambda row: row[0]),
            number("matrix entropy, mean", lambda row: statistics.fmean(row[1]), "{:.4f}"),
            number("least", lambda row: min(row[1]), "{:.4f}"),
            number("most", lambda row: max(row[1]), "{:.4f}"),
        )
        title = f"Entropy of {self.family}, {len(self.curves)} samples"
        if self.tower_refused:
            title += f"; the vision tower was not measured: {self.tower_refused}"
        return parts_html(fill(title, columns, list(self.path.items())))

    def verdict(self, definition: Mapping[str, Any]) -> Verdict | None:
        """The verdict on a method, budget included; None where there is none.

        Args:
            definition: The method as JSON-ready data, without its label.
        """
        key = verdict_key(definition)
        return next((item for item in self.verdicts if item.definition == key), None)

    def with_verdicts(self, *verdicts: Verdict) -> EntropyProfile:
        """The profile with more verdicts; they replace those on the same method."""
        replaced = [item.definition for item in verdicts]
        kept = [item for item in self.verdicts if item.definition not in replaced]
        return self.model_copy(update={"verdicts": (*kept, *verdicts)})

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON, atomically.

        Raises:
            OSError: The file cannot be written.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.model_dump_json(indent=1))
            os.replace(partial, path)
        except OSError:  # e.g. a full disk
            Path(partial).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path) -> EntropyProfile:
        """Read a file that :meth:`save` wrote.

        Raises:
            MissingDataError: The file does not exist.
            ConfigError: The file is not an entropy profile.
        """
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MissingDataError(f"no entropy profile at {path}", "make one with `tokenprune profile`") from None
        except IsADirectoryError:
            raise MissingDataError(f"{path} is a folder, not an entropy profile", "name the file") from None
        except (ValidationError, ValueError) as error:
            lines = str(error).splitlines()
            problem = "; ".join(lines[1:3]).strip() or lines[0]
            raise ConfigError(
                f"{path} is not an entropy profile ({problem})", "make one with `tokenprune profile`"
            ) from None


@dataclass(frozen=True)
class Collapse:
    """The result of :func:`detect_collapse`.

    Attributes:
        layer: The entropy collapse layer; None if there is none.
        candidate: The layer with the largest mean drop, whether or not it is a collapse.
        drop: Mean drop ``S[l-1] - S[l]`` at the candidate.
        relative: The drop as a share of the mean entropy before it.
        error: Standard error of the drop over samples.
        agreement: Share of samples whose own largest drop is at most one layer from the candidate.
        sentence: The result in words.
    """

    layer: int | None
    candidate: int
    drop: float
    relative: float
    error: float
    agreement: float
    sentence: str


def detect_collapse(profile: EntropyProfile, min_relative: float = 0.1, min_agreement: float = 0.75) -> Collapse:
    """Find the layer where the entropy of most samples drops sharply.

    The candidate is the layer l >= 1 with the largest mean drop ``S[l-1] - S[l]``. It is a collapse if three conditions
    hold: the drop is more than two standard errors above zero; it is at least ``min_relative`` of the mean entropy
    before it; at least ``min_agreement`` of the samples have their own largest drop at most one layer away. Otherwise
    there is no collapse, and the sentence states the condition that failed.

    Args:
        profile: The curves.
        min_relative: Smallest drop that counts, as a share of the mean entropy before it.
        min_agreement: Smallest share of samples that must agree.
    """
    drops = [[a - b for a, b in pairwise(curve)] for curve in profile.curves]
    if profile.num_layers < 2:
        return Collapse(None, 0, 0.0, 0.0, 0.0, 0.0, "no collapse found: the model has one layer")
    means = [statistics.fmean(column) for column in zip(*drops, strict=True)]
    best = max(range(len(means)), key=means.__getitem__)
    column = [row[best] for row in drops]
    error = statistics.stdev(column) / len(column) ** 0.5 if len(column) > 1 else 0.0
    level = abs(profile.mean[best])
    relative = means[best] / level if level else 0.0
    agree = sum(abs(max(range(len(row)), key=row.__getitem__) - best) <= 1 for row in drops) / len(drops)
    facts = (
        f"sharpest mean drop {means[best]:.4f} (+- {error:.4f}, {100 * relative:.1f} %) before layer {best + 1},"
        f" {100 * agree:.0f} % of {len(drops)} samples agree"
    )
    why = None
    if means[best] <= 0:
        why = "the entropy never falls"
    elif means[best] <= 2 * error:
        why = "the drop does not stand out of the scatter"
    elif relative < min_relative:
        why = f"the drop is below {100 * min_relative:g} %"
    elif agree < min_agreement:
        why = f"fewer than {100 * min_agreement:g} % of the samples agree"
    sentence = f"no collapse found: {why} ({facts})" if why else f"collapse before layer {best + 1}: {facts}"
    return Collapse(None if why else best + 1, best + 1, means[best], relative, error, agree, sentence)
