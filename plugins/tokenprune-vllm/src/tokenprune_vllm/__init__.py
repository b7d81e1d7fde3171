"""tokenprune in vLLM: visual tokens are pruned before the language model, at the positions that they had.

```python
from vllm import LLM
import tokenprune_vllm

llm = LLM(checkpoint, hf_overrides=tokenprune_vllm.overrides(checkpoint, method="divprune", ratio=0.25))
```
"""

from __future__ import annotations

from tokenprune_vllm.overrides import overrides
from tokenprune_vllm.registration import register

__all__ = ["overrides", "register"]
