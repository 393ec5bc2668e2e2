"""`target`: the card of the target, and a check of the recipe against it before any work."""

from __future__ import annotations

import warnings
from pathlib import Path

from fastdraft import init
from fastdraft.models import target
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.stage_result import Note, StageResult
from fastdraft.system.errors import TargetError


def make_target(run_context: RunContext, _folder: Path) -> StageResult:
    """The card of the target."""
    recipe, fields = run_context.recipe, target_fields(run_context)
    for note in init.shape_of(recipe.target, recipe.draft).notes:
        warnings.warn(note, Note, stacklevel=2)
    return StageResult(fields)


def target_fields(run_context: RunContext) -> dict[str, object]:
    """The fields of the target's card, after the models and lengths of the recipe were checked.

    ShapeError if the draft cannot have the requested shape. TargetError or VocabularyMismatch if `draft.init` or a
    teacher does not fit the target. TargetError if a prompt and its completion exceed the target's context.
    """
    recipe, fields = run_context.recipe, target.card(run_context.recipe.target)
    for phase in run_context.drafts():
        run_context.check_teacher(phase)
    init.shape_of(recipe.target, recipe.draft)
    context = int(str(fields["context_tokens"]))
    for name, part in (("synthesize", recipe.synthesize), ("evaluate", recipe.evaluate)):
        if part is not None and part.max_prompt_tokens + part.max_new_tokens > context:
            raise TargetError(
                f"{name}.max_prompt_tokens + {name}.max_new_tokens is {part.max_prompt_tokens + part.max_new_tokens}, "
                f"the context of {recipe.target.path} holds {context} tokens\n  do: lower one of them"
            )
    return fields
