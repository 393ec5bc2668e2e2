"""`validation`: completions of the target that drafts are measured on while they train.

Their prompts are windows of held-out documents, like those of `evaluate`, but never the same ones: a draft is not
reported on the prompts that it was chosen by.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
from transformers import PreTrainedModel

from fastdraft.config import EvaluatePart
from fastdraft.data.shards import Tokens
from fastdraft.evaluation.one_pass import acceptances
from fastdraft.evaluation.run_recording import evaluation_prompts
from fastdraft.maths.acceptance import chain
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.stage_result import Note, StageResult
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.synthesize.decoding_params import decoding_params
from fastdraft.synthesize.engine_interface import with_keys
from fastdraft.synthesize.engine_transformers import complete
from fastdraft.synthesize.leaks import Leaks
from fastdraft.synthesize.prompts import assign_sampling, document_prompts
from fastdraft.system import processes
from fastdraft.system.cards import Card, open_stage
from fastdraft.system.errors import CorpusError
from fastdraft.system.precision import Precision

# The seed of a task's prompts: evaluation uses the task's number, validation this plus the task's number.
SEED_OFFSET = 1000
LEAK_TOKENS = 13


class ValidationCard(Card):
    """The validation completions of a run: for each task their keys in `completions/`; what the target computed in."""

    kind: ClassVar[str] = "validation"
    refills: ClassVar[bool] = True
    precision: Precision
    tasks: dict[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Validation:
    """Measures a draft by block efficiency. Holds this process's part of the completions; all processes call it."""

    completions: dict[str, list[Completion]]
    gamma: int

    def __call__(self, draft: PreTrainedModel) -> dict[str, float]:
        """`block_efficiency_TASK` of each task at `gamma`, and `block_efficiency` over all tasks, in one pass."""
        sums = {task: processes.summed(*self._counts(draft, task)) for task in self.completions}
        tokens, forwards = (sum(column) for column in zip(*sums.values(), strict=True))
        of_task = {f"block_efficiency_{task}": tokens / forwards for task, (tokens, forwards) in sums.items()}
        return {"block_efficiency": tokens / forwards} | of_task

    def _counts(self, draft: PreTrainedModel, task: str) -> tuple[float, float]:
        """Tokens, and the target forwards that speculative decoding takes for them."""
        if not self.completions[task]:
            return 0.0, 0.0
        counts = chain(*acceptances(draft, self.completions[task]), self.gamma)
        return float(counts.tokens_B.sum()), float(counts.forwards_B.sum())


def make_validation(run_context: RunContext, folder: Path) -> StageResult:
    """The target's completions of each task's validation prompts, with the temperatures in turn."""
    part = run_context.recipe.evaluate
    assert part is not None, "a stage without a part is not in the pipeline"
    precision, how = (
        run_context.target_precision(folder, part.precision),
        decoding_params(run_context, part, part.batch_size),
    )
    requests = {}
    for task in part.tasks:
        prompts = list(islice(_prompts(run_context, part, task), part.validation_prompts))
        if len(prompts) < part.validation_prompts:
            warnings.warn(
                f"{task}: {len(prompts)} held-out prompts for validation, wanted {part.validation_prompts}: "
                f"evaluate.prompts takes {part.prompts}",
                Note,
                stacklevel=2,
            )
        requests[task] = list(assign_sampling(prompts, {SamplingParams(at): 1.0 for at in part.temperatures}))
    everything = [request for of_task in requests.values() for request in of_task]
    completions: list[Completion] = []
    if everything:
        model = run_context.open_target(precision.dtype)
        completions = complete(model, everything, how, CompletionStore(folder / "completions"), "validation prompts")
    keys = {task: tuple(row.key for row in with_keys(of_task, how)) for task, of_task in requests.items()}
    return StageResult({"precision": precision, "tasks": keys}, sum(len(row.tokens) for row in completions))


def open_validation(run_context: RunContext) -> Validation | None:
    """What the drafts of a run are measured on; None where the recipe has no validation, or no document for it."""
    part, folder = run_context.recipe.evaluate, run_context.folder / "validation"
    if part is None or not part.validation_prompts:
        return None
    keys = {task: of_task for task, of_task in open_stage(folder, ValidationCard).tasks.items() if of_task}
    if not keys:
        return None
    store, mine = CompletionStore(folder / "completions"), slice(processes.rank(), None, processes.world_size())
    return Validation({task: store.read(of_task)[mine] for task, of_task in keys.items()}, part.verify_gamma)


def _prompts(run_context: RunContext, part: EvaluatePart, task: str) -> Iterator[Tokens]:
    """Windows of a task's held-out documents that share no run of LEAK_TOKENS tokens with the prompts of `evaluate`."""
    shards, bos = run_context.shards(task, "held_out"), run_context.target_card().added_bos_id
    generator = np.random.default_rng([run_context.recipe.seed, SEED_OFFSET + part.tasks.index(task)])
    taken = Leaks(evaluation_prompts(run_context, part, task), min(LEAK_TOKENS, part.max_prompt_tokens))
    with suppress(CorpusError):  # all windows have been given out
        for prompt in document_prompts(shards, shards.tokens, part.max_prompt_tokens, 1, generator, bos=bos):
            if prompt not in taken:
                yield prompt
