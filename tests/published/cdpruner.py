"""CDPruner: `LlavaMetaForCausalLM.encode_images` around towers that return the case's tensors.

Their relevance needs CLIP's text tower, which a Hugging Face LLaVA does not have: the named method `cdpruner` takes
another. Compared is all that follows. Ours is given their relevance, before its scaling, as an annotation, and uses it
as they do (`theta: null`): scaling, kernel and the greedy choice are ours.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.published.llava import context, marked, model
from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.pruners.dpp import Dpp
from tokenprune.scorers.annotation import Annotation

SOURCE = Source(
    "Theia-4869/CDPruner",
    "9541616c40fcd5625de1cdb8ea6c33c129eb7864",
    "llava/model/llava_arch.py",
    "141-187",
)
VISUAL, WIDTH, SHARED, TEXTS = 576, 256, 64, 3
CASES: list[Case] = [{"seed": seed, "keep": keep} for seed in range(4) for keep in (192, 128, 64, 32)]


def inputs(case: Case) -> dict[str, Tensor]:
    """Projected features ``[1, tokens, width]``, embeddings of patches ``[1, tokens, shared]`` and texts."""
    noise = torch.Generator().manual_seed(case["seed"])
    return {
        "states": torch.randn(1, VISUAL, WIDTH, generator=noise),
        "patches": torch.randn(1, VISUAL, SHARED, generator=noise),
        "texts": torch.randn(TEXTS, SHARED, generator=noise),
    }


def theirs(checkout: Path, case: Case) -> Result:
    """The mask that goes with the features."""
    encode = definitions(checkout, SOURCE.file, "LlavaMetaForCausalLM.encode_images", torch=torch)["encode_images"]
    given = inputs(case)
    wanted = model(
        lambda images, texts: (given["states"], given["patches"], given["texts"]), visual_token_num=case["keep"]
    )
    return {"kept": marked(encode(wanted, None)[1])}


def ours(case: Case) -> Result:
    """Our `dpp`, of which a token's relevance is its negative mean cosine to the texts."""
    given = inputs(case)
    relevance = -(normalize(given["patches"], dim=-1) @ normalize(given["texts"], dim=-1).T).mean(-1)
    ctx = context(given["states"], case["keep"], {}, annotations={"relevance": relevance})
    return {"kept": marked(Dpp(relevance=Annotation(field="relevance"), theta=None).select(ctx).keep)}
