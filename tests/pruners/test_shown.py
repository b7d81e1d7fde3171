"""What selections show for pictures: scores, and which token went into which, against the states that go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import record
from tests.support.matrix import model_of
from tests.support.method_table import methods, prepared, variants
from tests.support.tiny import CASES
from tokenprune.budgets.keep import KeepRatio
from tokenprune.engine import prefill, selection
from tokenprune.errors import ScoreError
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.pruners.topk import TopK
from tokenprune.selectors.fixed import Fixed
from tokenprune.signals.context import PruneContext

MERGING = ("pool", "tome", "vscan", "visionzip", "sparsevlm", "framefusion")
SCORED_ONE_BY_ONE_NEVER = {"dart", "divprune", "otprune", "tome"}
VIDEOS = {"dycoke", "evs", "flashvid", "framefusion", "vidcom2"}
#: ToMe among the tokens that a scorer lets through: indices of the pool's axis come back on that of all tokens.
POOL = tp.Method.from_dict(
    {
        "pruner": {"name": "pool", "scorer": {"name": "norm"}, "pruner": {"name": "tome", "steps": 2}, "factor": 1.3},
        "layers": {"name": "fixed", "layers": [1]},
        "budget": {"name": "keep_ratio", "ratio": 0.5},
    }
)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PruneContext, Selection]]:
    """Every stage's context and selection of the prefills to come."""
    seen: list[tuple[PruneContext, Selection]] = []

    def select(pruner: Pruner, context: PruneContext) -> Selection:
        chosen = selection.select(pruner, context)
        seen.append((context, chosen))
        return chosen

    monkeypatch.setattr(prefill, "select", select)
    return seen


def run(name: str, monkeypatch: pytest.MonkeyPatch, keep: float = 0.5) -> list[tuple[PruneContext, Selection]]:
    family = "qwen2_5_vl" if name in VIDEOS else "llava"
    inputs = CASES[family].batch(model_of(family, "sdpa"), 2, "left", seed=3, variant=variants(family)[-1]).inputs
    method = POOL if name == "pool" else prepared(name)
    if isinstance(method.budget, KeepRatio):
        method = method.model_copy(update={"budget": KeepRatio(ratio=keep)})
    if name == "entropyprune":  # its layer is found on calibration samples
        method = method.model_copy(update={"layers": Fixed(layers=(2,))})
    seen = watch(monkeypatch)
    with torch.no_grad(), tp.apply(model_of(family, "sdpa"), method):
        model_of(family, "sdpa")(**inputs)
    assert seen
    return seen


@pytest.mark.parametrize("name", methods())
def test_scores_belong_to_the_tokens_and_decide_where_a_scorer_decides(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for context, chosen in run(name, monkeypatch):
        if name in SCORED_ONE_BY_ONE_NEVER:
            assert chosen.scores is None
            continue
        scores = chosen.scores
        assert scores is not None
        assert scores.shape == context.visual_mask.shape
        assert (scores.isfinite() | scores.isnan() | ~context.visual_mask).all()
        assert not scores[context.visual_mask].isnan().all()
        if isinstance(prepared(name).pruner, TopK):  # the best stay
            for image in range(context.per_image.most):
                for row, keep, here in zip(scores, chosen.keep, context.groups == image, strict=True):
                    kept, dropped = row[keep & here].tolist(), row[~keep & here].tolist()
                    assert min(kept, default=torch.inf) >= max(dropped, default=-torch.inf)


@pytest.mark.parametrize("name", MERGING)
def test_merged_tokens_make_the_state_of_their_target(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state that goes on is that of the token and of what `merged` says went into it."""
    stages = 0
    for context, chosen in run(name, monkeypatch, keep=0.3 if name == "sparsevlm" else 0.7):
        if chosen.merged is None:
            continue
        assert chosen.hidden is not None
        stages += bool((chosen.merged >= 0).any())
        for sample in range(len(chosen.keep)):
            for token in chosen.keep[sample].nonzero()[:, 0].tolist():
                if not context.visual_mask[sample, token]:
                    continue
                members = [i for i, target in enumerate(chosen.merged[sample].tolist()) if target == token]
                expected = state_of(name, context, sample, token, members)
                got = chosen.hidden[sample, token].double()
                assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5), (name, token, members)
    assert stages


def state_of(name: str, context: PruneContext, sample: int, token: int, members: list[int]) -> Tensor:
    """What each method's definition makes of a token and the tokens merged into it."""
    own, others = context.hidden[sample, token].double(), context.hidden[sample, members].double()
    if not members:
        return own
    if name != "visionzip":
        return torch.cat([own[None], others]).mean(0)
    tower = context.vision(-2)  # before layer 0 the tower's features are merged and projected
    sums = tower.features[sample, token].double() + tower.features[sample, members].double().mean(0)
    assert tower.projector is not None
    return tower.projector(sums.float()).detach().double()


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ({"scores": torch.zeros(2, 3)}, r"returned scores of \(2, 3\)"),
        ({"scores": "ints"}, "torch.int64"),
        ({"merged": torch.zeros(1, 1, dtype=torch.long)}, r"returned merged of \(1, 1\)"),
        ({"merged": "into dropped"}, "not kept"),
        ({"merged": "kept"}, "merged a kept token"),
        ({"merged": "outside"}, "not kept"),
    ],
)
def test_what_does_not_belong_to_the_tokens_is_refused(
    shown: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = record("llava")

    def select(self: Any, ctx: PruneContext) -> Selection:
        keep = torch.zeros_like(ctx.visual_mask)
        keep[:, : int(ctx.quotas[0, 0])] = True
        none = torch.full_like(ctx.groups, -1)
        values = {
            "ints": torch.zeros_like(ctx.groups),
            "into dropped": none.index_fill(1, torch.tensor([none.shape[1] - 1]), none.shape[1] - 2),
            "kept": none.index_fill(1, torch.tensor([0]), 1),
            "outside": none.index_fill(1, torch.tensor([none.shape[1] - 1]), none.shape[1] + 5),
        }
        given = {name: values[value] if isinstance(value, str) else value for name, value in shown.items()}
        return Selection(keep, **given)

    method = tp.load_method("random", keep_tokens=5)
    monkeypatch.setattr(type(method.pruner), "select", select)
    with pytest.raises(ScoreError, match=text), torch.no_grad(), tp.apply(recording.model, method):
        recording.model(**recording.inputs)
