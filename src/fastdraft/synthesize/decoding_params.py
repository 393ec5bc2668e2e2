"""The decoding parameters that all requests of a run share."""

from __future__ import annotations

from typing import NamedTuple

from fastdraft.config import EvaluatePart, SynthesizePart
from fastdraft.models.run_context import RunContext


class DecodingParams(NamedTuple):
    """What all requests of a run share; temperature, top-k and top-p are in each request's `SamplingParams`.

    `eos`: the end-of-text ids. `end`: the one that is appended where an engine leaves it out.
    `top_logprobs`: the number of most likely tokens kept per position.
    `vocab_rows`: token ids are below it; None does not check.
    """

    max_new_tokens: int
    eos: frozenset[int]
    seed: int
    target_revision: str
    batch_size: int
    end: int | None = None
    top_logprobs: int = 0
    vocab_rows: int | None = None

    @property
    def shard_prompts(self) -> int:
        """Rows of a shard, which an interruption can lose; with fewer, the batch would run partly empty more often."""
        return 4 * self.batch_size


def decoding_params(run_context: RunContext, part: SynthesizePart | EvaluatePart, batch_size: int) -> DecodingParams:
    """The decoding parameters of a run, for training data or for evaluation."""
    card = run_context.target_card()
    return DecodingParams(
        max_new_tokens=part.max_new_tokens,
        eos=frozenset(card.eos_ids),
        seed=run_context.recipe.seed,
        target_revision=card.digest,
        batch_size=batch_size,
        end=card.eos_ids[0],
        top_logprobs=part.top_logprobs if isinstance(part, SynthesizePart) else 0,
        vocab_rows=card.vocab_rows,
    )
