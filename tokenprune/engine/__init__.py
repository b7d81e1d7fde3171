"""The engine: prunes visual tokens inside an unchanged transformers model.

One forward pass, no layer run twice. At the first pruned layer K the hidden states are compacted; from K on every
layer's position embeddings, position ids and mask are compacted to the same rows, which keep their original rotary
positions. In decode the caches of pruned layers hold fewer keys; see :mod:`tokenprune.engine.cache` for why the masks
that arrive can then be trusted.
"""

from tokenprune.engine.cache import cache_bytes
from tokenprune.engine.trials.calibrate import measure_entropy, observe

__all__ = ["cache_bytes", "measure_entropy", "observe"]
