"""Models: everything that changes outputs is noticed, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from tests.support.tiny import CASES, CORE
from tokenprune.fingerprint import fingerprint
from tokenprune.fingerprint.sampling import EVERY, LEAST, WHOLE

WIDE = (2048, 2560)  # read in places


def model() -> Any:
    """A tiny LLaVA with one weight that is too large to be read whole."""
    built = CASES["llava"].build()
    built.large = nn.Parameter(torch.randn(WIDE, generator=torch.Generator().manual_seed(0)))
    built.computed = nn.Linear(1, 1)
    built.computed.register_buffer("table", torch.linspace(0.1, 1, 32), persistent=False)
    built.computed.register_buffer("mean", torch.zeros(3))
    return built


@torch.no_grad()
def merge_lora(built: Any) -> None:
    """A merge of rank 1: it adds one matrix to one weight."""
    generator = torch.Generator().manual_seed(1)
    columns = torch.randn(WIDE[0], 1, generator=generator)
    built.large += 1e-3 * columns @ torch.randn(1, WIDE[1], generator=generator)


def rows(first: int, count: int) -> Callable[[Any], None]:
    """Some rows are other ones."""

    def change(built: Any) -> None:
        built.large.data[first : first + count] += 1

    return change


def columns(first: int, count: int) -> Callable[[Any], None]:
    """Some columns are other ones; column 0 is not."""

    def change(built: Any) -> None:
        built.large.data[:, first : first + count] += 1

    return change


def sparse(built: Any) -> None:
    """One percent of the numbers, anywhere."""
    mask = torch.rand(WIDE, generator=torch.Generator().manual_seed(2)) < 0.01
    built.large.data[mask] += 1


def last_number(built: Any) -> None:
    """One number of a small weight."""
    weight = built.get_decoder().layers[-1].mlp.down_proj.weight.data
    assert weight.numel() <= WHOLE
    weight[-1, -1] += 1e-6


def set_item(owner: Callable[[Any], Any], name: str, value: Any) -> Callable[[Any], None]:
    return lambda built: setattr(owner(built), name, value)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "LoRA merged": merge_lora,
    "rows at the start": rows(0, 8),
    "rows in the middle": rows(1001, 8),
    "rows at the end": rows(WIDE[0] - 8, 8),
    "columns": columns(1, 40),
    "last columns": columns(WIDE[1] - 40, 40),
    "one percent of the numbers": sparse,
    "one number of a small weight": last_number,
    "dtype": lambda built: built.to(torch.bfloat16),
    "dtype of one weight": lambda built: setattr(built.large, "data", built.large.data.double()),
    "shape": lambda built: setattr(built.large, "data", built.large.data.T.contiguous()),
    "a buffer": lambda built: built.computed.mean.add_(1),
    "a buffer that no checkpoint holds": lambda built: built.computed.table.mul_(1.5),
    "rotary frequencies": lambda built: built.get_decoder().rotary_emb.inv_freq.mul_(0.5),
    "the config": set_item(lambda built: built.config.text_config, "rms_norm_eps", 0.1),
    "the generation config": set_item(lambda built: built.generation_config, "repetition_penalty", 1.3),
    "a norm's epsilon": set_item(lambda built: built.get_decoder().norm, "variance_epsilon", 0.1),
    "the scale of an attention": set_item(lambda built: built.get_decoder().layers[1].self_attn, "scaling", 0.5),
    "an activation": set_item(lambda built: built.get_decoder().layers[1].mlp, "act_fn", nn.ReLU()),
    "training": lambda built: built.train(),
    "the attention": lambda built: built.set_attn_implementation("eager"),
    "a layer less": lambda built: built.get_decoder().layers.__delitem__(-1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_outputs_is_noticed(name: str) -> None:
    built = model()
    before = fingerprint(built)
    CHANGES[name](built)
    after = fingerprint(built)
    assert before is not None
    assert after is not None
    assert before != after


def test_every_block_as_long_as_promised_is_noticed() -> None:
    """Certainly, wherever it starts: the docstring says so."""
    count = WIDE[0] * WIDE[1]
    length = 2 * max(EVERY, -(-count // LEAST))
    layer = nn.Linear(WIDE[1], WIDE[0], bias=False)
    before = fingerprint(layer)
    flat = layer.weight.data.view(-1)
    for start in torch.randint(0, count - length, (60,), generator=torch.Generator().manual_seed(0)).tolist():
        kept = flat[start : start + length].clone()
        flat[start : start + length] += 1
        assert fingerprint(layer) != before
        flat[start : start + length] = kept
    assert fingerprint(layer) == before


@pytest.mark.parametrize("name", CORE)
@torch.no_grad()
def test_running_a_model_changes_nothing(name: str) -> None:
    """Nor does building it again: what is stored is found by the next process."""
    case = CASES[name]
    built = case.build()
    before = fingerprint(built)
    inputs = case.batch(built, 1, "none", seed=1).inputs
    built(**inputs)
    built.generate(**inputs, max_new_tokens=2)
    assert before is not None
    assert fingerprint(built) == before == fingerprint(case.build()) == fingerprint(copy.deepcopy(built))


def test_a_folder_that_was_moved_holds_the_same_model(tmp_path: Path) -> None:
    built = CASES["llava"].build()
    built.save_pretrained(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "other")
    built.save_pretrained(tmp_path / "one")
    one, other = (type(built).from_pretrained(tmp_path / name) for name in ("one", "other"))
    assert one.name_or_path != other.name_or_path
    assert fingerprint(one) == fingerprint(other) is not None


def test_the_last_bits_of_computed_buffers_do_not_count() -> None:
    """Machines compute frequencies that differ in them; shards of one experiment may run on several."""
    built = model()
    before = fingerprint(built)
    frequencies = built.get_decoder().rotary_emb.inv_freq
    frequencies.copy_(torch.nextafter(frequencies, torch.full_like(frequencies, 2)))
    assert fingerprint(built) == before
    weight = built.get_decoder().norm.weight.data
    weight.copy_(torch.nextafter(weight, torch.full_like(weight, 2)))
    assert fingerprint(built) != before


def lora() -> tuple[Any, Any]:
    """A PEFT model with two adapters, and the model inside it."""
    settings = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}
    wrapped = peft.get_peft_model(CASES["llava"].build(), peft.LoraConfig(**settings, lora_alpha=4)).eval()
    wrapped.add_adapter("second", peft.LoraConfig(**settings, lora_alpha=4))
    return wrapped, wrapped.get_base_model()


def test_lora_scaling_and_adapters_are_noticed() -> None:
    wrapped, inner = lora()
    prints = [fingerprint(inner)]
    layer = inner.get_decoder().layers[0].self_attn.q_proj
    layer.scaling["default"] *= 2
    prints.append(fingerprint(inner))
    wrapped.set_adapter("second")
    prints.append(fingerprint(inner))
    wrapped.set_adapter("default")
    assert fingerprint(inner) == prints[1]
    with wrapped.disable_adapter():
        prints.append(fingerprint(inner))
    wrapped.merge_adapter()
    prints.append(fingerprint(inner))
    assert None not in prints
    assert len(set(prints)) == len(prints)


def test_a_weight_without_numbers_is_unknown() -> None:
    built = CASES["llava"].build()
    built.get_decoder().layers[0].mlp.down_proj.to("meta")
    assert fingerprint(built) is None
    partitioned = CASES["llava"].build()
    partitioned.lm_head.weight = nn.Parameter(torch.empty(0))  # as DeepSpeed leaves a weight that it holds in parts
    assert fingerprint(partitioned) is None
