"""Schema of the target and of the draft."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, field_validator

from fastdraft.config.part import Heads, Mark, Part, Width
from fastdraft.system import limits


class TargetPart(Part):
    """The target model that the draft is trained for."""

    path: str = Field(description="Hub id, local folder, GGUF file, `demo` (the packaged target) or `smollm2`.")
    revision: str | None = Field(None, description="Hub revision (commit, branch or tag).")
    trust_remote_code: bool = Field(False, description="Run Python code that is shipped with the target.")
    allow_pickle: bool = Field(False, description="Load pickled weights. They can run arbitrary code.")
    licence: Annotated[str | None, Mark.NO_RESULT] = Field(
        None,
        description="Licence by its id on the hub, such as `llama3.1`; by default read from the target's README.md.",
    )


# `init` is one of INITS, or one of INITS_FROM_MODEL with a model after a colon.
INITS, INITS_FROM_MODEL = ("random", "target_embedding"), ("prune", "transplant")


class DraftPart(Part):
    """Size and initial weights of the draft. Missing sizes follow from the target, or from the MODEL of `init`."""

    init: str = Field(
        "target_embedding",
        description="Initial weights: `random`; `target_embedding` (the target's embedding, projected on its principal "
        "components); `prune:MODEL` (MODEL has the target's vocabulary; layers are removed, and width if a smaller "
        "`hidden_size` is given); `transplant:MODEL` (MODEL has another tokenizer; it gets embedding rows for the "
        "target's vocabulary). MODEL is a hub id, a folder, `demo` or `smollm2`, and gives the sizes that are "
        "not set below.",
    )
    params_millions: PositiveFloat | None = Field(
        None,
        le=limits.PARAMETERS_MILLIONS,
        description="Number of parameters in millions, embeddings included; by default 1/60 of the target's, but "
        "enough for a draft that learns to copy. `fastdraft plan` recommends the same.",
    )
    hidden_size: Width | None = Field(None, description="Width; by default derived from `params_millions`.")
    layers: int | None = Field(
        None, gt=0, le=limits.LAYERS, description="Depth; by default derived from `params_millions`."
    )
    head_size: Heads | None = Field(None, description="Size of an attention head; by default as in the target.")
    heads: Heads | None = Field(None, description="Number of attention heads; by default hidden_size / head_size.")
    kv_heads: Heads | None = Field(None, description="Number of key-value heads; by default in the target's ratio.")
    intermediate_size: Width | None = Field(None, description="Width of the MLP; by default in the target's ratio.")
    context_tokens: int | None = Field(
        None, gt=0, le=limits.CONTEXT, description="Maximum context length; by default the target's."
    )

    @property
    def init_model(self) -> str | None:
        """The MODEL of `init`; None for an init without one."""
        return self.init.partition(":")[2] or None

    @field_validator("init")
    @classmethod
    def _known_init(cls, init: str) -> str:
        kind, _, model = init.partition(":")
        if init not in INITS and not (kind in INITS_FROM_MODEL and model.strip() == model != ""):
            wanted = [*INITS, *(f"{kind}:MODEL" for kind in INITS_FROM_MODEL)]
            raise ValueError(f"found `{init}`, wanted {', '.join(wanted[:-1])} or {wanted[-1]}")
        return init

    @property
    def needs_budget(self) -> bool:
        """Whether its size follows from neither its keys nor the MODEL of `init`."""
        has_shape = self.init_model is not None or (self.hidden_size is not None and self.layers is not None)
        return self.params_millions is None and not has_shape
