"""MMR: `idpruner` of AngelSlim, the code of IDPruner's authors, given a trained scorer's output.

Their scorer is a trained network; here it returns the case's scores, and ours gets them as an annotation. Compared is
what follows: scaling, cosines, greedy choice. Random states have no ties. What they find around it (the list of visual
rows, the count) is given by stubs.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.published.llava import VISUAL, context, marked
from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.pruners.mmr import Mmr
from tokenprune.scorers.annotation import Annotation

SOURCE = Source(
    "Tencent/AngelSlim",
    "67394ce55f6b6cfae702575fbc3c7a05c13fdd74",
    "angelslim/compressor/token_compressor/algorithm/idpruner.py",
    "31-162",
)
WIDTH, TEXT = 32, 5
CASES: list[Case] = [
    *(
        {"seed": seed, "keep": keep, "weight": weight}
        for seed in range(3)
        for keep, weight in ((144, 0.5), (58, 0.5), (58, 0.3), (58, 0.8), (1, 0.5))
    ),
    {
        "seed": 0,
        "keep": 58,
        "weight": 0.5,
        "range": 1e-7,
        "differs": "they add 1e-6 to the range of the scores: in a range of 1e-7 importance hardly counts there",
    },
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Scores ``[1, tokens]`` and states ``[1, tokens, width]``: clusters, and noise."""
    noise = torch.Generator().manual_seed(case["seed"])
    scores = case.get("range", 10.0) * torch.rand(1, VISUAL, generator=noise)
    clusters = torch.randn(40, WIDTH, generator=noise)
    member = torch.randint(0, 40, (VISUAL,), generator=noise)
    states = clusters[member] + torch.randn(VISUAL, WIDTH, generator=noise)
    return {"scores": scores, "states": states[None]}


def theirs(checkout: Path, case: Case) -> Result:
    """The visual rows of a prompt with text around them that their mask keeps."""
    given = inputs(case)
    visual = torch.arange(TEXT, TEXT + VISUAL)
    rows = torch.randn(1, VISUAL + 2 * TEXT, WIDTH, generator=torch.Generator().manual_seed(99))
    rows[:, visual] = given["states"]
    text = torch.cat([torch.arange(TEXT), torch.arange(TEXT + VISUAL, VISUAL + 2 * TEXT)])
    names = ("_default_similarity_compute", "_default_importance_compute", "_resolve_callable", "idpruner")
    made: dict[str, Any] = definitions(
        checkout,
        SOURCE.file,
        *names,
        torch=torch,
        _extract_and_validate_vision_token_info=lambda context: (visual, text, None, None),
        resolve_num_tokens_to_keep=lambda ratio, count: case["keep"],
        get_universal_selector_scores=lambda **_: given["scores"],
    )
    prompt = SimpleNamespace(input_ids=torch.zeros(1, rows.shape[1], dtype=torch.long), inputs_embeds=rows)
    mask = made["idpruner"](prompt, ratio=None, selector_path=None, mmr_lambda=case["weight"])
    assert mask[:, text].all()
    return {"kept": marked(mask[:, visual])}


def ours(case: Case) -> Result:
    """Our `mmr` on an annotation."""
    given = inputs(case)
    ctx = context(given["states"], case["keep"], {}, annotations={"scores": given["scores"]})
    pruner = Mmr(scorer=Annotation(field="scores"), weight=case["weight"])
    return {"kept": marked(pruner.select(ctx).keep)}
