"""A finished experiment shows itself in a notebook: table, sentences, chart."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from tests.support.toy import completed


def test_the_result_is_a_table_and_a_chart(tmp_path: Path) -> None:
    result: Any = completed(tmp_path / "run")
    html = result._repr_html_()
    for text in ("<caption", "norm-hidden-large", "keep_ratio 0.5", "accuracy %", "data:image/png;base64,"):
        assert text in html
    assert html.count("<table>") == 1


def test_without_the_extra_it_says_why_there_is_no_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result: Any = completed(tmp_path / "run")
    real = builtins.__import__

    def missing(name: str, *more: Any) -> Any:
        if name == "vl_convert":
            raise ImportError("No module named 'vl_convert'")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    html = result._repr_html_()
    assert "<table>" in html
    assert "no chart (No module named" in html
    assert "tokenprune-mllm[report]" in html
