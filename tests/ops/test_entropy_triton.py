"""The Triton kernel under Triton's interpreter, which is chosen when triton is imported: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tokenprune.errors import MissingDataError, UnsupportedFeatureError
from tokenprune.ops.entropy import FLOOR, matrix_entropy
from tokenprune.scorers.matrix_entropy import MatrixEntropy

pytest.importorskip("triton")

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from tokenprune.ops.entropy_triton import _kernel
names = ("heads", "dim", "size", "step", "floor")
for heads, size in ((32, 32), (9, 16), (64, 64)):
    signature = {"states": "*bf16", "out": "*fp32"} | dict.fromkeys(names, "constexpr")
    values = dict(zip(names, (heads, 128, size, 32, 1e-10)))
    source = triton.compiler.ASTSource(_kernel, signature=signature, constexprs=values)
    for target in (80, 90):
        assert triton.compile(source, target=GPUTarget("cuda", target, 32)).asm["cubin"]
"""


def process(script: str, **environment: str) -> None:
    """Run it where triton is imported afresh."""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def tokens(heads: int, dim: int) -> torch.Tensor:
    """Ordinary tokens of several scales, one whose heads nearly agree, agree, are zero; a NaN, an infinity."""
    states = torch.randn(8, heads, dim, generator=torch.Generator().manual_seed(heads))
    states[1] *= 1e-3
    states[2] += 3 * torch.randn(heads, 1, generator=torch.Generator().manual_seed(1))
    states[3] = states[3, 0] + 1e-4 * states[2]
    states[4] = states[4, 0]
    states[5] = 0
    states[6, 1, 3] = float("nan")
    states[7, 0, 0] = float("inf")
    return states


@pytest.mark.slow
def test_the_kernel_is_the_definition(tmp_path: Path) -> None:
    # the interpreter takes seconds for a token of many heads
    states = [tokens(9, 64), tokens(28, 128)[:1].bfloat16(), tokens(32, 128)[3:4], tokens(12, 80)[1:3], tokens(2, 16)]
    torch.save(states, tmp_path / "states.pt")
    process(
        f"import torch; from tokenprune.ops.entropy_triton import trace_entropy\n"
        f"states = torch.load({str(tmp_path / 'states.pt')!r})\n"
        f"torch.save([trace_entropy(s, {FLOOR}) for s in states], {str(tmp_path / 'found.pt')!r})",
        TRITON_INTERPRET="1",
    )
    for given, found in zip(states, torch.load(tmp_path / "found.pt"), strict=True):
        expected = matrix_entropy(given.double())
        assert found.dtype == torch.float32
        assert (found.isnan() == expected.isnan()).all()
        assert (found - expected).nan_to_num().abs().max() <= 1e-4, given.shape
        if len(given) == 8:
            assert found[6:].isnan().all()
            assert found[5] == 0


@pytest.mark.slow
def test_the_kernel_compiles_for_gpus(tmp_path: Path) -> None:
    """The interpreter knows no layouts; the compiler needs no GPU. Whether the code is right there, no test says."""
    process(COMPILE, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")


def test_what_the_kernel_cannot_score_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    states = torch.randn(3, 4, 8)
    with pytest.raises(UnsupportedFeatureError, match=r"on cpu.*use backend torch"):
        matrix_entropy(states, backend="triton")
    monkeypatch.setitem(sys.modules, "tokenprune.ops.entropy_triton", None)
    with pytest.raises(MissingDataError, match="not installed; pip install triton"):
        matrix_entropy(states, backend="triton")


def test_the_scorer_has_the_choice() -> None:
    assert MatrixEntropy().backend == "torch"
    assert MatrixEntropy(backend="triton").model_dump()["backend"] == "triton"
