"""Reading YAML: what is no mapping, no text or says one thing twice is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

import tokenprune as tp
from tokenprune.errors import ConfigError


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected a mapping, got nothing"),
        (b"# only a comment\n", "expected a mapping, got nothing"),
        (b"just a sentence", "expected a mapping, got str"),
        (b"- 1\n- 2\n", "expected a mapping, got list"),
        (b"\xff\xfe\x00\x80", "is not a text file in UTF-8"),
        (
            b"label: a\nlayers: b\nlabel: c\n",
            "line 3, column 1 is not valid YAML (the key 'label' stands twice, first in line 1)",
        ),
        (b"layers: {name: fixed, name: vtw}", "the key 'name' stands twice"),
        (b"a: 2024-13-45", "is not valid YAML (month must be in 1..12"),
        (b"a: !!bool x", "is not valid YAML"),
        (b"a: !!python/object:os.system x", "is not valid YAML (could not determine a constructor"),
        (b"a: &a [*a]", "contains itself"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
        (b"a:\n\tb: 1", "line 2, column 1 is not valid YAML (found character '\\t'"),
        ("label: a".encode("utf-16"), "is not a text file in UTF-8; give a YAML file, saved as UTF-8"),
        (b"a: \x07", "is not valid YAML"),
        (b'label: "a\\0b"', "label: the text holds a NUL"),
        (b"a: [1", "is not valid YAML"),
        (b"a: 1\n---\na: 2\n", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "method.yaml"
    path.write_bytes(content)
    with pytest.raises(tp.TokenPruneError) as caught:
        tp.Method.from_yaml(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", ["", "  ", "a\nb", "a|b", " a", "a\t"])
def test_a_label_is_a_cell_of_a_table(label: str) -> None:
    with pytest.raises(ConfigError, match="label: a label"):
        tp.Method.from_dict({**tp.load_method("fastv").model_dump(), "label": label})
