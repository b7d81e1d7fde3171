"""VTW: the search of `VTWLlamaModel.forward` and `VTWLlamaForCausalLM.forward`, and the choice of its script.

The code runs one pass per candidate layer with rows 35 to 610 left out from it on, and takes the divergences of the
next token. The layers are stubs of a small model: each adds to all rows what a matrix makes of the mean row, less and
less with depth. It runs in float64: in float32 divergences of 1e-7 would be rounding. The script,
`lmms-evaluation/lmms_eval/__main__.py` (lines 388-400), averages over the samples and names the first layer below the
threshold of the checkpoint that it was started with.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.published.llama import llama_model
from tests.published.load import definitions, statements
from tests.published.source import Case, Result, Source, rounded
from tokenprune.selectors.base import SelectorContext
from tokenprune.selectors.vtw import Vtw, divergence

SOURCE = Source(
    "lzhxmu/VTW",
    "a3d8cfc3c3f8c957b02b504f85e140d633c30453",
    "llava/model/language_model/VTW.py",
    "38-136, 152-368",
)
SCRIPT = "lmms-evaluation/lmms_eval/__main__.py"
SYSTEM, VISUAL, TEXT, WIDTH, VOCABULARY, LAYERS, START = 35, 576, 20, 8, 50, 16, 5
THRESHOLDS = {"llava-v1.5-7b": 0.003, "llava-v1.5-13b": 0.0005, "llava-v1.6-vicuna-7b": 0.0001}
"""Those of the script, by checkpoint."""
CASES: list[Case] = [
    {"seed": seed, "samples": samples, "decay": decay, "model": model}
    for seed, samples, decay in ((0, 1, 0.6), (1, 4, 0.7), (2, 2, 0.5), (3, 3, 0.65))
    for model in THRESHOLDS
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Prompts ``[samples, rows, width]``, a matrix per layer, and the head ``[vocabulary, width]``."""
    noise = torch.Generator().manual_seed(case["seed"])
    prompts = torch.randn(case["samples"], SYSTEM + VISUAL + TEXT, WIDTH, generator=noise)
    prompts[:, SYSTEM : SYSTEM + VISUAL] += 1
    layers = torch.randn(LAYERS, WIDTH, WIDTH, generator=noise)
    scale = case["decay"] ** torch.arange(LAYERS, dtype=torch.float32)
    head = torch.randn(VOCABULARY, WIDTH, generator=noise)
    tensors = {"prompts": prompts, "layers": layers * scale[:, None, None], "head": head}
    return {name: tensor.double() for name, tensor in tensors.items()}


def step(hidden: Tensor, matrix: Tensor) -> Tensor:
    """One layer of the small model."""
    return hidden + hidden.mean(1, keepdim=True) @ matrix


def theirs(checkout: Path, case: Case) -> Result:
    """The divergences that the code collects, and the layer that its script prints."""
    tensors = inputs(case)
    cache = SimpleNamespace(findk=True, use_vtw=False, KL_di_total=[], last_embedding_list=[])
    given = {
        "torch": torch,
        "nn": nn,
        "F": F,
        "temp_cache": cache,
        "BaseModelOutputWithPast": SimpleNamespace,
        "CausalLMOutputWithPast": SimpleNamespace,
        "_prepare_4d_causal_attention_mask": lambda *_: None,
    }
    run_model = definitions(checkout, SOURCE.file, "VTWLlamaModel.forward", **given)["forward"]
    run_head = definitions(checkout, SOURCE.file, "VTWLlamaForCausalLM.forward", **given)["forward"]

    class Layer:
        """Has the number that the code asks for."""

        def __init__(self, number: int) -> None:
            self.self_attn = SimpleNamespace(layer_idx=number)

        def __call__(self, hidden: Tensor, **_: Any) -> tuple[Tensor]:
            return (step(hidden, tensors["layers"][self.self_attn.layer_idx]),)

    layers = [Layer(number) for number in range(LAYERS)]
    model = llama_model(layers, {"use_return_dict": True, "pretraining_tp": 1})

    class Outputs(SimpleNamespace):
        """Outputs can be indexed, as those of transformers."""

        def __getitem__(self, index: int) -> Tensor:
            return [self.last_hidden_state][index]

    def inner(**arguments: Any) -> Outputs:
        return Outputs(**vars(run_model(model, **arguments)))

    outer = SimpleNamespace(config=model.config, model=inner, lm_head=lambda hidden: hidden @ tensors["head"].T)
    for prompt in tensors["prompts"]:
        run_head(outer, inputs_embeds=prompt[None])
    printed: list[Any] = []
    statements(
        checkout,
        SCRIPT,
        388,
        400,
        torch=torch,
        temp_cache=cache,
        args=SimpleNamespace(findk=True, model_args=case["model"]),
        print=lambda *values: printed.append(values[-1]),
    )
    return {"layer": printed, "divergences": rounded(torch.tensor(cache.KL_di_total).mean(0))}


def ours(case: Case) -> Result:
    """Our selector `vtw` with the same small model."""
    tensors = inputs(case)

    def last_logits(layer: int | None) -> Tensor:
        hidden = tensors["prompts"]
        for number, matrix in enumerate(tensors["layers"]):
            if number == layer:
                hidden = torch.cat([hidden[:, :SYSTEM], hidden[:, SYSTEM + VISUAL :]], 1)
            hidden = step(hidden, matrix)
        return hidden[:, -1] @ tensors["head"].T

    choice = Vtw(threshold=THRESHOLDS[case["model"]]).select(SelectorContext("llava", LAYERS, last_logits=last_logits))
    unpruned = last_logits(None)
    changes = [divergence(last_logits(layer), unpruned) for layer in range(START, LAYERS)]
    return {"layer": list(choice.layers), "divergences": rounded(torch.tensor(changes, dtype=torch.float64))}
