"""The held-out prompts on which a run is evaluated."""

from __future__ import annotations

import numpy as np

from fastdraft.config import EvaluatePart
from fastdraft.data.shards import Tokens
from fastdraft.models.run_context import RunContext
from fastdraft.synthesize.completions import Request, SamplingParams
from fastdraft.synthesize.prompts import document_prompts


def asked(run_context: RunContext, part: EvaluatePart) -> dict[tuple[str, float], list[Request]]:
    """The held-out prompts of each task at each temperature; the same prompts for all."""
    prompts = {task: evaluation_prompts(run_context, part, task) for task in part.tasks}
    return {
        (task, at): [Request(p, SamplingParams(at)) for p in prompts[task]]
        for task in prompts
        for at in part.temperatures
    }


def evaluation_prompts(run_context: RunContext, part: EvaluatePart, task: str) -> list[Tokens]:
    """The held-out prompts of a task."""
    generator = np.random.default_rng([run_context.recipe.seed, part.tasks.index(task)])
    return list(
        document_prompts(run_context.shards(task, "held_out"), part.prompts, part.max_prompt_tokens, 1, generator)
    )
