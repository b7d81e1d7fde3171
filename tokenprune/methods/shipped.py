"""The form of a named method's file."""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator

from tokenprune.config import Config
from tokenprune.methods.published import Published


class Shipped(Config):
    """The content of a named method's file. The method itself is checked when it is used.

    Attributes:
        description: What it does, in one sentence.
        paper: Title of the paper (arXiv id).
        differs: What differs from the paper.
        method: Fields of a :class:`tokenprune.Method`.
        published: Settings for single models.
    """

    description: str = ""
    paper: str = ""
    differs: str = ""
    method: dict[str, Any]
    published: tuple[Published, ...] = ()

    @model_validator(mode="after")
    def _each_model_once(self) -> Self:
        names = [entry.model.lower() for entry in self.published]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"published names the model {repeated[0]!r} twice: give each entry its own name")
        return self
