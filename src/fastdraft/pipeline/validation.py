"""What a draft is measured on while it trains: completions that the target wrote for this, once for all phases.

Their prompts are windows of held-out documents, like those of `evaluate`, and never the same ones: what a draft is
chosen by is not what it is reported on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
from transformers import PreTrainedModel

from fastdraft.config import EvaluatePart
from fastdraft.data.shards import Tokens
from fastdraft.evaluate.one_pass import acceptances
from fastdraft.evaluate.run_prompts import evaluation_prompts
from fastdraft.maths.acceptance import chain
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.stage_result import Note
from fastdraft.synthesize.completions import Completion, CompletionStore, Request, SamplingParams
from fastdraft.synthesize.engine_transformers import complete
from fastdraft.synthesize.leaks import Leaks
from fastdraft.synthesize.prompts import document_prompts, over_sampling
from fastdraft.synthesize.run_decoding import decoding
from fastdraft.synthesize.write import keyed
from fastdraft.system import processes
from fastdraft.system.errors import CorpusError

FOLDER = "measure"
# Beside the seeds of evaluation's prompts, which are the recipe's and the task's number.
OWN_SEED = 1000
RUN_TOKENS = 13


@dataclass(frozen=True, eq=False)
class Measure:
    """This process's portion of the completions of each task; all processes must ask at once."""

    rows: dict[str, list[Completion]]
    gamma: int

    def __call__(self, draft: PreTrainedModel) -> dict[str, float]:
        """`block_efficiency_TASK` at gamma of a whole draft, in one pass, and `block_efficiency` over all tasks."""
        sums = {task: processes.summed(*self._counts(draft, task)) for task in self.rows}
        tokens, forwards = (sum(column) for column in zip(*sums.values(), strict=True))
        of_task = {f"block_efficiency_{task}": tokens / forwards for task, (tokens, forwards) in sums.items()}
        return {"block_efficiency": tokens / forwards} | of_task

    def _counts(self, draft: PreTrainedModel, task: str) -> tuple[float, float]:
        """Tokens, and the target forwards that they would have taken."""
        if not self.rows[task]:
            return 0.0, 0.0
        counts = chain(*acceptances(draft, self.rows[task]), self.gamma)
        return float(counts.tokens_B.sum()), float(counts.forwards_B.sum())


def open_measure(run_context: RunContext) -> Measure | None:
    """The measure of a run, whose completions are written now if they are not there; None where the recipe has none."""
    part = run_context.recipe.evaluate
    if part is None or not part.validation_prompts:
        return None
    of_task = {task: list(_requests(run_context, part, task)) for task in part.tasks}
    requests = [request for asked in of_task.values() for request in asked]
    if not requests:
        return None
    how, store = (
        decoding(run_context, part, part.batch_size),
        CompletionStore(run_context.folder / FOLDER / "completions"),
    )
    keys = {task: [row.key for row in keyed(asked, how)] for task, asked in of_task.items()}
    processes.on_rank0(lambda: _write(run_context, part, requests, store))
    mine = slice(processes.rank(), None, processes.count())
    return Measure({task: store.read(found)[mine] for task, found in keys.items() if found}, part.verify_gamma)


def _write(run_context: RunContext, part: EvaluatePart, requests: list[Request], store: CompletionStore) -> None:
    """Have the store hold the completion of each request; the target is opened where one is missing."""
    how, stored = decoding(run_context, part, part.batch_size), store.stored()
    if any(row.key not in stored for row in keyed(requests, how)):
        precision = run_context.target_precision(run_context.folder / FOLDER, part.precision)
        complete(run_context.open_target(precision.dtype), requests, how, store, "prompts to measure on")


def _requests(run_context: RunContext, part: EvaluatePart, task: str) -> Iterator[Request]:
    """A task's prompts, the distributions in turn; a Note where the held-out side has fewer than asked."""
    prompts = list(islice(_prompts(run_context, part, task), part.validation_prompts))
    if len(prompts) < part.validation_prompts and processes.is_main():
        said = f"{task}: {len(prompts)} held-out prompts to measure on while training, wanted {part.validation_prompts}"
        warnings.warn(f"{said}: evaluate.prompts takes {part.prompts}", Note, stacklevel=2)
    return over_sampling(prompts, {SamplingParams(temperature): 1.0 for temperature in part.temperatures})


def _prompts(run_context: RunContext, part: EvaluatePart, task: str) -> Iterator[Tokens]:
    """Windows of a task's held-out documents that are not, nor half of them, among those of `evaluate`."""
    shards = run_context.shards(task, "held_out")
    seed = [run_context.recipe.seed, OWN_SEED + part.tasks.index(task)]
    taken = Leaks(evaluation_prompts(run_context, part, task), min(RUN_TOKENS, part.max_prompt_tokens))
    with suppress(CorpusError):  # all windows have been given out
        for prompt in document_prompts(shards, shards.tokens, part.max_prompt_tokens, 1, np.random.default_rng(seed)):
            if prompt not in taken:
                yield prompt
