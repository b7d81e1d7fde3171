"""The collapse detector: finds what was planted, and nothing where there is nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.tiny import CASES
from tokenprune.core.architecture import Architecture
from tokenprune.engine import measure_entropy
from tokenprune.errors import ConfigError, LayerError, MissingDataError
from tokenprune.run import choose_layers
from tokenprune.selectors.base import SelectorContext
from tokenprune.selectors.entropy_collapse import EntropyCollapse
from tokenprune.selectors.entropy_profile import EntropyProfile, detect_collapse
from tokenprune.selectors.fixed import Fixed
from tokenprune.selectors.relative import Relative


def profile(curves: list[list[float]]) -> EntropyProfile:
    return EntropyProfile(family="toy", num_layers=len(curves[0]), curves=tuple(map(tuple, curves)))


def noisy(shape: list[float], samples: int = 8, noise: float = 0.02, seed: int = 0) -> list[list[float]]:
    rng = random.Random(seed)
    return [[value + rng.gauss(0, noise) for value in shape] for _ in range(samples)]


@pytest.mark.parametrize("layer", [1, 2, 5, 9])
def test_a_planted_collapse_is_found_where_it_was_planted(layer: int) -> None:
    found = detect_collapse(profile(noisy([4.0] * layer + [2.5] * (10 - layer))))
    assert found.layer == layer
    assert found.relative == pytest.approx(1.5 / 4, abs=0.02)
    assert found.sentence.startswith(f"collapse before layer {layer}:")


def test_a_profile_is_a_table_in_a_notebook() -> None:
    html = profile([[3.0, 1.0], [5.0, 2.0]])._repr_html_()
    assert "Entropy of toy, 2 samples</caption>" in html
    for number in ("4.0000", "1.5000", "3.0000", "5.0000"):
        assert f">{number}</td>" in html


def test_a_rising_curve_has_none() -> None:
    """What the small from-scratch models showed: entropy from 1.3 to 1.6."""
    found = detect_collapse(profile(noisy([1.3 + 0.03 * i for i in range(10)], noise=0.001)))
    assert found.layer is None
    assert found.sentence.startswith("no collapse found: the entropy never falls")


def test_a_small_drop_is_none() -> None:
    found = detect_collapse(profile(noisy([4.0] * 5 + [3.8] * 5, noise=0.001)))
    assert found.layer is None
    assert "below 10 %" in found.sentence


def test_samples_that_disagree_are_none() -> None:
    curves = [[4.0] * layer + [1.0] * (12 - layer) for layer in (1, 4, 7, 10)]
    found = detect_collapse(profile(curves * 6))
    assert found.layer is None
    assert "agree" in found.sentence


def test_scatter_is_none() -> None:
    found = detect_collapse(profile(noisy([4.0] * 10, samples=3, noise=1.0)))
    assert found.layer is None


def test_a_collapse_in_a_real_model_is_measured() -> None:
    """Layer 1 of a tiny LLaVA is made to push every token far along one direction: entropy collapses before layer 2."""
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 4, "none", seed=1).inputs
    with torch.no_grad():
        down = model.get_decoder().layers[1].mlp.down_proj.weight
        direction = torch.randn(down.shape[0], 1, generator=torch.Generator().manual_seed(0))
        down.copy_(300 * direction @ torch.randn(1, down.shape[1], generator=torch.Generator().manual_seed(1)))
    measured = measure_entropy(model, [inputs], cache=False)
    assert len(measured.curves) == 4
    assert detect_collapse(measured).layer == 2
    plain = measure_entropy(case.build(), [inputs], cache=False)
    assert detect_collapse(plain).layer is None


def test_the_measured_curve_is_the_definition() -> None:
    case = CASES["llava"]
    model = case.build()
    batch = case.batch(model, 2, "left", seed=1)
    measured = measure_entropy(model, [batch.inputs], cache=False)
    with torch.no_grad():
        states = model(**batch.inputs, output_hidden_states=True).hidden_states
    for sample in range(2):
        for layer in range(4):
            x = states[layer][sample, batch.inputs["input_ids"][sample] == 150].double()
            x = x - x.mean(0)
            rho = x.T @ x
            values = torch.linalg.eigvals(rho / rho.trace()).real.clamp(min=1e-10)
            assert measured.curves[sample][layer] == pytest.approx(float(-(values * values.log()).sum()), abs=1e-6)


def test_a_measured_profile_is_cached_per_model_and_inputs(tmp_path: Path) -> None:
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 1, "none", seed=1).inputs
    first = measure_entropy(model, [inputs], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert measure_entropy(model, [inputs], cache=tmp_path) == first
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.down_proj.weight.mul_(2)
    assert measure_entropy(model, [inputs], cache=tmp_path) != first
    assert len(list(tmp_path.iterdir())) == 2


LLAVA_7B = Architecture("llava", 32, "llama", 4096, 11008)


def toy(family: str = "toy", curves: EntropyProfile | None = None, layers: int = 10, **more: Any) -> SelectorContext:
    return SelectorContext(family, layers, measure_entropy=None if curves is None else lambda: curves, **more)


@pytest.mark.parametrize(
    "change",
    [{"depth": 40}, {"decoder": "mistral"}, {"hidden_size": 2048}, {"intermediate_size": 14336}],
    ids=lambda change: next(iter(change)),
)
def test_a_layer_published_for_another_model_is_not_taken(change: dict[str, Any]) -> None:
    """Not with a fallback, whose reason then names both models, and not without one, which is an error."""
    other = toy("llava", architecture=replace(LLAVA_7B, **change))
    choice = EntropyCollapse(fallback=4).select(other)
    assert choice.layers == (4,)
    assert "layer 2 was published for LLaVA-1.5-7B (llava, 32 layers of llama" in choice.reason
    assert f"not for {other.architecture}; fell back to layer 4" in choice.reason
    with pytest.raises(LayerError, match=r"cannot choose a layer of 'llava': .* was published for LLaVA-1\.5-7B"):
        EntropyCollapse().select(other)


def test_nothing_published_is_taken_for_a_model_of_unknown_sizes() -> None:
    choice = EntropyCollapse(fallback=4).select(toy("llava"))
    assert choice.layers == (4,)
    assert "not for a 'llava' of unknown sizes" in choice.reason


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
@pytest.mark.parametrize("name", ["entropyprune", "entropyprune-paper", "entropyprune-reference"])
def test_a_small_model_of_a_published_family_says_that_the_layer_is_a_fallback(name: str, family: str) -> None:
    """A Qwen2.5-VL of four layers got the layer of one with 28, and the report did not say so."""
    case = CASES[family]
    model = case.build()
    with torch.no_grad(), tp.apply(model, tp.load_method(name, keep_ratio=0.5)) as run:
        model(**case.batch(model, 1, "none", seed=1).inputs)
    assert f"not for a '{family}' with 4 layers of" in str(run.report)
    if name == "entropyprune":  # which needs no layer of the language model
        assert run.choice.layers == (0,)
        assert "; took the standard way: before layer 0, share and diversity)" in str(run.report)
    else:
        assert run.choice.layers == (2,)
        assert "; fell back to layer 2)" in str(run.report)


def test_who_decides_and_says_so(tmp_path: Path) -> None:
    collapsing = profile(noisy([4.0] * 3 + [2.0] * 7))
    flat = profile([[2.0] * 10] * 4)
    assert EntropyCollapse().select(toy(curves=collapsing)).layers == (3,)
    published = EntropyCollapse(fallback=4).select(toy("llava", flat, architecture=LLAVA_7B))
    assert published.layers == (2,)
    assert published.reason.startswith("no collapse found")
    assert published.reason.endswith("took layer 2, published for LLaVA-1.5-7B")
    fallback = EntropyCollapse(fallback=4, published=False).select(toy("llava"))
    assert fallback.layers == (4,)
    assert fallback.reason == "no calibration samples were given; fell back to layer 4"
    collapsing.save(tmp_path / "p.json")
    assert EntropyCollapse(profile_file=str(tmp_path / "p.json")).select(toy()).layers == (3,)


def test_bad_profiles_and_layers_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="cannot choose a layer of 'toy'"):
        EntropyCollapse().select(toy())
    with pytest.raises(LayerError, match="fallback layer 10 is out of range"):
        EntropyCollapse(fallback=10).select(toy())
    with pytest.raises(MissingDataError, match="no entropy profile at"):
        EntropyCollapse(profile_file=str(tmp_path / "none.json")).select(toy())
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match="is not an entropy profile"):
        EntropyCollapse(profile_file=str(tmp_path / "broken.json")).select(toy())
    profile([[1.0, 2.0]]).save(tmp_path / "short.json")
    with pytest.raises(LayerError, match="of a model with 2 layers, this one has 10"):
        EntropyCollapse(profile_file=str(tmp_path / "short.json")).select(toy())
    with pytest.raises(LayerError, match="layer 10 is out of range"):
        Fixed(layers=(2, 10)).select(toy())


def test_calibration_chooses_the_layer_in_apply() -> None:
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 2, "none", seed=1).inputs
    method = tp.load_method("entropyprune-paper", keep_tokens=5)
    with torch.no_grad(), tp.apply(model, method, calibration=[inputs]) as run:
        model(**inputs)
    assert run.choice.reason.startswith("no collapse found")
    assert run.stages[0].layer == 2


def test_relative_depths() -> None:
    assert Relative(depths=(0.25, 0.5, 0.75)).select(SelectorContext("any", 32)).layers == (8, 16, 24)
    assert Relative(depths=(0.25, 0.5, 0.75)).select(SelectorContext("any", 30)).layers == (8, 15, 23)
    assert Relative(depths=(0.0,)).select(SelectorContext("any", 4)).layers == (0,)
    assert Relative(depths=(0.04, 0.5)).select(SelectorContext("any", 4)).layers == (1, 2)  # only 0 is before the model
    for depths in ((0.5, 0.25), (0.5, 0.51), (0.99,)):
        with pytest.raises(LayerError, match="depths"):
            Relative(depths=depths).select(SelectorContext("any", 4))


def test_calibration_takes_a_single_input_for_a_list_of_one() -> None:
    case = CASES["llava"]
    model = case.build()
    inputs = case.inputs(model)
    profile = measure_entropy(model, inputs, cache=False)
    assert (
        profile == measure_entropy(model, [inputs], cache=False) == measure_entropy(model, iter([inputs]), cache=False)
    )
    method = tp.load_method("entropyprune-paper", keep_tokens=5)
    assert choose_layers(model, method, calibration=inputs) == choose_layers(model, method, calibration=[inputs])
    with torch.no_grad(), tp.apply(model, method, calibration=inputs) as run:
        model(**inputs)
    assert run.stages


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ("abc", "calibration is str"),
        ([], "calibration is an empty list"),
        (8, "calibration is int"),
        ([1], "a list with int"),
        (torch.zeros(2), "is Tensor"),
    ],
)
def test_calibration_of_another_kind_is_an_error(calibration: Any, words: str) -> None:
    model, method = CASES["llava"].build(), tp.load_method("entropyprune")
    with pytest.raises(ConfigError, match=words):
        choose_layers(model, method, calibration=calibration)
    with pytest.raises(ConfigError, match=words), tp.apply(model, method, calibration=calibration):
        pass
    with pytest.raises(ConfigError, match=words):
        measure_entropy(model, calibration, cache=False)


def test_what_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="is a folder"):
        EntropyProfile.load(tmp_path)
    with pytest.raises(ConfigError, match="is not an entropy profile"):
        EntropyProfile.load("a\0b")


def test_curves_of_other_weights_do_not_decide_where_there_are_samples(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    of_file = profile(noisy([4.0] * 5 + [2.0] * 7)).model_copy(update={"family": "toy", "model": "2-these"})
    of_file.save(path)
    reader = EntropyCollapse(profile_file=str(path))
    known = SelectorContext("toy", 12, measure_entropy=lambda: profile(noisy([4.0] * 8 + [2.0] * 4)))
    assert reader.select(replace(known, fingerprint=lambda: "2-these")).layers == (5,)
    assert reader.select(replace(known, fingerprint=lambda: "2-others")).layers == (8,)
    without = replace(known, measure_entropy=None, fingerprint=lambda: "2-others")
    assert reader.select(without).layers == (5,)
