"""`synthesize`: what the target wrote for training."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from fastdraft.artefacts.journey import Journey, Made
from fastdraft.recipe import EvaluatePart, SynthesizePart
from fastdraft.records import Card
from fastdraft.synthesize.completions import CompletionStore, Law, Request
from fastdraft.synthesize.generate import Decoding, complete
from fastdraft.synthesize.prompts import document_prompts, over_laws


class CompletionsCard(Card):
    """What the target wrote for training; the rows lie in completions/ beside the card."""

    kind: ClassVar[str] = "completions"
    completions: int
    tokens: int


def make_completions(journey: Journey, folder: Path) -> Made:
    """completions/*.parquet: what the target writes after prompts from the training side."""
    part = journey.recipe.synthesize
    assert part is not None, "a stage without a part is not on the road"
    store = CompletionStore(folder / "completions")
    requests = _training_requests(journey, part)
    rows = complete(journey.open_target(), requests, decoding(journey, part), store, "synthesize")
    tokens = sum(len(row.tokens) for row in rows)
    return Made({"completions": len(rows), "tokens": tokens}, tokens)


def _training_requests(journey: Journey, part: SynthesizePart) -> list[Request]:
    """Prompts of each source in its share, under each law in its share."""
    laws = {_law(temperature, part): weight for temperature, weight in part.temperatures.items()}
    requests = []
    for number, (source, weight) in enumerate(sorted(part.mix.items())):
        count = round(part.prompts * weight / sum(part.mix.values()))
        generator = np.random.default_rng([journey.recipe.seed, number])
        prompts = document_prompts(journey.shards(source, "train"), count, part.prompt_tokens, 1, generator)
        requests += over_laws(prompts, laws)
    return requests


def _law(temperature: float, part: SynthesizePart) -> Law:
    return Law(temperature, part.top_k, part.top_p) if temperature > 0 else Law(0.0)


def decoding(journey: Journey, part: SynthesizePart | EvaluatePart) -> Decoding:
    """How the target answers, for training and for evaluation."""
    card, seed = journey.target_card(), journey.recipe.seed
    return Decoding(part.completion_tokens, frozenset(card.eos_ids), seed, card.digest, part.batch_prompts)
