"""A run's own evaluation as a recording: what its target wrote after held-out prompts, to score any draft on.

The stage keeps the completions alone; whose they are and what was asked follows from the run's recipe and cards.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from fastdraft.config import EvaluatePart, TargetPart
from fastdraft.config.resolve import resolve
from fastdraft.evaluate.recording import RecordingCard, Written, vocabulary_digest
from fastdraft.evaluate.run_prompts import asked
from fastdraft.models import target
from fastdraft.models.run_context import RunContext
from fastdraft.models.token_bytes import spelled
from fastdraft.results.evaluation import EvaluationCard
from fastdraft.synthesize.completions import CompletionStore
from fastdraft.synthesize.run_decoding import decoding
from fastdraft.synthesize.write import keyed
from fastdraft.system.cards import read_card
from fastdraft.system.errors import RecordingError

RESOLVED = "resolved.yaml"
# Rises when evaluation would choose other prompts out of the same documents.
VERSION = 1


def is_own(folder: Path) -> bool:
    """Is this where a run keeps its evaluation?"""
    return folder.resolve().name == "evaluate" and (folder.resolve().parent / RESOLVED).is_file()


def own_recording(folder: Path) -> RecordingCard:
    """The card that a recording of the same completions would have.

    CardError where the stage is not done; RecordingError where it was done with another recipe or target than those
    that the run has now.
    """
    evaluation, run = read_card(folder, EvaluationCard), folder.resolve().parent
    recipe = resolve(run / RESOLVED).recipe
    run_context, part = RunContext(recipe, run, torch.device("cpu")), recipe.evaluate
    card, written = run_context.target_card(), tuple(_written(run_context, part)) if part else ()
    stored = CompletionStore(folder / "completions").stored()
    if not written or any(key not in stored for of_task in written for key in of_task.keys):
        raise RecordingError(
            f"{folder} was not made with the recipe in {run / RESOLVED} and the target {card.name} (files' digest "
            f"{card.digest}): what these ask is not there\n"
            f"  do: bring the run to its end with `fastdraft run {run / RESOLVED} --folder {run}`"
        )
    return RecordingCard(
        key=card.digest,
        cost=evaluation.cost,
        target=card,
        precision=evaluation.precision,
        revision=recipe.target.revision,
        vocabulary=_vocabulary(run_context),
        written=written,
    )


def _written(run_context: RunContext, part: EvaluatePart) -> Iterator[Written]:
    """What was asked, with the keys of the answers."""
    how = decoding(run_context, part, part.batch_size)
    for (task, _), requests in asked(run_context, part).items():
        yield Written(
            task=task,
            version=VERSION,
            source=f"held out in {run_context.folder / 'tokenize' / task}",
            **requests[0].sampling._asdict(),
            max_new_tokens=part.max_new_tokens,
            seed=how.seed,
            keys=tuple(row.key for row in keyed(requests, how)),
            left_out={},
        )


def _vocabulary(run_context: RunContext) -> str:
    """The target's, by the tokenizer files that its drafts carry byte for byte: the target need not be here."""
    model = run_context.folder / run_context.drafts()[-1] / "model"
    return vocabulary_digest(spelled(target.open_tokenizer(TargetPart(path=str(model)))))
