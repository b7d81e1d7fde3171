"""The bench: what it prints is what it measured, and it measures what it says. Nothing here asserts a time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.experiment.test_cli import call
from tokenprune.errors import ConfigError, UnsupportedFeatureError
from tokenprune.measure import bench, bench_table
from tokenprune.measure.latency import Spread, ratios
from tokenprune.measure.memory import peak_bytes
from tokenprune.models.device import resolve_device
from tokenprune.models.presets import PRESETS, Request, preset

CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A preset with the shape of LLaVA-1.5-7B and the size of nothing: 36 visual tokens, four layers."""
    large = preset("llava-1.5-7b")
    numbers = dict(large.numbers)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4}
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    numbers["text_config"] = numbers["text_config"] | text
    numbers["vision_config"] = numbers["vision_config"] | tower | {"image_size": 84}
    monkeypatch.setitem(PRESETS, "tiny", replace(large, name="tiny", numbers=numbers))  # type: ignore[call-overload]
    return "tiny"


def config(**changes: object) -> bench.BenchConfig:
    return bench.BenchConfig.from_dict(
        {"model": "tiny", "dtype": "float32", "rounds": 3, "decode": 2, "average_ratio": [0.6], **changes}
    )


def test_one_row_per_series_and_all_figures(tiny: str) -> None:
    result = bench.run_bench(config(methods=["entropyprune-paper", "random"], batches=[1, 3]))
    assert [found["batch"] for found in result["batches"]] == [1, 3]
    for found in result["batches"]:
        rows = found["rows"]
        assert [row["name"] for row in rows] == ["unpruned", "keep-all", "entropyprune-paper", "random"]
        unpruned, keep_all, pruned, other = rows
        # layer average 0.6 of 36, K = 2 of 4 layers: floor((4 * 21.6 - 2 * 36) / 2) = 7
        assert pruned["kept"] == other["kept"] == [7] * found["batch"]
        assert keep_all["kept"] == [36] * found["batch"]
        assert keep_all["bound"] == 1
        assert pruned["bound"] > 1
        per_token = 2 * 32 * 4  # keys and values, float32
        total = found["batch"] * per_token * 4 * 96
        assert unpruned["kv_bytes"] == keep_all["kv_bytes"] == total
        assert pruned["kv_bytes"] == total - found["batch"] * per_token * 2 * 29
        assert min(row["peak_bytes"] for row in rows) > 0
        for row in rows:
            assert row["prefill_ms"]["low"] <= row["prefill_ms"]["median"] <= row["prefill_ms"]["high"]
            assert row["step_ms"]["median"] > 0
        assert unpruned["speedup"]["median"] == unpruned["step_ratio"]["median"] == 1
        assert pruned["of_bound"] == pytest.approx(pruned["speedup"]["median"] / pruned["bound"])
        assert pruned["select_ms"]["median"] > 0
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("method", ["entropyprune", "fastv", "random"])
def test_pruning_never_needs_more_memory(tiny: str, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """With as many layers as real models have, the cache outweighs what scoring holds for a moment."""
    numbers = dict(PRESETS["tiny"].numbers)
    numbers["text_config"] = numbers["text_config"] | {"num_hidden_layers": 24, "vocab_size": 32064}
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], numbers=numbers))  # type: ignore[call-overload]
    rows = bench.run_bench(config(methods=[method], rounds=1, average_ratio=[0.33]))["batches"][0]["rows"]
    assert rows[2]["peak_bytes"] < rows[0]["peak_bytes"]


def test_a_method_that_cannot_run_says_so_and_hurts_no_other(tiny: str) -> None:
    result = bench.run_bench(config(methods=["oracle", "random"]))
    rows = result["batches"][0]["rows"]
    assert "annotation 'foreground'" in rows[2]["problem"]
    assert rows[3]["kept"] == [7]
    cells = bench_table.tables(result)[0].rows[2].cells
    assert {cell.text for cell in cells[1:]} == {"-"}
    assert any(rows[2]["problem"] in sentence for sentence in bench_table.sentences(result))


def test_a_static_cache_and_compiled_steps_are_rows_of_the_same_rounds(tiny: str) -> None:
    """All in one apply block: graphs are made in the warm-up, and none after it."""
    changes = {"cache": "static", "compile": True, "methods": ["random"], "rounds": 2}
    result = bench.run_bench(config(**changes))
    rows = result["batches"][0]["rows"]
    names = ["unpruned", "keep-all", "random 0.6"]
    titles = [cell.cells[0].text for cell in bench_table.tables(result)[0].rows]
    assert titles == [name + end for name in names for end in ("", ", compiled")]
    assert [row.get("compiled", False) for row in rows] == [False, True] * 3
    for eager, compiled in zip(rows[::2], rows[1::2], strict=True):
        assert eager["kv_bytes"] == compiled["kv_bytes"]
        assert eager["step_bound"] == compiled["step_bound"]
        assert compiled["step_cpu_ms"]["median"] > 0
    per_token = 2 * 32 * 4  # keys and values, float32
    # 96 tokens and two steps; behind layer 2 there are 69, in room for 98
    assert rows[0]["kv_bytes"] == per_token * 4 * 98
    assert rows[4]["kv_bytes"] == per_token * (2 * 98 + 2 * 98)
    assert rows[4]["kept"] == [7]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"compile": True}, "compile needs cache: static"),
        ({"compile": True, "cache": "static", "warmup": 0}, "at least one round of warmup"),
        ({"compile": True, "cache": "static", "decode": 0}, "one decode step"),
        ({"cache": "quantized"}, "dynamic"),
    ],
)
def test_what_cannot_be_compiled_is_refused(changes: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        config(**changes)


@pytest.mark.parametrize("decode", [0, 2])
@pytest.mark.parametrize("pruned", [False, True])
def test_broken_logits_are_no_result(tiny: str, monkeypatch: pytest.MonkeyPatch, pruned: bool, decode: int) -> None:
    load = bench._load_model

    def broken(*args: Any) -> bench.BenchModel:
        loaded = load(*args)
        rows: list[int] = []

        def see(module: Any, args: Any, output: torch.Tensor) -> None:
            rows[:] = [output.shape[1]]

        def spoil(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            if kwargs["input_ids"].shape[1] > 1 and (not pruned or rows[0] < kwargs["input_ids"].shape[1]):
                output.logits[:, -1, 3] = math.nan

        inner: Any = loaded.model
        inner.model.language_model.norm.register_forward_hook(see)
        inner.register_forward_hook(spoil, with_kwargs=True)
        return loaded

    monkeypatch.setattr(bench, "_load_model", broken)
    if not pruned:
        with pytest.raises(UnsupportedFeatureError, match="the logits of the timed prompts hold NaN or infinity"):
            bench.run_bench(config(rounds=1, decode=decode))
        return
    rows = bench.run_bench(config(rounds=1, decode=decode))["batches"][0]["rows"]
    assert "the logits of the timed prompts hold NaN or infinity" in rows[2]["problem"]
    assert "problem" not in rows[1]


def test_ragged_prompts_and_the_models_inputs(tiny: str) -> None:
    prompts = bench.requests(4, config(ragged=True, text_tokens=10))
    assert prompts == [Request(10, 1), Request(20, 2), Request(5, 1), Request(30, 2)]
    inputs = preset("tiny").inputs(prompts)
    image = (inputs["input_ids"] == 32000).sum(1)
    assert image.tolist() == [36, 72, 36, 72]
    assert inputs["attention_mask"].sum(1).tolist() == [46, 92, 41, 102]
    assert inputs["pixel_values"].shape[0] == 6
    rows = bench.run_bench(config(methods=["fastv"], ragged=True, batches=[4]))["batches"][0]["rows"]
    assert rows[2]["kept"] == [7, 14, 7, 14]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_place_as_many_visual_tokens_as_their_pictures_make(name: str) -> None:
    """The model itself refuses a wrong number; here on the device meta, up to the merge."""
    chosen = preset(name)
    model = chosen.build("meta")
    assert next(model.parameters()).is_meta
    inputs = chosen.inputs([Request(12), Request(30)])
    config = model.config
    image_id = getattr(config, "image_token_id", None) or config.image_token_index
    assert (inputs["input_ids"] == image_id).sum(1).tolist() == [chosen.visual_tokens] * 2


def test_random_weights_leave_the_global_generator_alone(tiny: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = preset(tiny).build(), preset(tiny).build()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_spread_and_paired_ratios() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0]) == Spread(2.5, 1.75, 3.25)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert ratios([2.0, 40.0, 6.0], [1.0, 10.0, 2.0]) == Spread(3.0, 2.5, 3.5)


def test_peak_bytes_follows_what_lives_together() -> None:
    weight = torch.ones(100, 100)

    def one_after_another() -> None:
        for _ in range(3):
            made = weight + 1
            del made

    def together() -> None:
        made = [weight + 1 for _ in range(3)]
        made.clear()

    def views() -> None:
        weight.t()[3:].unsqueeze(0).expand(4, -1, -1)

    assert peak_bytes(one_after_another, CPU) == weight.nbytes
    assert peak_bytes(together, CPU) == 3 * weight.nbytes
    assert peak_bytes(views, CPU) == 0


def test_no_such_device() -> None:
    assert resolve_device("cpu") == CPU
    for name in ("cuda:97", "tpu-9", "meta", ""):
        with pytest.raises(ConfigError, match=f"no such device: '{name}'; use one of cpu"):
            resolve_device(name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "llava-7b"], "unknown model 'llava-7b'; did you mean"),
        (["--device", "cuda:97"], "no such device: 'cuda:97'; use one of cpu"),
        (["--method", "fastw"], "unknown method 'fastw'; did you mean 'fastv'"),
        (["--batch", "0"], "batches[0]"),
        (["--average-tokens", "-3"], "average_tokens[0]"),
        (["--average-ratio", "1.5"], "average_ratio[0]"),
        (["--dtype", "float8"], "dtype"),
        (["--text-tokens", "0"], "text_tokens"),
    ],
)
def test_mistakes_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert call(monkeypatch, "bench", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error[error.index("error: ") :].strip().splitlines()) == 1
    assert "Traceback" not in error


def test_the_command_prints_a_table_and_writes_json(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("deep") / "bench.json"
    chosen = ["--model", tiny, "--average-tokens", "20", "--rounds", "2", "--decode", "1", "--output", str(path)]
    assert call(monkeypatch, "bench", *chosen) == 0
    shown = capsys.readouterr().out
    assert "entropyprune 20" in shown
    assert "keep-all" in shown
    result = json.loads(path.read_text())
    assert result["environment"]["torch"] == torch.__version__
    assert result["config"]["average_tokens"] == [20]
    assert result["batches"][0]["rows"][2]["tokens"] == 20
    table = path.with_suffix(".md").read_text()
    assert table == bench_table.markdown(result)
    assert "| entropyprune 20 | 20 |" in table  # before the language model


def test_one_round_has_no_spread(tiny: str) -> None:
    result = bench.run_bench(config(rounds=1, warmup=0))
    text = bench_table.markdown(result)
    assert "(" not in text.split("tiny (")[0]
    assert "1 round" in text
    assert "quartiles" not in text
    spread = next(column for column in bench_table.columns(3) if column.title == "times faster")
    assert "(1.000-1.000)" in spread.cell(result["batches"][0]["rows"][0]).text


def test_a_methods_file_is_timed_under_its_label(tiny: str, tmp_path: Path) -> None:
    data = tp.load_method("random").model_dump(mode="json", exclude={"label"})
    (tmp_path / "mine.yaml").write_text(json.dumps(data))
    (tmp_path / "named.yaml").write_text(json.dumps(data | {"label": "other"}))
    files = [str(tmp_path / "mine.yaml"), str(tmp_path / "named.yaml")]
    rows = bench.run_bench(config(methods=files, rounds=1, warmup=0, decode=0))["batches"][0]["rows"]
    assert [row["name"] for row in rows] == ["unpruned", "keep-all", "mine", "other"]
    assert rows[2]["kept"] == rows[3]["kept"] == [7]


@pytest.mark.parametrize("label", ["unpruned", "keep-all", "fastv"])
def test_two_rows_of_one_name_are_refused(tiny: str, tmp_path: Path, label: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(tp.load_method("random").model_dump(mode="json") | {"label": label}))
    with pytest.raises(ConfigError, match=f"two rows of the table are named '{label}'"):
        bench.run_bench(config(methods=["fastv", str(path)]))


@pytest.mark.parametrize("values", [{"average_ratio": [0.5, 0.5]}, {"average_tokens": [9, 9]}, {"batches": [1, 1]}])
def test_a_value_that_stands_twice_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="give each value once"):
        config(**values)
