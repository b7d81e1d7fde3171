"""Pure tensor functions; none of them depends on a model."""

from tokenprune.ops.entropy import matrix_entropy, state_entropy
from tokenprune.ops.merging import merge_into
from tokenprune.ops.topk import apportion, topk_by_group

__all__ = ["apportion", "matrix_entropy", "merge_into", "state_entropy", "topk_by_group"]
