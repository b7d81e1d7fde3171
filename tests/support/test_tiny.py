"""The tiny models themselves."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny import EVERY, UPSTREAM_FAULTS


@pytest.mark.parametrize("name", sorted(UPSTREAM_FAULTS))
@torch.no_grad()
def test_what_is_left_out_does_not_run_unpruned(name: str) -> None:
    """A family that the installed transformers breaks comes back into the matrix once this fails."""
    case = EVERY[name]
    model = case.build()
    with pytest.raises(AttributeError, match=UPSTREAM_FAULTS[name]):
        model(**case.inputs(model))
