"""What drafts are measured on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from fastdraft.config.part import Part


class EvaluatePart(Part):
    """One-pass evaluation on held-out prompts, after each phase, and its verification."""

    tasks: tuple[str, ...] = Field(
        min_length=1, description="Sources whose held-out part gives the prompts; one task each."
    )
    prompts: PositiveInt = Field(64, description="Prompts of a task.")
    max_prompt_tokens: PositiveInt = Field(64, description="Tokens of a prompt.")
    max_new_tokens: PositiveInt = Field(128, description="Longest completion.")
    temperatures: tuple[NonNegativeFloat, ...] = Field(
        (0.0, 0.6), min_length=1, description="Sampling temperatures; 0 is greedy."
    )
    gammas: tuple[PositiveInt, ...] = Field((1, 2, 3, 4, 5, 6, 7, 8), min_length=1, description="Block lengths.")
    batch_size: PositiveInt = Field(64, description="Prompts answered at once.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="What the target computes in, chosen as in `synthesize`. The draft is scored in fp32, and real "
        "speculative decoding runs in fp32.",
    )
    validation_prompts: int = Field(
        16,
        ge=0,
        description="Prompts of a task, none of them among `prompts`, that the target answers for measures of block "
        "efficiency at `verify_gamma` while a draft trains, the temperatures in turn; 0: no such measures.",
    )
    bootstrap_resamples: PositiveInt = Field(1000, description="Resamples of the prompts behind an interval.")
    verify_prompts: int = Field(
        16,
        ge=0,
        description="Prompts of a task for real speculative decoding; 0 leaves it out. Below 16 a sound pair may fail "
        "where tokens are sampled: an interval over so few prompts is too narrow.",
    )
    verify_gamma: PositiveInt = Field(4, description="Block length of the verification.")
