"""What a job costs on a GPU that is stated: closed forms, no measurement.

A prefill takes its FLOPs at :data:`COMPUTE` of the GPU's peak. A decode step reads the weights of the language model
once per batch, and the KV cache of each sample, at :data:`BANDWIDTH` of the GPU's bandwidth. Not counted: reading and
decoding pictures and videos, downloads, loading the model, calibration, and padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.flops.decoder import Shape, cache_bytes_of_shapes, flops_of_shapes, head_flops

from .architecture import Architecture
from .plan import Benchmark
from .rows import Row

#: Share of the peak FLOP/s and of the bandwidth that a run is assumed to reach. Assumptions: nothing was measured.
COMPUTE, BANDWIDTH = 0.4, 0.6
#: Bytes of a value: weights and caches are in half precision.
BYTES = 2


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        flops: Peak FLOP/s of dense products in half precision.
        bandwidth: Bytes per second of its memory.
        memory: Bytes of its memory.
        source: Where these numbers are stated.
    """

    flops: float
    bandwidth: float
    memory: float
    source: str


GPUS: Mapping[str, Gpu] = {
    "a100-80gb": Gpu(312e12, 2.039e12, 80e9, "NVIDIA A100 80GB SXM datasheet"),
    "h100-80gb": Gpu(989e12, 3.35e12, 80e9, "NVIDIA H100 SXM datasheet, without sparsity"),
    "rtx-4090": Gpu(165e12, 1.008e12, 24e9, "NVIDIA Ada GPU architecture whitepaper, float32 accumulation"),
}
DEFAULT_GPU = "a100-80gb"


@dataclass(frozen=True)
class Cost:
    """The cost of one job.

    Attributes:
        memory: Bytes on the GPU: weights, caches of a batch, and the largest activations of a layer.
        seconds: Time that the GPU computes.
        prefill_flops: FLOPs of the prefill of one sample, the output head included.
    """

    memory: float
    seconds: float
    prefill_flops: int


def sample_flops(row: Row, benchmark: Benchmark, model: Architecture) -> int:
    """FLOPs of the prefill of one sample: tower, projector, decoder, selection and output head."""
    config, text = model.config, benchmark.text_tokens
    vision = model.vision(row.whole)
    decoder = flops_of_shapes(model.shapes, [count + text for count in row.per_layer], row.per_layer)
    selection = 0
    if row.pruned is not None and row.kept[-1] < row.whole:
        befores = (row.whole, *row.kept[:-1])
        for stage, (layer, before) in enumerate(zip(row.layers, befores, strict=True)):
            shape = Shape.of_stage(config, layer)
            selection += row.pruned.pruner.at(stage).flops(shape, before, before + text)
    return vision + decoder + selection + head_flops(_text(model))


def cost_of(row: Row, benchmark: Benchmark, model: Architecture, gpu: Gpu, batch: int, samples: int) -> Cost:
    """The cost of a row on a benchmark.

    Args:
        row: The row.
        benchmark: The benchmark.
        model: The model.
        gpu: The GPU.
        batch: Samples that are answered together.
        samples: Samples that are answered.
    """
    text, shapes = benchmark.text_tokens, model.shapes
    lengths = [count + text for count in row.per_layer]
    flops = sample_flops(row, benchmark, model)
    cut = row.pruned is not None and row.pruned.cut_earlier_caches
    held = [lengths[-1]] * len(lengths) if cut else lengths
    steps = benchmark.answer_tokens - 1  # the prefill gives the first token
    caches = [length + (steps + 1) / 2 for length in held]  # both costs grow linearly, so the middle step is the mean
    read = model.decoder_parameters * BYTES / batch + cache_bytes_of_shapes(shapes, _whole(caches), BYTES)
    none = [0] * len(shapes)
    step = flops_of_shapes(shapes, [1] * len(shapes), none, _whole(caches)) + head_flops(_text(model))
    decode = steps * max(read / (BANDWIDTH * gpu.bandwidth), step / (COMPUTE * gpu.flops))
    # the states that enter and leave a layer, and what its feed-forward computes between
    activations = batch * max(lengths) * (2 * shapes[0].width + 3 * shapes[0].ffn) * BYTES
    final = [length + benchmark.answer_tokens for length in lengths]
    memory = model.parameters * BYTES + batch * cache_bytes_of_shapes(shapes, final, BYTES) + activations
    return Cost(memory, samples * (flops / (COMPUTE * gpu.flops) + decode), flops)


def _whole(lengths: Sequence[float]) -> list[int]:
    return [math.ceil(length) for length in lengths]


def _text(model: Architecture) -> Any:
    return model.config.get_text_config(decoder=True)
