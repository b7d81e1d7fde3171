"""Every named method on every family: `python -m tests.support.method_table > benchmarks/results/families.md`.

A method runs as it must, or refuses with one line; nothing between. What a tiny model lacks, as a ninth layer of the
tower, is replaced by what it has.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import torch
import transformers

import tokenprune as tp
from tests.support.matrix import model_of
from tests.support.oracle import decoder_layers, oracle_logits, tolerance
from tests.support.tiny import CASES, CORE
from tests.support.tiny.core import Batch, Variant
from tokenprune.budgets.keep import KeepRatio
from tokenprune.core import plugins
from tokenprune.errors import ScoreError

OTHERWISE: dict[str, dict[str, Any]] = {
    "clse": {"layers": {"name": "fixed", "layers": [1, 2, 3]}},
    "hiprune": {"pruner": {"name": "hiprune", "object_layer": 0}},
    "sparsevlm": {"layers": {"name": "fixed", "layers": [1, 2, 3]}},
    "vscan": {
        "pruner": {
            "name": "stages",
            "pruners": [{"name": "vscan", "local_layer": 0}, {"name": "topk", "scorer": {"name": "fastv"}}],
        }
    },
    "vtw": {"layers": {"name": "vtw", "start": 1, "fallback": 2}},
}
"""Published numbers of layers that a tower of two layers and a decoder of four do not have."""
MERGING = {"apet", "flashvid", "framefusion", "sparsevlm", "tome", "visionzip", "vscan"}
"""Methods that change the states of kept tokens. The oracle only hides tokens, so it cannot judge them."""
SAME = {f"norm-{states}-{end}" for states in ("hidden", "key", "query") for end in ("large", "small")}
SHOWN = "norm-query-small"
"""One null model represents all six."""


@lru_cache
def methods() -> tuple[str, ...]:
    """The named methods; `oracle` chooses nothing by itself."""
    with plugins.builtin_only():
        return tuple(named.name for named in tp.list_methods() if named.name not in SAME - {SHOWN} | {"oracle"})


@lru_cache
def prepared(name: str) -> tp.Method:
    """A method with half of the tokens as its budget, fit for tiny models."""
    data = tp.load_method(name).model_dump(mode="json")
    if data["budget"]["name"] not in ("adaptive", "drop_all"):
        data["budget"] = {"name": "keep_ratio", "ratio": 0.5}
    return tp.Method.from_dict({**data, **OTHERWISE.get(name, {})})


def variants(family: str) -> tuple[Variant, ...]:
    """Several images, and a video where the family has videos."""
    return ("multi", "video") if "video" in CASES[family].variants else ("multi",)


@torch.no_grad()
def outcome(name: str, family: str, variant: Variant) -> str:
    """The refusal of the method; empty if it ran as expected.

    Raises:
        AssertionError: Something between: a wrong count, logits that are not the oracle's, a late or long refusal.
    """
    refusal = None
    case, model = CASES[family], model_of(family, "sdpa")
    batch = case.batch(model, 2, "left", seed=3, variant=variant)
    ran: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_: ran.append(1)) for layer in decoder_layers(model)]
    try:
        with tp.apply(model, prepared(name)) as run:
            logits = model(**batch.inputs).logits[:, -1]
    except tp.TokenPruneError as error:
        refusal = error
    finally:
        for hook in hooks:
            hook.remove()
    if refusal is not None:
        # errors that depend on tensors are raised at the end of the prefill, without a transfer in between
        assert not ran or isinstance(refusal, ScoreError), f"refused only after a layer had run: {refusal}"
        assert "\n" not in str(refusal)
        return str(refusal)
    assert logits.isfinite().all()
    check_counts(prepared(name), run, batch)
    if name not in MERGING:
        stages = [(stage.layer, stage.kept) for stage in run.stages]
        expected = oracle_logits(model, batch.inputs, stages, case.visual_ids)[:, -1]
        worst = float((logits - expected).abs().max())
        assert worst <= tolerance(expected) * case.slack, f"{worst} from the oracle"
    return ""


def check_counts(method: tp.Method, run: Any, batch: Batch) -> None:
    """The last stage keeps half of each sample; adaptive methods, and those that drop all, keep fewer than all."""
    before = [sum(groups) for groups in batch.groups]
    for total, after, row in zip(before, run.stages[-1].after, run.stages[-1].kept.tolist(), strict=True):
        assert sum(position >= 0 for position in row) == after
        if isinstance(method.budget, KeepRatio):
            assert after == total // 2
        else:
            assert after < total


def word(refusals: dict[Variant, str]) -> str:
    """A table cell: what a method did with each variant of a family's inputs."""
    if not any(refusals.values()):
        return "yes"
    texts = {text for text in refusals.values() if text}
    if len(texts) == 1 and "no two frames" in texts.copy().pop():
        return "video only" if "video" in refusals and not refusals["video"] else "no"
    return "; ".join(sorted(texts))


def main(families: list[str]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("# Which method runs on which family\n")
    print(
        f"transformers {transformers.__version__}; tiny random models, two prompts of two images each (and of a video"
    )
    print(
        "where the family has videos), half of the visual tokens. *yes*: it ran on all of these, kept exactly what it"
    )
    print(
        "was to keep, and, unless it merges tokens, its logits are the oracle's. *no*, *video only*: several images of"
    )
    print("these families are no frames, since each is an overview and tiles of other sizes; the error says so.")
    print(f"`{SHOWN}` stands for the six norms.\n")
    print("| method | " + " | ".join(families) + " |")
    print("|---" * (len(families) + 1) + "|")
    for name in methods():
        cells = [word({variant: outcome(name, family, variant) for variant in variants(family)}) for family in families]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(CORE))
