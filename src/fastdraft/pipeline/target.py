"""`target`: the card of the target, and all that a recipe cannot do with it."""

from __future__ import annotations

import warnings
from pathlib import Path

from fastdraft import init
from fastdraft.models import target
from fastdraft.models.run_context import Journey
from fastdraft.pipeline.stage_result import Made, Note
from fastdraft.system.errors import TargetError


def make_target(journey: Journey, _folder: Path) -> Made:
    """The card of the target; what the recipe cannot do with this target is said here, before any work.

    ShapeError where no such draft can be, TargetError and VocabularyMismatch where its weights cannot start as asked or
    a teacher is none for this target; TargetError where a prompt and its completion exceed the target's context.
    """
    recipe, fields = journey.recipe, target.card(journey.recipe.target)
    for phase in journey.drafts():
        journey.check_teacher(phase)
    for note in init.shape_of(recipe.target, recipe.draft).notes:
        warnings.warn(note, Note, stacklevel=2)
    context = int(str(fields["context_tokens"]))
    for name, part in (("synthesize", recipe.synthesize), ("evaluate", recipe.evaluate)):
        if part is not None and part.prompt_tokens + part.completion_tokens > context:
            raise TargetError(
                f"{name}.prompt_tokens + {name}.completion_tokens is {part.prompt_tokens + part.completion_tokens}, "
                f"the context of {recipe.target.path} holds {context} tokens\n  do: lower one of them"
            )
    return Made(fields)
