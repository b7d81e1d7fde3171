"""Other ways into `generate`: functions and folders of the caller's, pipelines, streamers. All are the oracle's."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import dynamic_module_utils

import tokenprune as tp
from tests.support import matrix
from tests.support.checkpoints import FAMILIES, pictures
from tests.support.oracle import masked, oracle_generate_logits, tolerance
from tests.support.simple import CASE, fastv, pair
from tests.support.tiny.core import CACHE

STEPS = 4


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where transformers puts the code that it copies."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    return tmp_path


def check(model: Any, run: tp.Run, inputs: dict[str, Tensor], ids: Tensor, logits: Tensor | None = None) -> None:
    """The ids are those that the masked model prefers at each step, and so are the logits, where they are known."""
    assert sum(run.report.after) < sum(run.report.before)
    new = ids[:, inputs["input_ids"].shape[1] :]
    stages = matrix.stages_of(run)
    expected = oracle_generate_logits(model, inputs, new, stages, CASE.visual_ids, CASE.appended)
    chosen = expected.gather(-1, new[..., None])[..., 0]
    allowed = expected.clone()
    allowed[..., model.generation_config.suppress_tokens or []] = -torch.inf
    assert (chosen >= allowed.max(-1).values - tolerance(expected)).all()
    if logits is not None:
        assert float((logits - expected).abs().max()) <= tolerance(expected)


@torch.no_grad()
def test_a_function_of_the_callers() -> None:
    """It replaces the loop over the steps, and calls the model itself."""
    model, inputs = pair(batch=2, padding="none")
    found: list[Tensor] = []

    def greedy(model: Any, input_ids: Tensor, logits_processor: Any, generation_config: Any, **kwargs: Any) -> Tensor:
        # since 5.23 `generate` has encoded the images already
        given = {name: kwargs[name] for name in ("pixel_values", "mm_encoder_outputs") if name in kwargs}
        cache: dict[str, Any] = {}
        step = input_ids
        for _ in range(generation_config.max_length - input_ids.shape[1]):
            out = model(input_ids=step, **given, **cache, use_cache=True)
            found.append(out.logits[:, -1])
            step = logits_processor(input_ids, out.logits[:, -1]).argmax(-1, keepdim=True)
            input_ids, given, cache = torch.cat([input_ids, step], 1), {}, {CACHE: out[CACHE]}
        return input_ids

    with tp.apply(model, fastv()) as run:
        ids = model.generate(**inputs, max_new_tokens=STEPS, custom_generate=greedy)
        ours = torch.stack(found, 1)
        usual = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    check(model, run, inputs, ids, ours)
    assert torch.equal(ids, usual)


@pytest.mark.usefixtures("modules")
@torch.no_grad()
def test_a_folder_of_the_callers(tmp_path: Path) -> None:
    """Its function gets the arguments of `generate`, and calls it."""
    model, inputs = pair(batch=2, padding="left")
    folder = tmp_path / "longer" / "custom_generate"
    folder.mkdir(parents=True)
    (folder / "generate.py").write_text(
        "def generate(model, more=0, **arguments):\n"
        "    arguments['max_new_tokens'] += more\n"
        "    return model.generate(**arguments)\n"
    )
    with tp.apply(model, fastv()) as run:
        out = model.generate(
            **inputs,
            max_new_tokens=STEPS - 1,
            more=1,
            output_logits=True,
            return_dict_in_generate=True,
            custom_generate=str(folder.parent),
            trust_remote_code=True,
        )
    check(model, run, inputs, out.sequences, torch.stack(out.logits, 1))
    assert out.sequences.shape[1] == inputs["input_ids"].shape[1] + STEPS


def test_a_pipeline() -> None:
    """The answer is that of the masked model in the same pipeline, without a cache."""
    model, processor = CASE.build(), FAMILIES["llava"].processor()
    pipe = transformers.pipeline("image-text-to-text", model=model, processor=processor)
    chat = [{"role": "user", "content": [{"type": "image", "image": pictures()[0]}, {"type": "text", "text": "w9"}]}]
    asked = {"generate_kwargs": {"max_new_tokens": 8, "do_sample": False}, "return_full_text": False}
    plain = pipe(text=chat, **asked)
    seen: list[Any] = []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with tp.apply(model, fastv()) as run:
        pruned = pipe(text=chat, **asked)
    hook.remove()
    assert run.report.before == [16]
    assert run.report.after == [5]
    with masked(model, {"input_ids": seen[0]["input_ids"]}, matrix.stages_of(run), CASE.visual_ids):
        asked["generate_kwargs"] = {**asked["generate_kwargs"], "use_cache": False}  # type: ignore[dict-item]
        expected = pipe(text=chat, **asked)
    assert pruned[0]["generated_text"] == expected[0]["generated_text"] != plain[0]["generated_text"]


@torch.no_grad()
def test_streamers(capsys: pytest.CaptureFixture[str]) -> None:
    """On the caller's thread and on one of its own, where several generations stream at once, each with its budget."""
    model, inputs = pair(batch=1, padding="none")
    tokenizer = FAMILIES["llava"].tokenizer()
    asked = {**inputs, "max_new_tokens": STEPS, "do_sample": False}
    with tp.apply(model, fastv()) as run:
        ids = model.generate(**asked, streamer=transformers.TextStreamer(tokenizer, skip_prompt=True))
        words = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])
        assert capsys.readouterr().out.split() == words.split()

        def stream(tokens: int, into: dict[int, tuple[str, tp.Run, Tensor]]) -> None:
            streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
            done: list[Any] = []

            def work() -> None:
                with run.using(run.method, keep_tokens=tokens) as part:
                    done.extend([model.generate(**asked, streamer=streamer), part])

            worker = threading.Thread(target=work)
            worker.start()
            text = "".join(streamer)
            worker.join()
            into[tokens] = text, done[1], done[0]

        found: dict[int, tuple[str, tp.Run, Tensor]] = {}
        readers = [threading.Thread(target=stream, args=(tokens, found)) for tokens in (1, 5, 9)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    check(model, run, inputs, ids)
    for tokens, (text, part, answer) in found.items():
        assert part.report.after == [tokens]
        check(model, part, inputs, answer)
        assert text.split() == tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :]).split()
    assert len({text for text, *_ in found.values()}) > 1
    assert found[5][2].equal(ids)
