"""The precision of a model's weights, by all the names that it has elsewhere."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema

#: Other names -> the name that results folders and fingerprints have.
ALIASES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
}
_NAMES = ["auto", "float32", "bfloat16", "float16"]


def canonical(value: Any) -> Any:
    """The name of a precision: of an alias, of torch's own name (``torch.bfloat16``) or of a ``torch.dtype``."""
    name = str(value).lower().removeprefix("torch.")
    name = ALIASES.get(name, name)
    return name if name in _NAMES else value


#: A precision; ``auto`` leaves it to whoever reads it.
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    BeforeValidator(canonical),
    WithJsonSchema({"enum": [*_NAMES, *ALIASES], "type": "string"}),
]
