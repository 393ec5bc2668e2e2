"""How the target of a run decodes, for training data and for evaluation."""

from __future__ import annotations

from fastdraft.config import EvaluatePart, SynthesizePart
from fastdraft.models.run_context import Journey
from fastdraft.synthesize.write import Decoding


def decoding(journey: Journey, part: SynthesizePart | EvaluatePart, at_once: int) -> Decoding:
    """How the target answers, for training and for evaluation, so many prompts at once."""
    card, seed = journey.target_card(), journey.recipe.seed
    eos = frozenset(card.eos_ids)
    kept = part.top_logprobs if isinstance(part, SynthesizePart) else 0
    end, rows = card.eos_ids[0], card.vocab_rows
    return Decoding(part.completion_tokens, eos, seed, card.digest, at_once, end, kept, rows)
