"""Settings that authors published for one model: which entry is chosen, what it changes, and every shipped entry."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedConfig

import tokenprune as tp
from tokenprune.budgets.base import Schedule
from tokenprune.budgets.keep import KeepCount, KeepRatio
from tokenprune.budgets.layer_average import LayerAverage
from tokenprune.core import plugins
from tokenprune.core.architecture import Architecture
from tokenprune.errors import ConfigError
from tokenprune.methods import named
from tokenprune.methods.named import NamedMethod, Shipped, shipped_method
from tokenprune.methods.published import Published, choose
from tokenprune.models.presets import PRESETS
from tokenprune.ops.recycle import cluster_count
from tokenprune.selectors.base import SelectorContext
from tokenprune.selectors.entropy_collapse import PUBLISHED

SHIPPED = [method for method in tp.list_methods() if method.distribution == "tokenprune-mllm" and method.published]
ENTRIES = [
    pytest.param(method, entry, id=f"{method.name}-{entry.model}") for method in SHIPPED for entry in method.published
]

PRE_MODEL = {
    "apet",
    "cdpruner",
    "divprune",
    "dycoke",
    "hiprune",
    "holov",
    "otprune",
    "prunesid",
    "scope",
    "visionzip",
    "vispruner",
    "vscan",
}

ENTRY: dict[str, Any] = {"model": "M", "family": "llava", "source": "owner/repository 1234567, file, lines 1-2"}


def entry(**fields: Any) -> Published:
    return Published.from_dict({**ENTRY, **fields})


def methods_with(shipped: NamedMethod, settings: Published) -> list[tp.Method]:
    """The method with the settings, once per published budget."""
    fields = settings.over(shipped.data["method"])
    budgets = settings.budgets or (fields["budget"],)
    return [tp.Method.from_dict({**fields, "budget": budget}) for budget in budgets]


# ---- every shipped entry ---------------------------------------------------------------------------------------------


def test_the_methods_that_state_settings_for_models_have_them() -> None:
    assert {method.name for method in SHIPPED} == {
        "apet",
        "cdpruner",
        "clse",
        "divprune",
        "dycoke",
        "entropyprune",
        "entropyprune-paper",
        "entropyprune-reference",
        "fastv",
        "flashvid",
        "framefusion",
        "hiprune",
        "holov",
        "otprune",
        "prunesid",
        "priortr",
        "pyramiddrop",
        "scope",
        "sparsevlm",
        "v2drop",
        "visionzip",
        "vispruner",
        "vscan",
        "vtw",
    }


def test_published_settings_renumber_where_the_authors_code_does() -> None:
    """All methods of LLaVA that prune before the language model, and two of three inside it; FastV and VTW do not."""
    renumbered = {method.name for method in SHIPPED for entry in method.published if "positions" in entry.method}
    assert renumbered == {*PRE_MODEL, "flashvid", "pyramiddrop", "sparsevlm"}
    assert all(tp.load_method(name).positions == "original" for name in renumbered)


@pytest.mark.parametrize(("shipped", "settings"), ENTRIES)
def test_a_shipped_entry_makes_valid_methods(shipped: NamedMethod, settings: Published) -> None:
    assert settings.settings, "it says nothing"
    for method in methods_with(shipped, settings):
        assert tp.Method.from_dict(method.model_dump(mode="json")) == method
    assert shipped.method(model=settings.model).budget == methods_with(shipped, settings)[0].budget


@pytest.mark.parametrize(("shipped", "settings"), ENTRIES)
def test_a_shipped_entry_fits_models_that_there_are(shipped: NamedMethod, settings: Published) -> None:
    assert settings.family in plugins.registry("adapters").names()
    assert settings.decoder is None or settings.decoder in CONFIG_MAPPING


@pytest.mark.parametrize(("shipped", "settings"), ENTRIES)
def test_the_layers_of_a_shipped_entry_exist(shipped: NamedMethod, settings: Published) -> None:
    for depth in settings.depth or (32,):
        for method in methods_with(shipped, settings):
            if shipped.name == "vtw":  # it needs calibration samples
                assert method.layers.model_dump()["start"] < depth
                continue
            layers = method.layers.select(SelectorContext(settings.family, depth)).layers
            method.pruner.check(layers)
            counts = method.budget.keep(576, Schedule(layers, depth))
            assert len(counts) == len(layers)


@pytest.mark.parametrize(("shipped", "settings"), ENTRIES)
def test_an_entry_that_names_layers_states_the_depth_of_their_stack(shipped: NamedMethod, settings: Published) -> None:
    """A layer's number means something else at another depth, and was searched at one width."""
    merged = settings.over(shipped.data["method"])
    if merged["layers"] != {"name": "fixed", "layers": [0]}:
        assert settings.depth, "it fits decoders of any depth"
        assert settings.hidden_size, "it fits decoders of any width"
        assert settings.intermediate_size, "it fits decoders of any width"
    if any(number >= 0 for number in tower_layers(merged["pruner"])):  # -2 means the same in every tower
        assert settings.tower_depth, "it fits towers of any depth"


def tower_layers(pruner: Any) -> list[int]:
    """The numbers of the tower's layers that a pruner's fields name."""
    if isinstance(pruner, list):
        return [number for item in pruner for number in tower_layers(item)]
    if not isinstance(pruner, dict):
        return []
    named = [value for name, value in pruner.items() if name == "layer" or name.endswith("_layer")]
    return [*named, *(number for value in pruner.values() for number in tower_layers(value))]


CHANGES: dict[str, dict[str, Any]] = {
    "depth": {"text_config": {"num_hidden_layers": 4}},
    "width": {"text_config": {"hidden_size": 64}},
    "MLP": {"text_config": {"intermediate_size": 64}},
    "tower": {"vision_config": {"num_hidden_layers": 2, "depth": 2}},
}
"""What makes another model of one for which something was published."""


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("shipped", "settings"), ENTRIES)
def test_a_shipped_entry_refuses_a_model_of_other_sizes(shipped: NamedMethod, settings: Published, change: str) -> None:
    """If it states that size at all; those of VisionZip and its kin only change positions."""
    sizes = {
        "depth": settings.depth,
        "width": settings.hidden_size,
        "MLP": settings.intermediate_size,
        "tower": settings.tower_depth,
    }
    config = config_of(settings)
    assert shipped.settings_for(config) == settings
    for part, values in CHANGES[change].items():
        for name, value in values.items():
            if hasattr(getattr(config, part), name):
                setattr(getattr(config, part), name, value)
    if not sizes[change]:
        assert shipped.settings_for(config) == settings
        return
    with pytest.raises(ConfigError, match=f"has no settings that were published for a '{settings.family}'"):
        shipped.settings_for(config)


def config_of(settings: Published) -> Any:
    """A config of the sizes that an entry states."""
    config = CONFIG_MAPPING[settings.family](
        **({"text_config": {"model_type": settings.decoder}} if settings.decoder else {})
    )
    text, vision = config.get_text_config(decoder=True), config.vision_config
    for name, sizes in (
        ("num_hidden_layers", settings.depth),
        ("hidden_size", settings.hidden_size),
        ("intermediate_size", settings.intermediate_size),
    ):
        if sizes:
            setattr(text, name, sizes[-1])
    if settings.tower_depth:
        setattr(vision, "depth" if hasattr(vision, "depth") else "num_hidden_layers", settings.tower_depth[0])
    return config


@pytest.mark.parametrize(
    ("preset", "model"),
    [
        ("llava-1.5-7b", "LLaVA-1.5-7B"),
        ("llava-1.5-13b", "LLaVA-1.5-13B"),
        ("llava-next-7b", "LLaVA-1.6-Vicuna-7B"),
        ("qwen2.5-vl-7b", "Qwen2.5-VL-7B"),
    ],
)
def test_every_entry_for_a_model_fits_its_published_config(preset: str, model: str) -> None:
    found = [entry for shipped in SHIPPED for entry in shipped.published if entry.model == model]
    assert len(found) >= 2
    assert all(entry.fits(Architecture.of(PRESETS[preset].config())) for entry in found)


def test_every_entry_without_a_size_in_its_name_fits_both_sizes() -> None:
    for preset in ("llava-1.5-7b", "llava-1.5-13b"):
        for shipped in SHIPPED:
            for entry in shipped.published:
                assert entry.model != "LLaVA-1.5" or entry.fits(Architecture.of(PRESETS[preset].config()))


@pytest.mark.parametrize(("shipped", "settings"), ENTRIES)
def test_the_source_of_a_shipped_entry_is_a_commit_and_a_file(shipped: NamedMethod, settings: Published) -> None:
    assert re.match(r"[\w-]+/[\w-]+ [0-9a-f]{7}, [\w*/.-]+", settings.source)


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda method: method.name)
def test_no_two_entries_fit_the_same_model(shipped: NamedMethod) -> None:
    """Otherwise the order of the entries would choose in silence."""
    for one, other in combinations(shipped.published, 2):
        assert one.family != other.family or (one.depth and other.depth and not set(one.depth) & set(other.depth)), (
            one.model,
            other.model,
        )


@pytest.mark.parametrize("name", ["entropyprune", "entropyprune-paper"])
def test_the_entropyprunes_have_the_same_entries(name: str) -> None:
    assert shipped_method(name).published == shipped_method("entropyprune-reference").published


def test_published_settings_of_entropyprune_are_the_papers_method() -> None:
    """Fixed layers and queries: nothing is left to verify."""
    for settings in shipped_method("entropyprune").published:
        ours, paper = (tp.load_method(name, model=settings.model) for name in ("entropyprune", "entropyprune-paper"))
        assert ours.model_copy(update={"label": None}) == paper.model_copy(update={"label": None})


# ---- the published numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "threshold"), [("llava-1.5-7b", 0.003), ("llava-1.5-13b", 0.0005), ("llava-next-7b", 0.0001)]
)
def test_the_thresholds_of_vtw(preset: str, threshold: float) -> None:
    """lzhxmu/VTW, lmms-evaluation/lmms_eval/__main__.py, lines 388-396."""
    method = tp.load_method("vtw", model=PRESETS[preset].config())
    assert method.layers.model_dump() == {**tp.load_method("vtw").layers.model_dump(), "threshold": threshold}


def test_sparsevlm_prunes_at_the_same_layers_at_every_depth() -> None:
    depths = {"llava-1.5-7b": 32, "llava-1.5-13b": 40}
    for preset, depth in depths.items():
        method = tp.load_method("sparsevlm", model=PRESETS[preset].config())
        assert method.layers.select(SelectorContext("llava", depth)).layers == (3, 7, 16)
    assert tp.load_method("sparsevlm").layers.select(SelectorContext("llava", 40)).layers == (4, 9, 20)


def test_the_budgets_of_sparsevlm_are_the_published_counts_and_their_clusters() -> None:
    """Gumpest/SparseVLMs, score.py, lines 11-14."""
    published = [(300, 200, 110), (303, 110, 36), (238, 48, 26), (66, 30, 17)]
    (settings,) = shipped_method("sparsevlm").published
    for kept, budget in zip(published, settings.budgets, strict=True):
        before = 576
        for without_clusters, count in zip(kept, budget["tokens"], strict=True):
            assert count - cluster_count(before, count) == without_clusters
            before = count


@pytest.mark.parametrize(
    ("preset", "layer", "visual", "counts"),
    [
        ("llava-1.5-7b", 2, 576, (166,)),  # int((32 * 192 - 2 * 576) / 30)
        ("llava-next-7b", 2, 2880, (320, 149)),  # exactly 320; int((32 * 320 - 2 * 2880) / 30)
        ("qwen2.5-vl-7b", 1, 1000, (222, 92)),
    ],
)
@pytest.mark.parametrize("name", ["entropyprune", "entropyprune-paper", "entropyprune-reference"])
def test_the_budgets_of_entropyprune(name: str, preset: str, layer: int, visual: int, counts: tuple[int, ...]) -> None:
    config = PRESETS[preset].config()
    shipped, depth = shipped_method(name), Architecture.of(config).depth
    kept = []
    for method in methods_with(shipped, shipped.settings_for(config)):
        layers = method.layers.select(SelectorContext(config.model_type, depth)).layers
        assert layers == (layer,)
        kept += method.budget.keep(visual, Schedule(layers, depth))
    assert tuple(kept) == counts


def test_the_layers_of_entropyprune_are_those_of_its_selector() -> None:
    """The selector repeats model, layer and fit."""
    stated = [
        (settings.model, settings.method["layers"]["layers"], settings.condition)
        for settings in shipped_method("entropyprune").published
    ]
    assert stated == [(item.model, [item.layer], item.fit.condition) for item in PUBLISHED]


def test_vscan_on_qwen() -> None:
    """Windows of 4 x 4 tokens, the first block with attention to the whole image, the last block, the middle layer."""
    config = PRESETS["qwen2.5-vl-7b"].config()
    method = tp.load_method("vscan", model=config)
    first = method.pruner.at(0).model_dump()
    assert first["window_size"] == 4
    assert first["local_layer"] == config.vision_config.fullatt_block_indexes[0]
    assert first["layer"] % config.vision_config.depth == config.vision_config.depth - 1
    assert method.layers.select(SelectorContext("qwen2_5_vl", 28)).layers == (0, 14)
    kept = int(0.167 * 1000)
    assert method.budget.keep(1000, Schedule((0, 14), 28)) == (kept, int(0.333 * kept))


def test_the_names_of_entropyprune_say_which_one_is_which() -> None:
    names = ("entropyprune", "entropyprune-paper", "entropyprune-reference")
    ours, paper, code = (shipped_method(name).description for name in names)
    assert "Calibration samples verify where and how" in ours
    assert "entropyprune-paper is the paper to the letter, entropyprune-reference the published code" in ours
    assert "to the letter of its paper" in paper
    assert "entropyprune-reference reproduces the figures of the published code" in paper
    assert "as its published code computes it" in code


@pytest.mark.parametrize(("preset", "layer"), [("llava-1.5-7b", 8), ("llava-next-7b", 8), ("qwen2.5-vl-7b", 15)])
def test_the_object_layer_of_hiprune(preset: str, layer: int) -> None:
    """Published as 9 and 16, counted from 1."""
    pruner = tp.load_method("hiprune", model=PRESETS[preset].config()).pruner.model_dump()
    assert (pruner["object_layer"], pruner["alpha"]) == (layer, 0.1)


# ---- choosing --------------------------------------------------------------------------------------------------------


def test_without_a_model_the_settings_are_the_methods_own() -> None:
    for shipped in SHIPPED:
        own = tp.Method.from_dict({"label": shipped.name, **shipped.data["method"]})
        assert tp.load_method(shipped.name) == own == tp.load_method(shipped.name, model=None)


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({}, True),
        ({"depth": 32}, True),
        ({"decoder": "llama"}, True),
        ({"depth": 40}, False),
        ({"decoder": "mistral"}, False),
        ({"family": "llava_next"}, False),
        ({"depth": [24, 32]}, True),
        ({"depth": [24, 40]}, False),
        ({"hidden_size": 4096, "intermediate_size": 11008, "tower_depth": 24}, True),
        ({"hidden_size": 5120}, False),
        ({"intermediate_size": 14336}, False),
        ({"tower_depth": 27}, False),
    ],
)
def test_an_entry_fits_by_family_decoder_and_sizes(fields: dict[str, Any], fits: bool) -> None:
    assert entry(**fields).fits(Architecture("llava", 32, "llama", 4096, 11008, 24)) is fits


def test_a_size_that_the_config_does_not_state_fits_nothing() -> None:
    assert not entry(hidden_size=4096).fits(Architecture("llava", 32, "llama"))
    assert entry().fits(Architecture("llava", 32, "llama"))


def test_the_decoder_tells_models_of_the_same_family_and_depth_apart() -> None:
    config = PRESETS["llava-next-7b"].config()
    assert choose(shipped_method("vtw").published, config, "vtw").model == "LLaVA-1.6-Vicuna-7B"
    mistral = CONFIG_MAPPING["llava_next"](text_config={"model_type": "mistral", "num_hidden_layers": 32})
    with pytest.raises(
        ConfigError, match=r"a 'llava_next' with 32 layers of 'mistral', .*; it has some for LLaVA-1.5-7B"
    ):
        tp.load_method("vtw", model=mistral)


def test_a_model_its_config_a_wrapper_and_a_name_mean_the_same() -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(PRESETS["llava-1.5-7b"].config())
    wrapper = SimpleNamespace(config=model.config)
    methods = [tp.load_method("hiprune", model=given) for given in (model, model.config, wrapper, "llava-1.5")]
    assert methods == [methods[0]] * 4
    assert methods[0].budget == KeepCount(tokens=192)


@pytest.mark.parametrize(
    ("name", "model", "words"),
    [
        ("vtw", "LLaVA-1.5", "no settings that were published for 'LLaVA-1.5'; it has some for LLaVA-1.5-7B"),
        ("random", "LLaVA-1.5", "published for 'LLaVA-1.5'; without a model it has its own settings"),
        ("vtw", 5, "expected a transformers model, its config, or a model's name in the method's file, got int"),
        ("vtw", PreTrainedConfig(), "got PreTrainedConfig"),
    ],
)
def test_nothing_published_is_an_error(name: str, model: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        tp.load_method(name, model=model)
    assert "\n" not in str(caught.value)


# ---- what wins -------------------------------------------------------------------------------------------------------


def test_a_budget_that_is_given_wins() -> None:
    model = "LLaVA-1.6-Vicuna-7B"
    assert tp.load_method("entropyprune", model=model).budget == KeepCount(tokens=320)
    assert tp.load_method("entropyprune", keep_ratio=0.5, model=model).budget == KeepRatio(ratio=0.5)
    assert tp.load_method("entropyprune", keep_ratio=0.5, model=model).layers.model_dump() == {"layers": (2,)}


def test_a_number_means_the_same_for_every_model() -> None:
    """320 tokens are a layer average with and without a model, although the published budget is a count."""
    with_model = tp.load_method("entropyprune", average_tokens=320, model="LLaVA-1.6-Vicuna-7B")
    assert with_model.budget == tp.load_method("entropyprune", average_tokens=320).budget == LayerAverage(tokens=320)


def test_a_mapping_changes_fields_and_one_with_a_name_replaces() -> None:
    method = {"layers": {"name": "vtw", "start": 7}, "pruner": "topk", "budget": {"name": "drop_all"}}
    changed = entry(method={"layers": {"threshold": 1.0}}).over(method)
    assert changed == {**method, "layers": {"name": "vtw", "start": 7, "threshold": 1.0}}
    replaced = entry(method={"layers": {"name": "fixed", "layers": [1]}, "other": 3}).over(method)
    assert replaced == {**method, "layers": {"name": "fixed", "layers": [1]}, "other": 3}
    budgets = [{"name": "keep_count", "tokens": 1}, {"name": "keep_count", "tokens": 2}]
    assert entry(budgets=budgets).over(method) == {**method, "budget": budgets[0]}
    assert method["layers"] == {"name": "vtw", "start": 7}, "the method's own fields were changed"


def test_the_items_of_a_list_are_changed_one_by_one() -> None:
    stages = [{"name": "a", "x": 1}, {"name": "b", "inner": {"name": "c", "y": 1, "z": 2}}, {"name": "d"}]
    method = {"pruner": {"name": "stages", "pruners": stages}, "layers": {"name": "fixed", "layers": [1, 2]}}
    changes = {"pruner": {"pruners": [{"x": 3}, {"inner": {"z": 4}}, {"name": "e"}]}, "layers": {"layers": [3, 4]}}
    assert entry(method=changes).over(method) == {
        "pruner": {
            "name": "stages",
            "pruners": [{"name": "a", "x": 3}, {"name": "b", "inner": {"name": "c", "y": 1, "z": 4}}, {"name": "e"}],
        },
        "layers": {"name": "fixed", "layers": [3, 4]},
    }
    other_length = {"pruner": {"pruners": [{"name": "a"}]}}
    assert entry(method=other_length).over(method)["pruner"] == {"name": "stages", "pruners": [{"name": "a"}]}


def test_framefusion_on_qwen() -> None:
    """thu-nics/FrameFusion, script/playground/example_qwen2vl.py."""
    own = tp.load_method("framefusion").model_dump(mode="json")
    changed = tp.load_method("framefusion", model="Qwen2-VL-7B").model_dump(mode="json")
    first, second, last = changed["pruner"]["pruners"]
    assert first == second == {**own["pruner"]["pruners"][0], "threshold": 0.5}
    assert last["scorer"] == {**own["pruner"]["pruners"][2]["scorer"], "queries": 4}
    assert (changed["layers"], changed["budget"]) == (own["layers"], own["budget"])


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "x.yaml: published: Input should be a list, got {}"),
        ([{"model": "M"}], "published[0].family: Field required; published[0].source: Field required"),
        ([{**ENTRY, "dept": 3}], "published[0].dept: unknown key, did you mean 'depth'?"),
        ([{**ENTRY, "depth": 0}], "published[0].depth[0]: Input should be greater than 0"),
        ([{**ENTRY, "method": {"budget": {}}}], "published[0].method: published settings have no 'budget' here"),
        ([ENTRY, {**ENTRY, "model": "m"}], "published names the model 'm' twice"),
        ([3], "published[0]: Input should be a mapping, got 3"),
    ],
)
def test_a_wrong_entry_is_one_line(data: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        Shipped.from_dict({"method": {}, "published": data}, "x.yaml")
    assert "\n" not in str(caught.value)


def test_a_shipped_file_with_a_wrong_entry_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("method: {}\npublished:\n- {...}\n".replace("{...}", str({**ENTRY, "dept": 3})))
    read = named._read("x", path, "theirs")
    assert read.problem == "x.yaml: line 3: published[0].dept: unknown key, did you mean 'depth'?"
    path.write_text(yaml.safe_dump({"method": {}, "published": [ENTRY]}))
    read = named._read("x", path, "theirs")
    assert read.problem is None
    assert read.published == (entry(),)


def test_a_file_of_ones_own_can_have_entries(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    method = tp.load_method("fastv").model_dump(mode="json", exclude={"label"})
    published = [{**ENTRY, "method": {"layers": {"layers": [9]}}}]
    path.write_text(yaml.safe_dump({"description": "Mine.", "method": method, "published": published}))
    assert tp.load_method(path, model="m").layers.model_dump() == {"layers": (9,)}
    assert tp.load_method(path).layers.model_dump() == {"layers": (2,)}
    with pytest.raises(ConfigError, match=r"mine.yaml' has no settings that were published for 'n'"):
        tp.load_method(path, model="n")
    path.write_text(yaml.safe_dump({"method": method, "published": [{}]}))
    with pytest.raises(ConfigError, match=r"mine.yaml: line \d+: published\[0\].family: Field required; "):
        tp.load_method(path)
