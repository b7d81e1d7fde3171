"""The examples of the page `Serve with vLLM`."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"
#: The checkpoint of the examples.
CHECKPOINT = "llava-hf/llava-1.5-7b-hf"


def examples(language: str) -> list[str]:
    """The fenced blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
