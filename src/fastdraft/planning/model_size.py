"""The sizes of a draft or target that determine its cost: parameters by their use, layers, widths."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from fastdraft.models.architecture import counts
from fastdraft.models.config_checks import read
from fastdraft.models.shape.draft_shape import DraftShape
from fastdraft.models.shape.target_sizes import countable, expert_fraction, sizes

# Bits per weight: the value plus its part of the group's scale (fp16) and zero point. int8 has one scale per output
# channel of hundreds of weights, which is negligible. int4 has one per 64 weights in FastDraft's exports (128 in many
# others), and keeps the embedding and the head in int8 (nncf's default, `backup_mode`).
BITS = {"bf16": 16.0, "int8": 8.0, "int4": 4 + (16 + 4) / 64}
OUTER_BITS = {"bf16": 16.0, "int8": 8.0, "int4": 8.0}


class ModelSize(BaseModel):
    """Exact sizes of a decoder. `output_parameters`: the head's; with tied embeddings `parameters` counts them once.

    `expert_parameters`: of all routed experts. `expert_fraction`: the fraction of the experts that a token uses.
    """

    model_config = ConfigDict(frozen=True)
    parameters: int
    embedding_parameters: int
    output_parameters: int
    tied: bool
    layers: int
    hidden: int
    attention_width: int
    kv_width: int
    vocab_rows: int
    expert_parameters: int = 0
    expert_fraction: float = 1.0

    @classmethod
    def of_config(cls, config: Any) -> ModelSize:
        """The sizes of a model with this configuration (transformers' PretrainedConfig), counted on the meta device."""
        text = config.get_text_config()
        counted, dimensions = counts(countable(config)), sizes(config)
        return cls(
            parameters=counted.parameters,
            embedding_parameters=counted.embedding,
            output_parameters=counted.output,
            tied=counted.tied,
            layers=read(text, "layers") or 1,
            hidden=dimensions.hidden_size,
            attention_width=dimensions.heads * dimensions.head_size,
            kv_width=dimensions.kv_heads * dimensions.head_size,
            vocab_rows=dimensions.vocab_rows,
            expert_parameters=counted.experts,
            expert_fraction=expert_fraction(text) if counted.experts else 1.0,
        )

    @classmethod
    def of_shape(cls, shape: DraftShape) -> ModelSize:
        """The sizes of a draft."""
        return cls.of_config(shape.open_config())

    @property
    def body_parameters(self) -> int:
        """Parameters of the layers: all except the embedding and the head."""
        return self.parameters - self.embedding_parameters - (0 if self.tied else self.output_parameters)

    def read_body_parameters(self, tokens: int) -> float:
        """Body parameters that a step on `tokens` reads; of the experts, those that at least one token is routed to."""
        return self.body_parameters - self.expert_parameters * (1 - self.expert_fraction) ** tokens

    @property
    def active_parameters(self) -> float:
        """Parameters that a token is multiplied with: its experts and the head, without the input embedding."""
        return self.read_body_parameters(1) + self.output_parameters


def weight_bytes(size: ModelSize, weights: str) -> float:
    """Bytes of all weights at a precision of BITS, including the scales of groups."""
    outer = size.parameters - size.body_parameters
    return (size.body_parameters * BITS[weights] + outer * OUTER_BITS[weights]) / 8


def read_bytes(size: ModelSize, weights: str, tokens: int = 1) -> float:
    """Bytes of the weights that a step on `tokens` reads; the few rows of the input embedding are neglected."""
    return (size.read_body_parameters(tokens) * BITS[weights] + size.output_parameters * OUTER_BITS[weights]) / 8


def kv_bytes(size: ModelSize, context_tokens: int, bytes_per_value: float = 2) -> float:
    """Bytes of the keys and values of a context, also in layers with a sliding window, which would hold fewer."""
    return 2.0 * size.layers * size.kv_width * context_tokens * bytes_per_value
