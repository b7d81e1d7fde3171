"""Gemma 3 and PaliGemma: every image is the same number of tokens."""

from __future__ import annotations

from tokenprune.adapters.visuals import VisualAdapter


class Gemma3Adapter(VisualAdapter):
    """``gemma3``, ``paligemma``.

    With pan and scan, Gemma 3 is given crops as further images, and nothing in its inputs says that they are crops:
    each counts as an image of its own.
    """
