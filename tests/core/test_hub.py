"""The hub is asked once, and not for long."""

from __future__ import annotations

import pytest

from tests.support.hub import hub, silent_hub, unreachable_hub
from tokenprune.core.hub import NotOnHubError, ask_hub, is_hub_name


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_what_the_hub_has_and_has_not(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    with hub(monkeypatch, "owner/name") as asked:
        assert ask_hub("owner/name", kind) is None  # type: ignore[arg-type]
        with pytest.raises(NotOnHubError, match=f"the hub has no {kind} 'owner/nome' that you can read"):
            ask_hub("owner/nome", kind)  # type: ignore[arg-type]
        with pytest.raises(NotOnHubError, match=f"the {kind} 'owner/name' on the hub has no revision 'v9'"):
            ask_hub("owner/name", kind, "v9")  # type: ignore[arg-type]
    paths = ["owner/name", "owner/nome", "owner/name/revision/v9"]
    assert asked == [f"/api/{kind}s/{path}" for path in paths]


def test_a_hub_that_is_silent_or_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenprune.core.hub.TIMEOUT", 0.2)
    with silent_hub(monkeypatch) as asked:
        assert "http://127.0.0.1:" in str(ask_hub("owner/name", "model"))
    assert asked == ["/api/models/owner/name"]
    unreachable_hub(monkeypatch)
    assert "did not answer: " in str(ask_hub("owner/name", "model"))


def test_a_hub_that_shall_not_be_asked() -> None:
    """The tests run with HF_HUB_OFFLINE."""
    assert ask_hub("owner/name", "dataset") == "HF_HUB_OFFLINE is set"


def test_names_and_paths() -> None:
    names = ["gpt2", "owner/name", "llava-hf/llava-1.5-7b-hf"]
    paths = ["nope/", "a/b/c", "./x", "../x", "~/x", "/x", "", "a b", ".", "https://huggingface.co/a/b"]
    assert [name for name in [*names, *paths] if is_hub_name(name)] == names
