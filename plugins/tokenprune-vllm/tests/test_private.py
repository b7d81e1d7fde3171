"""The private names of vLLM: all are there, and one that is missing is named before anything is served."""

from __future__ import annotations

import pytest

from tokenprune import TokenPruneError
from tokenprune_vllm import private


def test_this_vllm_has_every_name() -> None:
    private.check()


def test_missing_names_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = (("vllm.exceptions", None, ("NoSuchError",)), ("vllm.nosuch", "Class", ("name",)))
    monkeypatch.setattr(private, "NAMES", (*private.NAMES, *wrong))
    with pytest.raises(
        TokenPruneError, match=r"lacks what .* uses: vllm\.exceptions\.NoSuchError, vllm\.nosuch\.Class"
    ):
        private.check()


@pytest.mark.parametrize("found", ["0.31.4", "0.33.0", "0.320.1"])
def test_a_minor_version_that_no_test_ran_is_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "installed_version", lambda: found)
    with pytest.raises(TokenPruneError, match=f"tested with vLLM 0.32, and {found} is installed"):
        private.check()
