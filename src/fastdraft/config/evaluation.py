"""Schema of the evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from fastdraft.config.part import BatchSize, Gamma, Mark, Part, SampleSize, SequenceTokens
from fastdraft.system import limits


class EvaluatePart(Part):
    """Evaluation of each phase's draft on held-out prompts: in one pass, and verified by real speculative decoding."""

    tasks: Annotated[tuple[str, ...], Mark.VALIDATION] = Field(
        min_length=1, description="Sources of the corpus; the held-out documents of each give the prompts of one task."
    )
    prompts: Annotated[SampleSize, Mark.VALIDATION] = Field(64, description="Prompts per task.")
    max_prompt_tokens: Annotated[SequenceTokens, Mark.VALIDATION] = Field(64, description="Length of a prompt.")
    max_new_tokens: Annotated[SequenceTokens, Mark.VALIDATION] = Field(
        128, description="Maximum length of a completion."
    )
    temperatures: Annotated[tuple[NonNegativeFloat, ...], Mark.VALIDATION] = Field(
        (0.0, 0.6), min_length=1, description="Sampling temperatures; 0 is greedy."
    )
    gammas: tuple[Gamma, ...] = Field((1, 2, 3, 4, 5, 6, 7, 8), min_length=1, description="Drafted tokens per block.")
    batch_size: BatchSize = Field(64, description="Prompts per batch of generation.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Precision of the target while it generates; `auto` as in `synthesize`. Scoring of the draft and "
        "the verification always run in fp32.",
    )
    validation_prompts: Annotated[int, Mark.NO_RESULT, Mark.VALIDATION] = Field(
        16,
        ge=0,
        le=limits.SAMPLE,
        description="Prompts per task for measuring block efficiency at `verify_gamma` during training, disjoint from "
        "`prompts`; the temperatures take turns. 0 disables it.",
    )
    bootstrap_resamples: SampleSize = Field(
        1000, description="Bootstrap resamples of the prompts for each confidence interval."
    )
    verify_prompts: int = Field(
        16,
        ge=0,
        le=limits.SAMPLE,
        description="Prompts per task for verification by real speculative decoding; 0 disables it.",
    )
    verify_gamma: Gamma = Field(4, description="Drafted tokens per block in the verification.")
