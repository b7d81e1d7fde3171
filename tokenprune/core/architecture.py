"""The architecture of a model, and for which architectures settings were made that somebody published."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PositiveInt

from tokenprune.core.component import Component
from tokenprune.errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """Sizes and names that decide whether published settings fit a model. A number that the config does not state is 0.

    Attributes:
        family: ``model_type`` of the model's config.
        depth: Number of decoder layers.
        decoder: ``model_type`` of the language model's config.
        hidden_size: Width of the decoder's hidden states.
        intermediate_size: Width of the decoder's MLPs.
        tower_depth: Number of layers of the vision tower.
    """

    family: str
    depth: int
    decoder: str
    hidden_size: int = 0
    intermediate_size: int = 0
    tower_depth: int = 0

    @classmethod
    def of(cls, model: Any) -> Self:
        """The architecture of a transformers model, also inside a wrapper that shows its config, or of a config.

        Raises:
            ConfigError: It is neither.
        """
        config = getattr(model, "config", model)
        try:
            text = config.get_text_config(decoder=True)
            family, depth, _ = str(config.model_type), int(text.num_hidden_layers), str(text.model_type)
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(
                f"expected a transformers model, its config, or a model's name in the method's file,"
                f" got {type(model).__name__}",
                "`tokenprune show METHOD` lists these names",
            ) from None
        return cls.of_configs(family, depth, config, text)

    @classmethod
    def of_configs(cls, family: str, depth: int, config: Any, text: Any) -> Self:
        """The architecture that a model's config and its language model's describe.

        Args:
            family: ``model_type`` of the model.
            depth: Number of decoder layers.
            config: The model's config.
            text: The language model's config.
        """
        tower = getattr(config, "vision_config", None)
        return cls(
            family,
            depth,
            str(getattr(text, "model_type", "")),
            _stated(text, "hidden_size"),
            _stated(text, "intermediate_size"),
            _stated(tower, "num_hidden_layers") or _stated(tower, "depth"),
        )

    def __str__(self) -> str:
        return f"a {self.family!r} with " + _sizes(
            (self.depth,),
            repr(self.decoder),
            (self.hidden_size,) if self.hidden_size else (),
            (self.intermediate_size,) if self.intermediate_size else (),
            (self.tower_depth,) if self.tower_depth else (),
        )


def _stated(config: Any, name: str) -> int:
    """A whole number of a config; 0 where there is none, as with layers of different sizes."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) else 0


def _one_or_several(value: Any) -> Any:
    """A single number as a list of one."""
    return (value,) if isinstance(value, int) else value


#: One number, or those of several models. Empty fits all.
Sizes = Annotated[tuple[PositiveInt, ...], BeforeValidator(_one_or_several)]


class ModelFit(Component):
    """For which models settings were made. The layer numbers of one depth mean something else at another one.

    Attributes:
        family: ``model_type`` of the models.
        depth: Their number of decoder layers: one number, or those of several models. Empty fits all, here and below.
        decoder: ``model_type`` of their language model; None fits all.
        hidden_size: Width of their decoder's hidden states.
        intermediate_size: Width of their decoder's MLPs.
        tower_depth: Number of layers of their vision tower.
    """

    family: str = Field(min_length=1)
    depth: Sizes = ()
    decoder: str | None = None
    hidden_size: Sizes = ()
    intermediate_size: Sizes = ()
    tower_depth: Sizes = ()

    def fits(self, architecture: Architecture) -> bool:
        """Whether the settings are for models of this architecture."""
        return (
            self.family == architecture.family
            and self.decoder in (None, architecture.decoder)
            and all(
                not wanted or found in wanted
                for wanted, found in (
                    (self.depth, architecture.depth),
                    (self.hidden_size, architecture.hidden_size),
                    (self.intermediate_size, architecture.intermediate_size),
                    (self.tower_depth, architecture.tower_depth),
                )
            )
        )

    @property
    def condition(self) -> str:
        """The models that the settings fit, in words."""
        sizes = _sizes(self.depth, self.decoder or "", self.hidden_size, self.intermediate_size, self.tower_depth)
        return f"{self.family}, {sizes}" if sizes else self.family


def _sizes(
    depth: Sequence[int], decoder: str, hidden: Sequence[int], intermediate: Sequence[int], tower: Sequence[int]
) -> str:
    """Sizes in words; an empty one is left out: ``32 layers of llama, hidden size 4096, MLP size 11008``."""
    stack = f"{_either(depth)} layers" if depth else "layers" if decoder else ""
    parts = (
        stack + (f" of {decoder}" if decoder else ""),
        f"hidden size {_either(hidden)}" if hidden else "",
        f"MLP size {_either(intermediate)}" if intermediate else "",
        f"{_either(tower)} tower layers" if tower else "",
    )
    return ", ".join(part for part in parts if part)


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))
