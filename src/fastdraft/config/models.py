"""The target that a draft is for, and the draft's size and first weights."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from fastdraft.config.part import Part


class TargetPart(Part):
    """The model that the draft is for."""

    path: str = Field(description="Hub id, local folder, or `demo` for the packaged target.")
    revision: str | None = Field(None, description="Hub revision (commit, branch or tag).")
    trust_remote_code: bool = Field(False, description="Run model code that comes with the target. Off unless asked.")
    allow_pickle: bool = Field(False, description="Load pickled weights (they can run code). Off unless asked.")
    licence: str | None = Field(
        None, description="Its licence as the hub names it, like `llama3.1`; otherwise what its README.md says."
    )


# Where a draft's weights can start: by itself, or from a MODEL named behind a colon.
INITS, INITS_FROM_MODEL = ("random", "target_embedding"), ("prune", "transplant")


class DraftPart(Part):
    """The draft's size and first weights; what is not given follows from the target, or from the MODEL of `init`."""

    init: str = Field(
        "target_embedding",
        description="Where the weights start: `random`; `target_embedding` (the target's embedding along its principal "
        "directions); `prune:MODEL` (a smaller model of the same vocabulary loses layers, and width if asked); "
        "`transplant:MODEL` (a model with another tokenizer gets rows for the target's). MODEL is a hub id, a folder "
        "or `demo`; what is not given below is then its own.",
    )
    params_millions: PositiveFloat | None = Field(None, description="Budget, embeddings included.")
    hidden_size: PositiveInt | None = Field(None, description="Width; otherwise derived from the budget.")
    layers: PositiveInt | None = Field(None, description="Depth; otherwise derived from the budget.")
    head_size: PositiveInt | None = Field(None, description="Size of an attention head; otherwise the target's rule.")
    heads: PositiveInt | None = Field(None, description="Attention heads; otherwise hidden_size / head_size.")
    kv_heads: PositiveInt | None = Field(None, description="Key-value heads; otherwise the target's ratio.")
    intermediate_size: PositiveInt | None = Field(None, description="MLP width; otherwise the target's ratio.")
    context_tokens: PositiveInt | None = Field(None, description="Longest context; otherwise the target's.")

    @property
    def init_model(self) -> str | None:
        """The MODEL that the weights start from; None where they start without one."""
        return self.init.partition(":")[2] or None

    @field_validator("init")
    @classmethod
    def _known_init(cls, init: str) -> str:
        kind, _, model = init.partition(":")
        if init not in INITS and not (kind in INITS_FROM_MODEL and model.strip() == model != ""):
            wanted = [*INITS, *(f"{kind}:MODEL" for kind in INITS_FROM_MODEL)]
            raise ValueError(f"found `{init}`, wanted {', '.join(wanted[:-1])} or {wanted[-1]}")
        return init

    @model_validator(mode="after")
    def _budget_or_shape(self) -> DraftPart:
        sizes_of_model = self.init_model is not None
        if self.params_millions is None and not sizes_of_model and (self.hidden_size is None or self.layers is None):
            raise ValueError("give params_millions, or both hidden_size and layers")
        return self
