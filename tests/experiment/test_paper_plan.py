"""The plans of the paper's tables: complete, at the layer averages that follow from the definitions, and priced."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.paper.reproduction import command, cost, plan
from benchmarks.paper.reproduction.architecture import architecture
from benchmarks.paper.reproduction.jobs import Plan, plan_of
from benchmarks.paper.reproduction.rows import Row
from tokenprune import load_method
from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.measure.estimate import estimate

ROOT = Path(__file__).parents[2]
#: Layers of the decoders, and `model_type`, for the count below.
MODELS = {
    "llava-1.5-7b": ("llava", 32),
    "llava-next-7b": ("llava_next", 32),
    "qwen2.5-vl-7b": ("qwen2_5_vl", 28),
    "video-llava-7b": ("video_llava", 32),
}


@cache
def made(name: str) -> Plan:
    table = plan.read_table(name)
    return plan_of(name, table, architecture(table.architecture), Path("results"))


def raw(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def published_budgets(method: str, family: str, depth: int) -> int:
    """Budgets of the first published entry that fits, counted in the method's own file."""
    for entry in raw(f"tokenprune/methods/{method}.yaml")["published"]:
        depths = entry.get("depth", depth)
        if entry["family"] == family and depth in (depths if isinstance(depths, list) else [depths]):
            return len(entry.get("budgets", [])) or 1
    raise AssertionError(f"{method} has nothing published for {family}")


def expected_rows(name: str) -> int:
    """All rows that the files ask for, possible or not."""
    table = raw(f"benchmarks/paper/tables/{name}.yaml")
    seeds = [len(entry.get("seeds", [0])) for entry in table["methods"]]
    also = sum(len(item["method"].get("seeds", [0])) for item in table.get("also", []))
    published = sum(published_budgets(method, *MODELS[name]) for method in table.get("published", []))
    return 1 + len(table["budgets"]) * sum(seeds) + also + published


@pytest.mark.slow
@pytest.mark.each("name")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_dry_run_prints_every_job(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(command, "architecture", lambda _: made(name).model)
    assert command.main("", [name, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    jobs = [line.removeprefix("job ").partition(":")[0] for line in lines if line.startswith("job ")]
    impossible = [line for line in lines if line.startswith("no job ")]
    benchmarks = raw(f"benchmarks/paper/tables/{name}.yaml")["benchmarks"]
    assert len(jobs) == len(set(jobs)) == len(benchmarks) * (expected_rows(name) - len(impossible))
    assert all("a layer average of" in line for line in impossible), "only budgets rule rows out"
    assert {job.rpartition("/")[2] for job in jobs} == set(benchmarks)
    assert "MORE THAN THE GPU HAS" not in "\n".join(lines)
    total = sum(float(line.partition(" GB")[2].split()[1]) for line in lines if line.startswith("job ")) / 60
    printed = float(lines[-1].split(", ")[1].split()[0])
    assert total == pytest.approx(printed, rel=0.02, abs=0.1 + 0.05 / 60 * len(jobs))


def test_the_count_above_knows_all_tables() -> None:
    assert plan.table_names() == sorted(MODELS)


def rows(name: str) -> dict[str, Row]:
    return {row.name: row for row in made(name).rows}


@pytest.mark.slow
def test_budgets_of_the_field_are_not_equal() -> None:
    """By hand, from the schedules: layers that see so many tokens each."""
    found = {name: row.average for name, row in rows("llava-1.5-7b").items() if row.kind == "published"}
    by_hand = {
        "clse/published-keep_schedule-330-210-62": (576 + 10 * 330 + 10 * 210 + 11 * 62) / 32,
        "clse/published-keep_schedule-220-140-41": (576 + 10 * 220 + 10 * 140 + 11 * 41) / 32,
        "clse/published-keep_schedule-110-70-20": (576 + 10 * 110 + 10 * 70 + 11 * 20) / 32,
        "priortr/published-keep_count-192": (3 * 576 + 29 * 192) / 32,
        "priortr/published-keep_count-128": (3 * 576 + 29 * 128) / 32,
        "priortr/published-keep_count-64": (3 * 576 + 29 * 64) / 32,
        "v2drop/published-keep_schedule-288-144-1": (3 * 576 + 14 * 288 + 5 * 144 + 10 * 1) / 32,
        "apet/published-keep_schedule-96-32": 64,
    }
    assert {name: found[name] for name in by_hand} == pytest.approx(by_hand)
    assert [round(found[name]) for name in list(by_hand)[:7]] == [208, 145, 81, 228, 170, 112, 203]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava-1.5-7b", "qwen2.5-vl-7b"])
def test_equal_rows_spend_what_the_budget_says_and_no_more(name: str) -> None:
    table, found = made(name).table, [row for row in made(name).rows if row.kind == "equal"]
    for budget in table.budgets:
        ((keyword, number),) = budget.items()
        target = number if keyword == "average_tokens" else number * table.visual_tokens
        label = f"{keyword.replace('_', '-')}-{number:g}"
        averages = [row.average for row in found if row.budget.partition("-seed-")[0] == label]
        assert len(averages) > 15
        assert max(averages) <= target + 1e-9
        assert min(averages) > 0.93 * target


@pytest.mark.slow
def test_the_paper_keeps_166_98_and_29_tokens() -> None:
    found = rows("llava-1.5-7b")
    assert [found[f"entropyprune-paper/average-tokens-{n}"].kept for n in (192, 128, 64)] == [(166,), (98,), (29,)]
    assert found["entropyprune-paper/average-tokens-128"].layers == (2,)
    assert found["entropyprune/average-tokens-128"].calibrated


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fastv", "clse", "entropyprune-tower"])
def test_flops_are_those_of_tokenprune_flops(method: str) -> None:
    row = rows("llava-1.5-7b")[f"{method}/average-tokens-128"]
    benchmark = plan.read_catalogue()["gqa"]
    model = made("llava-1.5-7b").model
    pruned = row.pruned
    assert pruned is not None
    wanted = estimate("llava-1.5-7b", pruned, benchmark.text_tokens)
    head = 2 * 4096 * 32064
    assert cost.sample_flops(row, benchmark, model) == wanted["flops_pruned"] + head
    unpruned = rows("llava-1.5-7b")["unpruned/all"]
    assert cost.sample_flops(unpruned, benchmark, model) == wanted["flops_unpruned"] + head


@pytest.mark.slow
def test_time_and_memory_by_hand() -> None:
    """LLaVA-1.5-7B has 7.06e9 parameters; a cache of a token has 32 layers x 2 x 4096 values."""
    gpu = cost.Gpu(flops=1e12, bandwidth=1e9, memory=1e12, source="made up")
    row, model = rows("llava-1.5-7b")["unpruned/all"], made("llava-1.5-7b").model
    short = plan.read_catalogue()["gqa"].model_copy(update={"answer_tokens": 1})
    one = cost.cost_of(row, short, model, gpu, batch=4, samples=10)
    assert one.seconds == pytest.approx(10 * one.prefill_flops / 0.4e12)
    longer = short.model_copy(update={"answer_tokens": 3})
    three = cost.cost_of(row, longer, model, gpu, batch=4, samples=10)
    token = 32 * 2 * 4096 * 2
    read = 2 * (model.decoder_parameters * 2 / 4 + (576 + short.text_tokens + 2) * token)
    assert three.seconds - one.seconds == pytest.approx(10 * read / 0.6e9, rel=0.01)
    weights = 7.0634e9 * 2
    caches = 4 * (576 + short.text_tokens + 1) * token
    activations = 4 * (576 + short.text_tokens) * (2 * 4096 + 3 * 11008) * 2
    assert one.memory == pytest.approx(weights + caches + activations, rel=1e-3)


@pytest.mark.slow
def test_the_arguments_of_a_job_state_its_row() -> None:
    jobs = {job.name: job for job in made("llava-1.5-7b").jobs}
    args = jobs["clse/published-keep_schedule-220-140-41/gqa"].model_args
    assert args == (
        "pretrained=llava-hf/llava-1.5-7b-hf,method=clse,published=true,"
        'budget={"name": "keep_schedule", "tokens": [220, 140, 41]},dtype=float16'
    )
    assert "seed=2" in jobs["random/average-tokens-64-seed-2/gqa"].model_args
    assert jobs["fastv/average-tokens-128/gqa"].model_args.split(",")[1:4] == [
        "method=fastv",
        "average_tokens=128",
        "published=true",
    ]
    row = jobs["fastv/average-tokens-128/gqa"].row
    assert row.pruned == load_method("fastv", model="LLaVA-1.5-7B", average_tokens=128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": [{"tokens": 128}]}, "a budget is one of average_tokens"),
        ({"budgets": [{"average_tokens": 128, "keep_tokens": 3}]}, "a budget is one of average_tokens"),
        ({"methods": [{"nam": "fastv"}]}, "nam"),
        ({"benchmarks": ["gqa", "gqa"]}, "names 'gqa' twice"),
        ({"benchmarks": ["gaq"]}, "there is no benchmark 'gaq'"),
        ({"architecture": "llava-1.5-8b"}, "there is no architecture 'llava-1.5-8b'"),
        ({"methods": [{"name": "fastw"}]}, "unknown method 'fastw'"),
        ({"published": ["dart"]}, "no settings that were published"),
        ({"methods": [{"name": "fastv", "seeds": [1]}]}, None),
        ({"methods": [{"name": "fastv"}, {"name": "fastv"}]}, "two jobs"),
    ],
)
def test_a_wrong_table_is_one_clear_error(
    change: dict[str, Any], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {
        **raw("benchmarks/paper/tables/llava-1.5-7b.yaml"),
        "benchmarks": ["gqa"],
        "budgets": [{"average_tokens": 128}],
        "methods": [{"name": "fastv"}],
        "published": [],
        **change,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    monkeypatch.setattr(plan, "TABLES", tmp_path)
    if message is None:  # a method without random numbers has no seeds: the row cannot be, and says so
        table = plan.read_table("small")
        found = plan_of("small", table, architecture(table.architecture), tmp_path)
        assert [item.why for item in found.cannot] == ["method 'fastv' has no scorer with a seed; leave out 'seeds'"]
        return
    with pytest.raises(TokenPruneError, match=message) as caught:
        command.main("", ["small", "--dry-run"])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_yaml_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.yaml").write_text("title: [", encoding="utf-8")
    monkeypatch.setattr(plan, "TABLES", tmp_path)
    with pytest.raises(ConfigError, match="is not valid YAML"):
        plan.read_table("broken")
    with pytest.raises(ConfigError, match="there is no table 'llava'; there are broken"):
        plan.read_table("llava")
