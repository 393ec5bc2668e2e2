"""The held-out prompts on which a run is evaluated."""

from __future__ import annotations

import numpy as np

from fastdraft.config import EvaluatePart
from fastdraft.data.shards import Tokens
from fastdraft.models.run_context import Journey
from fastdraft.synthesize.completions import Law, Request
from fastdraft.synthesize.prompts import document_prompts


def asked(journey: Journey, part: EvaluatePart) -> dict[tuple[str, float], list[Request]]:
    """The held-out prompts of each task at each temperature; the same prompts for all."""
    prompts = {task: evaluation_prompts(journey, part, task) for task in part.tasks}
    return {(task, at): [Request(p, Law(at)) for p in prompts[task]] for task in prompts for at in part.temperatures}


def evaluation_prompts(journey: Journey, part: EvaluatePart, task: str) -> list[Tokens]:
    """The held-out prompts of a task."""
    generator = np.random.default_rng([journey.recipe.seed, part.tasks.index(task)])
    return list(document_prompts(journey.shards(task, "held_out"), part.prompts, part.prompt_tokens, 1, generator))
