"""The layer of EntropyPrune: where the entropy of the visual hidden states collapses."""

from __future__ import annotations

from pydantic import Field

from tokenprune.errors import LayerError
from tokenprune.selectors.base import LayerChoice, LayerSelector, ModelProfile
from tokenprune.selectors.entropy_profile import EntropyProfile, detect_collapse

#: Layers that the paper states per family. Its code contains these numbers, but not the search for them.
PUBLISHED = {"llava": 2, "llava_next": 2, "qwen2_5_vl": 1}


class EntropyCollapse(LayerSelector):
    """Prune before the entropy collapse layer.

    The first available source decides: the entropy curves, the published layer of the family, ``fallback``. The curves
    come from the ``profile`` file or, without one, from the calibration samples given to :func:`tokenprune.apply`. If
    they show no collapse, the next source decides, and the reason of the choice says so.

    Source: "EntropyPrune: Matrix Entropy Guided Visual Token Pruning", arXiv 2602.17196.

    Attributes:
        profile: A JSON file written by ``tokenprune profile``.
        fallback: The layer if no other source is available; None raises an error instead.
        published: Whether to use the published layer of the family.
        min_relative: See :func:`tokenprune.selectors.entropy_profile.detect_collapse`.
        min_agreement: See :func:`tokenprune.selectors.entropy_profile.detect_collapse`.
    """

    profile: str | None = None
    fallback: int | None = Field(default=None, ge=1)
    published: bool = True
    min_relative: float = Field(default=0.1, gt=0, lt=1)
    min_agreement: float = Field(default=0.75, gt=0, le=1)

    def select(self, profile: ModelProfile) -> LayerChoice:
        """See :meth:`tokenprune.selectors.base.LayerSelector.select`."""
        curves = self._curves(profile)
        finding = "no calibration samples were given"
        if curves is not None:
            collapse = detect_collapse(curves, self.min_relative, self.min_agreement)
            finding = collapse.sentence
            if collapse.layer is not None:
                return LayerChoice((collapse.layer,), finding)
        published = PUBLISHED.get(profile.family) if self.published else None
        if published is not None and published < profile.num_layers:
            return LayerChoice((published,), f"{finding}; took layer {published}, published for {profile.family}")
        if self.fallback is None:
            raise LayerError(
                f"entropy_collapse cannot choose a layer of {profile.family!r}: {finding}",
                "give apply(..., calibration=[...]), a profile file, or a fallback layer",
            )
        if self.fallback >= profile.num_layers:
            raise LayerError(
                f"fallback layer {self.fallback} is out of range: the model has {profile.num_layers} layers",
                f"use 1 to {profile.num_layers - 1}",
            )
        return LayerChoice((self.fallback,), f"{finding}; fell back to layer {self.fallback}")

    def _curves(self, profile: ModelProfile) -> EntropyProfile | None:
        if self.profile is not None:
            curves = EntropyProfile.load(self.profile)
            if curves.num_layers != profile.num_layers:
                raise LayerError(
                    f"profile {self.profile} is of a model with {curves.num_layers} layers, this one has"
                    f" {profile.num_layers}",
                    "make a profile of this model with `tokenprune profile`",
                )
            return curves
        return profile.measure_entropy() if profile.measure_entropy is not None else None
