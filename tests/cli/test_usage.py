"""Wrong words of a command are one line, as every other mistake."""

from __future__ import annotations

import pytest

from tests.experiment.test_cli import call

AVERAGE = "share of the visual tokens, averaged over all layers"
KEPT = "share of the visual tokens kept after the last stage"


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


@pytest.mark.parametrize(
    ("command", "option", "words"),
    [
        ("flops", "--ratio", f"did you mean --average-ratio ({AVERAGE}) or --keep-ratio ({KEPT})?"),
        ("look", "--ratio", f"did you mean --average-ratio ({AVERAGE}) or --keep-ratio ({KEPT})?"),
        ("tune", "--ratio", f"did you mean --average-ratio ({AVERAGE})?"),
        (
            "flops",
            "--tokens",
            "did you mean --average-tokens (visual tokens, averaged over all layers) or --keep",
        ),
        ("bench", "--tokens", "did you mean --average-tokens (visual tokens, averaged over all layers)"),
        ("look", "--keep", "did you mean --keep-tokens (visual tokens kept after the last stage) or --keep-ratio"),
        (
            "bench",
            "--average",
            "did you mean --average-tokens (visual tokens, averaged over all layers) or --av",
        ),
        ("tune", "--reduction", "did you mean --flops-reduction (reduction of the prefill's FLOPs in percent)?"),
        ("tune", "--time", "did you mean --prefill-time (measured prefill time as a share of the unpruned one's)?"),
        ("run", "--modle", "`tokenprune run --help` lists its options"),
        ("tune", "--modle", "did you mean --model?"),
        ("bench", "--xyzzy", "`tokenprune bench --help` lists its options"),
    ],
)
def test_an_unknown_option_is_one_line_with_those_that_were_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, option: str, words: str
) -> None:
    assert call(monkeypatch, command, option, "0.25") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {command} has no option {option}; ")
    assert words in error
    assert error.count("\n") == 1


def test_an_option_without_its_value_is_no_unknown_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "flops", "--model") == 2
    assert "requires an argument" in capsys.readouterr().err
