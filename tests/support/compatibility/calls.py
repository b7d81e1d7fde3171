"""Rows: other ways to call the model, and wrappers around it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers.generation.streamers import BaseStreamer

from tests.support import matrix
from tests.support.compatibility.judging import Apply, Found, Row
from tests.support.compatibility.kinds import DEFAULT, Use, over, stages_of
from tests.support.oracle import kept_rows, oracle_logits
from tests.support.tiny.core import CACHE

HOW = matrix.method([1], {"name": "keep_ratio", "ratio": 0.4})
ONE = (DEFAULT,)
Called = Callable[[Use, Any], Any]
"""Calls a model with the inputs of a use, and gives its output."""


def forward(use: Use, apply: Apply, given: Any = None, call: Called | None = None) -> Found:
    """All logits of one call, of a model that `apply` was `given`; by default both are the model of the use."""
    given = use.model if given is None else given
    with apply(given, HOW) as run:
        ours = (call or (lambda use, model: model(**use.inputs)))(use, given).logits
    stages = stages_of(run)
    full = oracle_logits(use.model, use.inputs, stages, use.case.visual_ids)
    kept = kept_rows(use.inputs, stages, use.case.visual_ids)
    left = torch.cat([rows[-len(places) :] for rows, places in zip(ours, kept, strict=True)])
    return use.found(run, left, torch.cat([rows[places] for rows, places in zip(full, kept, strict=True)]))


def fresh(**more: Any) -> Use:
    """A model that may be changed."""
    use = Use(DEFAULT, variant="ragged", **more)
    use.model = use.case.build()
    return use


def lora(use: Use) -> Any:
    """A PEFT model whose adapter changes what the model computes."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(use.model, config).eval()


def soft_prompt(use: Use) -> Any:
    """A PEFT model that learns tokens."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    text: Any = use.model.config.get_text_config()
    use.model.config.update({"hidden_size": text.hidden_size, "num_attention_heads": 4, "num_hidden_layers": 4})
    return peft.get_peft_model(use.model, config)


class DistributedDataParallel(nn.Module):
    """Stands for torch's, which needs a process group."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        """What the module gives."""
        return self.module(**inputs)


def without_head(use: Use, model: Any) -> Any:
    """The inner model, and the head on what it returns."""
    out = model.model(**use.inputs)
    out.logits = model.lm_head(out.last_hidden_state)
    return out


def embedded(use: Use, model: Any) -> Any:
    """Embeddings of the placeholder tokens, and the pixels."""
    rest = {name: value for name, value in use.inputs.items() if name != "input_ids"}
    return model(inputs_embeds=model.get_input_embeddings()(use.inputs["input_ids"]), **rest)


def in_place(use: Use, model: Any) -> Any:
    """Embeddings in which the features are in place already."""
    embeds = model.get_input_embeddings()(use.inputs["input_ids"]).clone()
    embeds[:, 3:7] = 0.5
    return model(inputs_embeds=embeds, attention_mask=use.inputs["attention_mask"])


def decoder_alone(use: Use, model: Any) -> Any:
    """The language model inside."""
    return model.model.language_model(inputs_embeds=model.get_input_embeddings()(use.inputs["input_ids"]))


def exported(use: Use, model: Any) -> Any:
    """An export of the model."""
    return torch.export.export(model, (), {**use.inputs, "use_cache": False})


def traced(use: Use, model: Any) -> Any:
    """A trace of the model."""
    return torch.jit.trace(model, example_kwarg_inputs=dict(use.inputs), strict=False)


def batched(use: Use, model: Any) -> Any:
    """Continuous batching."""
    return model.generate_batch(use.inputs["input_ids"].tolist())


class Words(BaseStreamer):  # type: ignore[misc]
    """Collects what is streamed."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        """The prompt, then tokens."""
        self.ids.append(value.reshape(-1))

    def end(self) -> None:
        """Nothing to do."""


def streamed(_: str, apply: Apply) -> Found:
    """What is streamed is what is written."""
    use, words = Use(DEFAULT, batch=1, padding="none"), Words()
    with apply(use.model, HOW) as run:
        out = use.generate(streamer=words)
    assert torch.equal(torch.cat(words.ids), out.sequences[0])
    return use.judged(run, out)


def custom(_: str, apply: Apply) -> Found:
    """A function of the caller's in place of `generate`'s loop."""
    use = Use(DEFAULT, padding="none")
    found: list[Tensor] = []

    def loop(model: Any, input_ids: Tensor, generation_config: Any, **kwargs: Any) -> Tensor:
        given = {name: kwargs[name] for name in ("pixel_values", "mm_encoder_outputs") if name in kwargs}
        step = input_ids
        cache: dict[str, Any] = {}
        for _ in range(generation_config.max_length - input_ids.shape[1]):
            out = model(input_ids=step, **given, **cache, use_cache=True)
            found.append(out.logits[:, -1])
            step = found[-1][:, 3:100].argmax(-1, keepdim=True) + 3
            input_ids, given, cache = torch.cat([input_ids, step], 1), {}, {CACHE: out[CACHE]}
        return input_ids

    with apply(use.model, HOW) as run:
        ids = use.model.generate(**use.inputs, max_new_tokens=3, custom_generate=loop)
    expected = use.expected(use.inputs, ids[:, -3:], stages_of(run))
    return use.found(run, torch.stack(found, 1), expected)


def threads(_: str, apply: Apply) -> Found:
    """Two threads, each with its own prompt, on one applied model; the worse one counts."""
    uses = [Use(DEFAULT, variant="ragged", batch=batch) for batch in (2, 3)]

    @torch.no_grad()
    def work(use: Use) -> tuple[Any, Any]:
        with run.using(HOW) as part:
            return use.generate(), part

    with apply(uses[0].model, None) as run, ThreadPoolExecutor(2) as pool:
        done = list(pool.map(work, uses))
    found = [use.judged(part, out) for use, (out, part) in zip(uses, done, strict=True)]
    return max(found, key=lambda one: one.worst)


def calls(call: Called, wrap: Callable[[Use], Any] | None = None) -> Any:
    """One cell: a model, perhaps wrapped, is called."""

    def cell(_: str, apply: Apply) -> Found:
        use = fresh()
        return forward(use, apply, wrap(use) if wrap else None, call)

    return over(ONE, cell)


def plainly(use: Use, model: Any) -> Any:
    """`model(**inputs)`."""
    return model(**use.inputs)


PARALLEL = {"": "engine/test_unwrap.py::test_distributed_data_parallel_is_pruned_and_data_parallel_refused"}
EXPORTS = {"": "engine/test_copies.py::test_exports_and_traces_are_refused"}

ROWS = (
    Row("`model(**inputs)`", calls(plainly), {"": "engine/test_engine_oracle.py::test_engine_is_the_oracle"}),
    Row(
        "`model.model(**inputs)`",
        calls(without_head),
        {"": "engine/test_unwrap.py::test_the_inner_model_is_pruned_too"},
    ),
    Row("language model alone", calls(decoder_alone), {"": "engine/test_unwrap.py::test_the_decoder_alone_is_refused"}),
    Row(
        "embeddings of placeholders, with pixels",
        calls(embedded),
        {"": "engine/test_embeddings.py::test_a_large_vocabulary_is_read_in_parts"},
    ),
    Row(
        "embeddings with features in place",
        calls(in_place),
        {"": "engine/test_embeddings.py::test_features_in_place_are_refused"},
    ),
    Row(
        "`custom_generate`", over(ONE, custom), {"": "engine/test_ways_to_generate.py::test_a_function_of_the_callers"}
    ),
    Row("streamers", over(ONE, streamed), {"": "engine/test_ways_to_generate.py::test_streamers"}),
    Row("threads", over(ONE, threads), {"": "engine/test_threads.py::test_threads_do_not_meet"}),
    Row(
        "continuous batching (`generate_batch`)",
        calls(batched),
        {"": "engine/test_refusals.py::test_continuous_batching_is_refused"},
    ),
    Row("PEFT: LoRA", calls(plainly, lora), {"": "engine/test_unwrap.py::test_a_peft_model_is_pruned"}),
    Row(
        "PEFT: learned prompts",
        calls(plainly, soft_prompt),
        {"": "engine/test_unwrap.py::test_prompt_learning_is_refused"},
    ),
    Row("`DistributedDataParallel`", calls(plainly, lambda use: DistributedDataParallel(use.model)), PARALLEL),
    Row("`DataParallel`", calls(plainly, lambda use: nn.DataParallel(use.model)), PARALLEL),
    Row("`torch.export`", calls(exported), EXPORTS),
    Row("`torch.jit.trace`", calls(traced), EXPORTS),
)
