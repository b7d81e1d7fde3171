"""The layer of EntropyPrune: where the entropy of the visual hidden states collapses, by rule or by verification."""

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from tokenprune.core.architecture import ModelFit
from tokenprune.errors import LayerError
from tokenprune.fingerprint import same
from tokenprune.pruners.stages import Stages
from tokenprune.selectors.base import LayerChoice, LayerSelector, SelectorContext, Trial
from tokenprune.selectors.entropy_profile import EntropyProfile, detect_collapse
from tokenprune.selectors.layer_trials import (
    alternatives,
    candidate_layers,
    feasible_layers,
    own_trials,
    race,
    setting_words,
)
from tokenprune.selectors.plateau import Plateau, find_plateau
from tokenprune.selectors.verdict import Verdict, verdict_key
from tokenprune.selectors.way import Way, load_pruner, pruner_data


@dataclass(frozen=True)
class PublishedLayer:
    """A layer that the paper states for one model.

    Attributes:
        model: The name of the model.
        layer: The layer.
        fit: Models that count as this one. Where the entropy collapses depends on the decoder and its depth.
    """

    model: str
    layer: int
    fit: ModelFit


_VICUNA_7B = {"depth": 32, "decoder": "llama", "hidden_size": 4096, "intermediate_size": 11008}

#: The layers that the paper states. Its code contains these numbers, but not the search for them.
PUBLISHED = (
    PublishedLayer("LLaVA-1.5-7B", 2, ModelFit(family="llava", **_VICUNA_7B)),
    PublishedLayer("LLaVA-1.6-Vicuna-7B", 2, ModelFit(family="llava_next", **_VICUNA_7B)),
    PublishedLayer(
        "Qwen2.5-VL-7B", 1, ModelFit(family="qwen2_5_vl", depth=28, hidden_size=3584, intermediate_size=18944)
    ),
)


class EntropyCollapse(LayerSelector):
    """Prune before the entropy collapse layer.

    The first available source decides: a verification (with ``verify``), the entropy curves by ``rule``, the layer that
    the paper states for this very model, ``fallback``. The curves come from the ``profile_file`` or, without one, from
    the calibration samples given to :func:`tokenprune.apply`. If they show no collapse, the next source decides, and
    the reason of the choice says so. A layer that was published for a model of another depth, width or decoder is not
    taken; the reason names that model and this one. A file that was made with other weights gives no verdict, and its
    curves decide only where there are no calibration samples; the reason says that, too.

    The rule ``drop`` is the paper's: prune before the layer where the entropy drops most sharply. The rule ``plateau``
    goes on to the collapsed layer, the first one whose input lies on the low plateau behind the drop, and prunes before
    the layer after it: a stage before layer K observes layer K-1, so that the scorer then reads states that have
    collapsed.

    With ``verify`` the entropy only says where to look. For each of the ``most`` layers nearest to the collapse that
    the budget allows, and for all alternatives of the pruner's ``fields``, the calibration samples run pruned; the one
    whose answers agree most with the unpruned model is taken. Of equal agreement the cheaper one is taken, then the one
    of smaller divergence. No labels are needed.

    ``before`` names pruners that act before layer 0 and read the vision tower. They are verified next to the others, at
    equal cost where the budget is a layer average; with ``two_stages`` also the first of them before layer 0 followed
    by the method's own pruner behind the collapse. The first of ``before``, with its own values, is the standard way:
    it is taken unless another candidate agrees clearly more often (the 95 % interval of the paired difference lies
    above zero), as the best of many candidates on few samples is often so by luck. It is also what the method does
    where nothing can be verified and no layer was published for the model, if the tower can be read.

    The reason states the agreement of the choice, and what is left of it without the gain from having been picked; see
    :class:`tokenprune.selectors.verdict.Promise`. The verdict is kept: in the user's cache, for the same model and
    calibration samples, and by ``tokenprune profile`` in its file. A verdict in the ``profile_file`` is used without
    running anything. It holds for the same method and budget only; without one the calibration samples are verified
    on, or the rule decides.

    Source: "EntropyPrune: Matrix Entropy Guided Visual Token Pruning", arXiv 2602.17196. The rule ``plateau``, the
    verification and the vision tower are ours.

    Attributes:
        profile_file: A JSON file written by ``tokenprune profile``.
        fallback: The layer if no other source is available; None raises an error instead.
        published: Whether to use the layer that the paper states, where it states one for this model.
        min_relative: See :func:`tokenprune.selectors.entropy_profile.detect_collapse`.
        min_agreement: See :func:`tokenprune.selectors.entropy_profile.detect_collapse`.
        rule: ``drop`` or ``plateau``: what the entropy curves decide by.
        share: See :func:`tokenprune.selectors.plateau.find_plateau`.
        verify: Whether to compare candidates on the calibration samples.
        fields: Paths of the pruner's fields that are verified together with the layer, e.g. ``scorer.source``. Their
            alternatives are the values that the component names as worth trying.
        most: The largest number of layers that are verified.
        before: Pruners before layer 0 that are verified, too; see above.
        two_stages: Whether to verify two stages, too: the first of ``before``, then the method's own pruner.
    """

    profile_file: str | None = None
    fallback: int | None = Field(default=None, ge=1)
    published: bool = True
    min_relative: float = Field(default=0.1, gt=0, lt=1)
    min_agreement: float = Field(default=0.75, gt=0, le=1)
    rule: Literal["drop", "plateau"] = "drop"
    share: float = Field(default=0.15, gt=0, lt=1)
    verify: bool = False
    fields: tuple[str, ...] = ()
    most: int = Field(default=8, ge=1)
    before: tuple[Way, ...] = ()
    two_stages: bool = False

    @model_validator(mode="after")
    def _fields_are_verified(self) -> Self:
        if self.fields and not self.verify:
            raise ValueError(f"'fields': {', '.join(self.fields)} would not be verified: set verify to true")
        if self.before and not self.verify:
            raise ValueError("'before' would not be verified: set verify to true")
        names = [way.name for way in self.before]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'before' has two pruners that are called {twice!r}: give each a label")
        if self.two_stages and not self.before:
            raise ValueError("'two_stages' begins with the first pruner of 'before': name one there")
        return self

    @property
    def verifies(self) -> bool:
        """See :attr:`tokenprune.selectors.base.LayerSelector.verifies`."""
        return self.verify

    @property
    def verified_fields(self) -> tuple[str, ...]:
        """See :attr:`tokenprune.selectors.base.LayerSelector.verified_fields`."""
        return self.fields

    def known_layers(self, ctx: SelectorContext) -> None:
        """See :meth:`tokenprune.selectors.base.LayerSelector.known_layers`."""
        self._check_before(ctx)
        if self._standard(ctx) is None:  # the fallback is not needed otherwise
            self._check_fallback(ctx)
        self._stored(ctx)
        if self.fields and ctx.pruner is not None:
            alternatives(ctx.pruner, self.fields)

    def select(self, ctx: SelectorContext) -> LayerChoice:
        """See :meth:`tokenprune.selectors.base.LayerSelector.select`."""
        self._check_before(ctx)
        stored = self._stored(ctx)
        matches = True if stored is None else self._of_these_weights(stored, ctx)
        findings = [] if matches else [self._doubt(matches)]
        if self.verify:
            verdict = None if matches is False else self._kept_verdict(stored, ctx)
            if verdict is not None:
                source = "; ".join([f"verdict in {self.profile_file}", *findings])
                return self._follow(verdict, ctx, f"{verdict.reason} ({source})")
            if stored is not None:
                findings.append(f"{self.profile_file} has no verdict on this method and budget")
            if ctx.compare is not None:
                try:
                    verdict = self._verify(ctx)
                    return self._follow(verdict, ctx, "; ".join([*findings, verdict.reason]))
                except LayerError as error:
                    findings.append(f"nothing was verified: {error.what}")
        curves = stored
        if (curves is None or matches is False) and ctx.measure_entropy is not None:
            curves = ctx.measure_entropy()
        return self._by_rule(curves, ctx, findings)

    # ---- verification ----

    def _kept_verdict(self, kept: EntropyProfile | None, ctx: SelectorContext) -> Verdict | None:
        """The verdict on the method that a profile holds; None if it holds none."""
        return None if kept is None or ctx.definition is None else kept.verdict(ctx.definition)

    @staticmethod
    def _of_these_weights(kept: EntropyProfile, ctx: SelectorContext) -> bool | None:
        """Whether a profile was made with the model's weights; None if this is unknown."""
        return True if ctx.fingerprint is None else same(kept.model, ctx.fingerprint())

    def _doubt(self, matches: bool | None) -> str:
        """Say that a profile was made with other weights, or that this is unknown."""
        if matches is None:
            return f"whether {self.profile_file} was made with these weights is unknown"
        return f"{self.profile_file} was made with other weights"

    def _verify(self, ctx: SelectorContext) -> Verdict:
        """The verdict of the calibration samples, from the cache if they have been verified on before.

        Raises:
            LayerError: They decide nothing.
        """
        if ctx.measure_entropy is None:
            raise LayerError("there are no entropy curves", "give calibration samples")
        curves = ctx.measure_entropy()
        verdict = self._kept_verdict(curves, ctx)
        if verdict is None:
            verdict = self._race(curves, ctx)
            if ctx.remember is not None and ctx.definition is not None:
                ctx.remember(curves.with_verdicts(verdict))
        return verdict

    def _race(self, curves: EntropyProfile, ctx: SelectorContext) -> Verdict:
        """Compare all candidates with the unpruned model on the calibration samples.

        Raises:
            LayerError: The budget cannot be met by any, or none can run.
            ConfigError: A path of a field names no tunable field, or one without alternatives.
        """
        if ctx.pruner is None or ctx.compare is None or ctx.refusal is None:
            raise LayerError("there are no calibration samples to verify layers with", "give calibration samples")
        plateau = find_plateau(curves, self.share, self.min_relative, self.min_agreement)
        collapse = detect_collapse(curves, self.min_relative, self.min_agreement)
        earlier = [] if ctx.refusal((0,)) is not None else self.earlier_trials(ctx.tower_layers)
        two_stages = self._two_stages(ctx, plateau)
        try:
            layers = candidate_layers(ctx.num_layers, feasible_layers(ctx), plateau, self.most)
        except LayerError:
            if not earlier and not two_stages:
                raise
            layers = []  # the first layers alone cost more than the budget, or it is a schedule of two stages
        trials = [*earlier, *own_trials(layers, ctx.pruner, self.fields), *two_stages]
        outcome = race(ctx, trials)
        promise, chosen = outcome.promise(), outcome.chosen
        return Verdict(
            definition=verdict_key(ctx.definition) if ctx.definition is not None else {},
            layers=chosen.layers,
            setting=chosen.setting,
            pruner=pruner_data(chosen.pruner),
            promise=promise,
            reason=f"{outcome.sentence(promise)}; {collapse.sentence}; {plateau.sentence}",
            candidates=outcome.rows,
        )

    def earlier_trials(self, tower_layers: int | None) -> list[Trial]:
        """See :meth:`tokenprune.selectors.base.LayerSelector.earlier_trials`."""
        trials: list[Trial] = []
        for number, way in enumerate(self.before):
            trials += way.trials(tower_layers, standard=number == 0)
        return trials

    def _two_stages(self, ctx: SelectorContext, plateau: Plateau) -> list[Trial]:
        """The standard way, and the method's own pruner behind the collapse: one layer behind the first low one."""
        behind = plateau.drop + 1 if plateau.first is None else plateau.first + 1
        if not self.two_stages or not 1 <= behind < ctx.num_layers or ctx.pruner is None or ctx.refusal is None:
            return []
        layers = (0, behind)
        if ctx.refusal(layers) is not None:
            return []
        first = self.before[0]
        start = first.pruners(ctx.tower_layers)[0]
        return [
            Trial(layers, Stages(pruners=(start, second)), f"{first.name}, then {words}")
            for second in alternatives(ctx.pruner, self.fields)
            for words in [setting_words(second, self.fields) or "the method's own pruner"]
        ]

    def _follow(self, verdict: Verdict, ctx: SelectorContext, reason: str) -> LayerChoice:
        """The choice of a verdict.

        Raises:
            ConfigError: The verdict names a pruner that does not exist (any more).
            LayerError: It names a layer that the model does not have.
        """
        if verdict.layers[-1] >= ctx.num_layers:
            raise LayerError(
                f"the verdict names layer {verdict.layers[-1]}, and the model has {ctx.num_layers} layers",
                "make the profile again with `tokenprune profile`",
            )
        own = not self.fields and not self.before
        return LayerChoice(verdict.layers, reason, None if own else load_pruner(verdict.pruner), verdict.promise)

    # ---- rules ----

    def _by_rule(self, curves: EntropyProfile | None, ctx: SelectorContext, findings: list[str]) -> LayerChoice:
        """Choose by the curves, else take the published layer, else the fallback.

        Args:
            curves: The entropy curves; None if there are none.
            ctx: The model.
            findings: Findings so far, in words.

        Raises:
            LayerError: None of them decides.
        """
        standard = self._standard(ctx)
        if curves is not None:
            layer, sentence = self._layer(curves)
            findings = [*findings, sentence]
            if layer is not None and standard is None:
                return LayerChoice((layer,), "; ".join(findings))
        else:
            findings = [*findings, "no calibration samples were given"]
        if self.published:
            layer, sentence = _published_layer(ctx)
            findings += [sentence] if sentence else []
            if layer is not None:
                return LayerChoice((layer,), "; ".join(findings))
        finding = "; ".join(findings)
        if standard is not None:
            reason = f"{finding}; took the standard way: before layer 0, {standard.name}"
            return LayerChoice((0,), reason, standard.pruners(ctx.tower_layers)[0])
        if self.fallback is None:
            raise LayerError(
                f"entropy_collapse cannot choose a layer of {ctx.family!r}: {finding}",
                "give apply(..., calibration=[...]), a profile_file, or a fallback layer",
            )
        self._check_fallback(ctx)
        return LayerChoice((self.fallback,), f"{finding}; fell back to layer {self.fallback}")

    def _standard(self, ctx: SelectorContext) -> Way | None:
        """The standard way; None if there is none, or if the vision tower cannot be read."""
        return self.before[0] if self.before and ctx.tower_layers is not None else None

    def _check_before(self, ctx: SelectorContext) -> None:
        """Refuse layers of the vision tower that do not exist.

        Raises:
            LayerError: A pruner of ``before`` names one.
        """
        for way in self.before:
            way.check_tower(ctx.tower_layers)

    def _check_fallback(self, ctx: SelectorContext) -> None:
        if self.fallback is not None and self.fallback >= ctx.num_layers:
            raise LayerError(
                f"fallback layer {self.fallback} is out of range: the model has {ctx.num_layers} layers",
                f"use 1 to {ctx.num_layers - 1}",
            )

    def _layer(self, curves: EntropyProfile) -> tuple[int | None, str]:
        """The layer that the rule finds in the curves, and what it found."""
        if self.rule == "drop":
            collapse = detect_collapse(curves, self.min_relative, self.min_agreement)
            return collapse.layer, collapse.sentence
        plateau = find_plateau(curves, self.share, self.min_relative, self.min_agreement)
        return None if plateau.first is None else plateau.first + 1, plateau.sentence

    def _stored(self, ctx: SelectorContext) -> EntropyProfile | None:
        """The profile of the file.

        Raises:
            LayerError: It is of a model of another family, or with another number of layers.
        """
        if self.profile_file is None:
            return None
        curves = EntropyProfile.load(self.profile_file)
        if curves.family != ctx.family:
            raise LayerError(
                f"profile {self.profile_file} is of a model of the family {curves.family!r}, this one is"
                f" {ctx.family!r}",
                "make a profile of this model with `tokenprune profile`",
            )
        if curves.num_layers != ctx.num_layers:
            raise LayerError(
                f"profile {self.profile_file} is of a model with {curves.num_layers} layers, this one has"
                f" {ctx.num_layers}",
                "make a profile of this model with `tokenprune profile`",
            )
        return curves


def _published_layer(ctx: SelectorContext) -> tuple[int | None, str]:
    """The layer that the paper states for a model, and what it states for the family, in words."""
    stated = [item for item in PUBLISHED if item.fit.family == ctx.family]
    for item in stated:
        if ctx.architecture is not None and item.fit.fits(ctx.architecture):
            return item.layer, f"took layer {item.layer}, published for {item.model}"
    this = ctx.architecture or f"a {ctx.family!r} of unknown sizes"
    others = (f"layer {item.layer} was published for {item.model} ({item.fit.condition})" for item in stated)
    return None, f"{', '.join(others)}, not for {this}" if stated else ""
