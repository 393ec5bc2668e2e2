"""How the target of a run decodes, for training data and for evaluation."""

from __future__ import annotations

from fastdraft.config import EvaluatePart, SynthesizePart
from fastdraft.models.run_context import RunContext
from fastdraft.synthesize.write import Decoding


def decoding(run_context: RunContext, part: SynthesizePart | EvaluatePart, at_once: int) -> Decoding:
    """How the target answers, for training and for evaluation, so many prompts at once."""
    card, seed = run_context.target_card(), run_context.recipe.seed
    eos = frozenset(card.eos_ids)
    kept = part.top_logprobs if isinstance(part, SynthesizePart) else 0
    end, rows = card.eos_ids[0], card.vocab_rows
    return Decoding(part.max_new_tokens, eos, seed, card.digest, at_once, end, kept, rows)
