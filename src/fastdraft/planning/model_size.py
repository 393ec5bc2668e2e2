"""The sizes that cost follows from, of a draft or a target: parameters by what reads them, layers, widths."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from fastdraft.models.shape.draft_shape import DraftShape
from fastdraft.models.shape.target_sizes import countable, read, sizes
from fastdraft.models.target import counts

# Keys under which the families name their routed experts, and how many of them a token goes through.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_k", "top_k_experts")
# Bits of a weight: its value, and its share of its group's scale (fp16) and zero point. Int8 has a scale for each
# output channel, hundreds of weights and more: nothing. Int4 has one for 64 weights in our exports (128 in many), and
# keeps the embedding and the head in int8 (nncf's default, `backup_mode`).
BITS = {"bf16": 16.0, "int8": 8.0, "int4": 4 + (16 + 4) / 64}
OUTER_BITS = {"bf16": 16.0, "int8": 8.0, "int4": 8.0}


class ModelSize(BaseModel):
    """Exact sizes of a decoder; `output_parameters` are the head's, which tied are the embedding's, counted once.

    `expert_parameters` are those of all routed experts, `expert_fraction` what of them a token goes through.
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
        found, known = counts(countable(config)), sizes(config)
        return cls(
            parameters=found.parameters,
            embedding_parameters=found.embedding,
            output_parameters=found.output,
            tied=found.tied,
            layers=read(text, "layers") or 1,
            hidden=known.hidden_size,
            attention_width=known.heads * known.head_size,
            kv_width=known.kv_heads * known.head_size,
            vocab_rows=known.vocab_rows,
            expert_parameters=found.experts,
            expert_fraction=_expert_fraction(text) if found.experts else 1.0,
        )

    @classmethod
    def of_shape(cls, shape: DraftShape) -> ModelSize:
        """The sizes of a draft."""
        return cls.of_config(shape.open_config())

    @property
    def body_parameters(self) -> int:
        """Of the layers: all but the embedding and the head."""
        return self.parameters - self.embedding_parameters - (0 if self.tied else self.output_parameters)

    def read_body_parameters(self, tokens: int) -> float:
        """Body parameters that a step on so many tokens reads: of the experts those that one of them is routed to."""
        return self.body_parameters - self.expert_parameters * (1 - self.expert_fraction) ** tokens

    @property
    def active_parameters(self) -> float:
        """Parameters that a token is multiplied with: its experts and the head count, the input embedding does not."""
        return self.read_body_parameters(1) + self.output_parameters


def weight_bytes(size: ModelSize, weights: str) -> float:
    """Bytes of all weights at a precision of BITS, the scales of groups included."""
    outer = size.parameters - size.body_parameters
    return (size.body_parameters * BITS[weights] + outer * OUTER_BITS[weights]) / 8


def read_bytes(size: ModelSize, weights: str, tokens: int = 1) -> float:
    """Bytes of the weights that a step on so many tokens reads: all but the input embedding, of which it reads rows."""
    return (size.read_body_parameters(tokens) * BITS[weights] + size.output_parameters * OUTER_BITS[weights]) / 8


def kv_bytes(size: ModelSize, context_tokens: int, bytes_per_value: float = 2) -> float:
    """Bytes of keys and values of a context, every layer's (a sliding window's too, which would hold fewer)."""
    return 2.0 * size.layers * size.kv_width * context_tokens * bytes_per_value


def _expert_fraction(text: Any) -> float:
    """The share of the routed experts that a token goes through."""
    all_, chosen = (
        next((value for name in names if (value := getattr(text, name, None))), 1)
        for names in (EXPERTS, EXPERTS_PER_TOKEN)
    )
    return min(1.0, float(chosen / all_))
