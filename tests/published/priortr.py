"""PriorTR: `compute_scores` and `select_tokens` of its LLaVA strategy, on the attention map of the case.

Their code reads the map that layer K-1 returns; ours computes the rows that it needs from queries and keys. They sort
with `topk`, which leaves ties open: random values have none.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from tests.published.fastv import attention
from tests.published.load import definitions
from tests.published.source import Case, Result, Source, rounded
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.priortr import PriorTR
from tokenprune.testing import make_context

SOURCE = Source(
    "CodeChildCZJ/PriorTR",
    "e442a4c14af1b333067a6b8310c9111cad922033",
    "image/LLaVA/llava/vtr/strategy/priortr.py",
    "31-99",
)
SELECTION = "image/LLaVA/llava/vtr/strategy/base.py"
SYSTEM, VISUAL, HEADS, DIM = 35, 576, 8, 16
CASES: list[Case] = [
    {"seed": seed, "keep": keep, "text": text, "question": question}
    for seed, keep, text in ((0, 192, 30), (1, 128, 12), (2, 64, 90), (3, 320, 2))
    for question in ("all", "last")
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Queries and keys of layer K-1, ``[1, rows, heads, dim]``."""
    noise = torch.Generator().manual_seed(case["seed"])
    rows = SYSTEM + VISUAL + case["text"]
    query, key = (torch.randn(1, rows, HEADS, DIM, generator=noise) for _ in range(2))
    return {"query": query, "key": key}


def theirs(checkout: Path, case: Case) -> Result:
    """The tokens that they keep, and their scores."""
    score = definitions(checkout, SOURCE.file, "PriorTRStrategy.compute_scores", torch=torch)["compute_scores"]
    select = definitions(checkout, SELECTION, "PruningStrategy.select_tokens", torch=torch)["select_tokens"]
    aggregation = {"all": "question", "last": "last"}[case["question"]]
    config = SimpleNamespace(query_aggregation=aggregation, head_aggregation="mean", keep_tokens=case["keep"])
    scores = score(None, attention(**inputs(case)), (SYSTEM, SYSTEM + VISUAL), config)
    return {"kept": select(None, scores, VISUAL, config).tolist(), "scores": rounded(1000 * scores[::16])}


def ours(case: Case) -> Result:
    """Our `topk` with the scorer `priortr`."""
    states = inputs(case)
    rows = states["query"].shape[1]
    visual = torch.zeros(1, rows, dtype=torch.bool)
    visual[:, SYSTEM : SYSTEM + VISUAL] = True
    ctx = make_context(torch.zeros(1, rows, 4), visual, keep=case["keep"], layer=3, num_layers=32, **states)
    pruner = TopK(scorer=PriorTR(question=case["question"]))
    kept = pruner.select(ctx).keep[0].nonzero()[:, 0].tolist()
    return {"kept": kept, "scores": rounded(1000 * pruner.scorer.score(ctx)[0, ::16])}
