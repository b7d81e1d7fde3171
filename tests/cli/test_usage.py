"""Wrong words of a command are one line, as every other mistake."""

from __future__ import annotations

import pytest

from tests.experiment.test_cli import call


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rn x.yaml", "No such command 'rn'. Did you mean 'run'?; see `tokenprune -h`"),
        ("--verson", "No such option: --verson (Possible options: --version); see `tokenprune -h`"),
        ("run", "Missing argument 'config'; see `tokenprune run -h`"),
        ("run a b", "Got unexpected extra argument(s) (b); see `tokenprune run -h`"),
        ("run a --limit x", "Invalid value for '--limit': "),
        ("schema --output", "Option '--output' requires an argument; see `tokenprune"),
        ("look", "Missing argument 'IMAGE...'; see `tokenprune look -h`"),
    ],
)
def test_a_mistake_is_one_line(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *words.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_no_words_show_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch) == 2
    captured = capsys.readouterr()
    assert "Usage" in captured.out + captured.err
    assert "error" not in captured.err
