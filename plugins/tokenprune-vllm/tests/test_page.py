"""The examples of the page `Serve with vLLM` run as they stand; test_server.py runs the one that needs a server."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from equality import picture
from page import CHECKPOINT, examples

from tokenprune_vllm.command import main

Find = Callable[[str], Path]


def test_the_example_in_python(
    checkpoint: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(224, 160, 1).save("photo.png")
    (code,) = [code for code in examples("python") if "import LLM" in code]
    assert CHECKPOINT in code
    exec(compile(code.replace(CHECKPOINT, str(checkpoint("llava"))), "page", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 1


def test_the_commands(checkpoint: Find, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command runs; that of a tune is in test_tuned.py."""
    lines = [line for code in examples("bash") for line in code.splitlines() if line.startswith("tokenprune-vllm")]
    assert len(lines) == 3
    tuned = tmp_path / "tuned.yaml"
    tuned.write_text("layers: {name: fixed, layers: [0]}\npruner: max_min\nbudget: {name: keep_ratio, ratio: 0.25}\n")
    places = {CHECKPOINT: checkpoint("llava"), "my-checkpoint/": checkpoint("llava"), "results/tune/tuned.yaml": tuned}
    for line in lines:
        _, *words = shlex.split(line)
        assert main([str(places.get(word, word)) for word in words]) == 0
        assert ("api_server" in capsys.readouterr().out) == bool(words)
