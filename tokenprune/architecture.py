"""What tells the architectures of two models apart, whatever their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from tokenprune.errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """What decides whether settings that were found for one model fit another one.

    Attributes:
        family: ``model_type`` of the model's config.
        depth: Number of decoder layers.
        decoder: ``model_type`` of the language model's config.
        width: Size of the decoder's hidden states; None if it is not known.
    """

    family: str
    depth: int
    decoder: str
    width: int | None = None

    @classmethod
    def of(cls, model: Any) -> Self:
        """The architecture of a transformers model, also inside a wrapper that shows its config, or of a config.

        Raises:
            ConfigError: It is neither.
        """
        config = getattr(model, "config", model)
        try:
            text = config.get_text_config(decoder=True)
            width = getattr(text, "hidden_size", None)
            return cls(
                str(config.model_type),
                int(text.num_hidden_layers),
                str(text.model_type),
                None if width is None else int(width),
            )
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(
                f"expected a transformers model, its config, or a model's name in the method's file,"
                f" got {type(model).__name__}",
                "`tokenprune show METHOD` lists these names",
            ) from None

    def __str__(self) -> str:
        width = "" if self.width is None else f" of width {self.width}"
        return f"a {self.family!r} with {self.depth} layers of {self.decoder!r}{width}"
