"""Checkpoints that transformers' auto classes load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenprune.errors import MissingDataError
from tokenprune.models.hf import HuggingFace


def test_a_missing_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="cannot be loaded"):
        HuggingFace(checkpoint=str(tmp_path / "nothing")).load()
