"""A draft's shape: its configuration, its exact size, and notes about it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from transformers import AutoConfig
from transformers.configuration_utils import PretrainedConfig

from fastdraft.models.file_errors import errors_explained
from fastdraft.models.shape.families import FAMILIES, Names
from fastdraft.system.validation import Size

# Row lengths that quantisation needs: kernels use groups of 64 weights, GGUF's k-quants blocks of 256.
KERNEL_STEP, K_QUANT_STEP = 64, 256


class DraftShape(BaseModel):
    """A draft's configuration and exact size; `notes` say what differs from the target, and why."""

    model_config = ConfigDict(frozen=True)
    config: dict[str, Any]
    parameters: Size
    embedding_parameters: Size
    notes: tuple[str, ...] = ()

    @property
    def other_parameters(self) -> int:
        return self.parameters - self.embedding_parameters

    @property
    def output_parameters(self) -> int:
        """Parameters of the output layer (the tied embedding); every step reads all of them."""
        return self.vocab_rows * self.hidden_size

    @property
    def family(self) -> str:
        return str(self.config["model_type"])

    @property
    def vocab_rows(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def hidden_size(self) -> int:
        return int(self.config[self._names.hidden_size])

    @property
    def layers(self) -> int:
        return int(self.config[self._names.layers])

    @property
    def heads(self) -> int:
        return int(self.config[self._names.heads])

    @property
    def kv_heads(self) -> int:
        return int(self.config[self._names.kv_heads]) if self._names.kv_heads else self.heads

    @property
    def head_size(self) -> int:
        return int(self.config[self._names.head_size]) if self._names.head_size else self.hidden_size // self.heads

    @property
    def intermediate_size(self) -> int:
        return int(self.config[self._names.intermediate])

    @property
    def k_quants(self) -> bool:
        """Can every matrix be stored in GGUF's k-quants? Other matrices fall back to larger types (q5_0, q8_0)."""
        return self.hidden_size % K_QUANT_STEP == self.intermediate_size % K_QUANT_STEP == 0

    @property
    def widths(self) -> str:
        """Which of the two steps divide the widths, in words."""
        phrases = []
        for name, size in (("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size)):
            step = next((step for step in (K_QUANT_STEP, KERNEL_STEP) if size % step == 0), None)
            phrases.append(f"{name} {size} is a multiple of {step}" if step else f"{name} {size} is no multiple of 64")
        return f"{', '.join(phrases)}: {'' if self.k_quants else 'no '}k-quants throughout"

    @property
    def _names(self) -> Names:
        return FAMILIES[self.family].names

    def open_config(self) -> PretrainedConfig:
        """The configuration as an object of transformers; TargetError if it has none of these sizes."""
        values = dict(self.config)
        with errors_explained(f"no {self.family} has the sizes of this draft", "change those that the recipe sets"):
            config: PretrainedConfig = AutoConfig.for_model(values.pop("model_type"), **values)
        return config
