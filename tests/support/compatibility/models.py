"""Rows: prompts, attention and layers of the model."""

from __future__ import annotations

from typing import Any

from tests.support import matrix
from tests.support.compatibility.judging import Apply, Found, Row
from tests.support.compatibility.kinds import DEFAULT, EAGER, NONE, STATIC, Use, over
from tests.support.compatibility.methods import prunes
from tests.support.windows import wide_gemma

RATIO = {"name": "keep_ratio", "ratio": 0.4}
HOW = matrix.method([1], RATIO)


def used(**use: Any) -> Any:
    """A generation of a family, judged, for each kind of cache."""
    return lambda kind, apply: prunes(kind, apply, HOW, **use)


def wide(kind: str, apply: Apply) -> Found:
    """Gemma 3 whose windows hold every sequence here."""
    return prunes(kind, apply, HOW, family="gemma3", model=wide_gemma(100))


def flex(kind: str, apply: Apply) -> Found:
    """Refused as the method is applied: a CPU cannot run it."""
    use = Use(kind, model=Use(kind).case.build())
    use.model.get_decoder().config._attn_implementation = "flex_attention"
    with apply(use.model, HOW) as run:
        out = use.generate()
    return use.judged(run, out)


ORACLE = "engine/test_engine_oracle.py::test_engine_is_the_oracle"
EXACT_STATIC = "engine/test_static.py::test_a_static_cache_is_the_oracle"
DEEP = {DEFAULT: ORACLE, NONE: ORACLE, STATIC: EXACT_STATIC}
WINDOWS = "engine/test_static.py::test_windows"

ROWS = (
    Row("left padding", over(EAGER, used(variant="image")), DEEP),
    Row("samples with different numbers of pictures", over(EAGER, used(variant="ragged", batch=3)), DEEP),
    Row("video (Qwen2.5-VL)", over(EAGER, used(family="qwen2_5_vl", variant="video")), DEEP),
    Row("sdpa attention", over(EAGER, used(attention="sdpa")), DEEP),
    Row("eager attention", over(EAGER, used(attention="eager")), DEEP),
    Row("flex attention", over((DEFAULT,), flex), {"": "engine/test_invariants.py::test_10_flex_attention_is_refused"}),
    Row("rotary positions of three axes (Qwen2.5-VL)", over(EAGER, used(family="qwen2_5_vl")), DEEP),
    Row("late picture features, DeepStack (Qwen3-VL)", over(EAGER, used(family="qwen3_vl")), DEEP),
    Row(
        "windows shorter than the prompt (Gemma 3)",
        over(EAGER, used(family="gemma3")),
        {DEFAULT: "engine/test_cut_caches.py::test_windows_slide_on", STATIC: WINDOWS},
    ),
    Row("windows longer than the sequence (Gemma 3)", over(EAGER, wide), {DEFAULT: ORACLE, STATIC: WINDOWS}),
)
