"""A run's own evaluation as a recording, on which any draft can be scored.

The stage `evaluate` keeps only the completions. Their target and their prompts follow from the run's recipe and cards.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fastdraft.config import EvaluatePart
from fastdraft.config.resolve import resolve
from fastdraft.data.shards import Tokens
from fastdraft.evaluation.recording import RecordedTask, RecordingCard, vocabulary_digest
from fastdraft.models import pretrained
from fastdraft.models.run_context import RunContext
from fastdraft.models.token_bytes import id_bytes
from fastdraft.results.evaluation import EvaluationCard
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Request, SamplingParams
from fastdraft.synthesize.decoding_params import decoding_params
from fastdraft.synthesize.engine_interface import with_keys
from fastdraft.synthesize.prompts import document_prompts
from fastdraft.system.cards import open_stage
from fastdraft.system.errors import RecordingError

RESOLVED = "resolved.yaml"
# Raise it when evaluation would choose other prompts from the same documents.
VERSION = 2


def evaluation_requests(run_context: RunContext, part: EvaluatePart) -> dict[tuple[str, float], list[Request]]:
    """The requests of a run's evaluation by task and temperature; a task has the same prompts at each temperature."""
    prompts_by_task = {task: evaluation_prompts(run_context, part, task) for task in part.tasks}
    return {
        (task, temperature): [Request(prompt, SamplingParams(temperature)) for prompt in prompts]
        for task, prompts in prompts_by_task.items()
        for temperature in part.temperatures
    }


def evaluation_prompts(run_context: RunContext, part: EvaluatePart, task: str) -> list[Tokens]:
    """The held-out prompts of a task."""
    rng = np.random.default_rng([run_context.recipe.seed, part.tasks.index(task)])
    shards, bos = run_context.shards(task, "held_out"), run_context.target_card().added_bos_id
    return list(document_prompts(shards, part.prompts, part.max_prompt_tokens, 1, rng, bos=bos))


def is_run_evaluation(folder: Path) -> bool:
    """Whether a run keeps its evaluation in this folder."""
    return folder.resolve().name == "evaluate" and (folder.resolve().parent / RESOLVED).is_file()


def card_of_run(folder: Path) -> RecordingCard:
    """The card of a run's evaluation folder, as if `record` had generated the same completions.

    CardError if the stage is not done, or its files are damaged. RecordingError if the recipe or the target have
    changed since.
    """
    evaluation, run = open_stage(folder, EvaluationCard), folder.resolve().parent
    recipe = resolve(run / RESOLVED).recipe
    run_context, part = RunContext(recipe, run, torch.device("cpu")), recipe.evaluate
    target_card = run_context.target_card()
    tasks = tuple(_recorded_tasks(run_context, part)) if part else ()
    stored = CompletionStore(folder / "completions").stored_keys()
    if not tasks or any(key not in stored for task in tasks for key in task.keys):
        raise RecordingError(
            f"{folder} was not made with the recipe in {run / RESOLVED} and the target {target_card.name} (files' "
            f"digest {target_card.digest}): it lacks completions that these require\n"
            f"  do: finish the run with `fastdraft run {run / RESOLVED} --folder {run}`"
        )
    # The drafts carry the target's tokenizer files byte for byte, so the target itself need not be on this machine.
    tokenizer = pretrained.open_tokenizer(run / run_context.drafts()[-1] / "model")
    return RecordingCard(
        key=target_card.digest,
        cost=evaluation.cost,
        target=target_card,
        precision=evaluation.precision,
        revision=recipe.target.revision,
        vocabulary=vocabulary_digest(id_bytes(tokenizer)),
        written=tasks,
    )


def _recorded_tasks(run_context: RunContext, part: EvaluatePart) -> Iterator[RecordedTask]:
    decoding = decoding_params(run_context, part, part.batch_size)
    for (task, _), requests in evaluation_requests(run_context, part).items():
        yield RecordedTask(
            task=task,
            version=VERSION,
            source=f"held out in {run_context.folder / 'tokenize' / task}",
            **requests[0].sampling._asdict(),
            max_new_tokens=part.max_new_tokens,
            seed=decoding.seed,
            keys=tuple(row.key for row in with_keys(requests, decoding)),
            left_out={},
        )
