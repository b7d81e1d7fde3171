"""Names of the arguments of a family's decoder layers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerSignature:
    """Names of the arguments of a decoder layer's ``forward`` that follow the sequence.

    A family whose layers use other names overrides :attr:`tokenprune.adapters.base.Adapter.layer_signature`. The KV
    cache is not among them: the engine knows it by its class.

    Attributes:
        hidden_states: The hidden states ``[batch, rows, dim]``; the first argument.
        attention_mask: The mask.
        position_embeddings: Prefix of the arguments that hold rotary cosines and sines ``[..., batch, rows, dim]``.
        position_ids: Positions ``[..., batch, rows]``.
    """

    hidden_states: str = "hidden_states"
    attention_mask: str = "attention_mask"
    position_embeddings: str = "position_embeddings"
    position_ids: str = "position_ids"
