"""The engine: prunes visual tokens inside an unchanged transformers model.

One forward pass, no layer run twice. At the first pruned layer K the hidden states are compacted; from K on every
layer's position embeddings, position ids and mask are compacted to the same rows, which keep their original rotary
positions. In decode the caches of pruned layers hold fewer keys; see :mod:`tokenprune.engine.cache` for why the masks
that arrive can then be trusted.
"""

from __future__ import annotations

from tokenprune.engine.cache import cache_bytes
from tokenprune.engine.trials.calibrate import measure_entropy, observe
from tokenprune.run.apply import apply, choose_layers, chosen, verify_methods

__all__ = ["apply", "cache_bytes", "choose_layers", "chosen", "measure_entropy", "observe", "verify_methods"]
