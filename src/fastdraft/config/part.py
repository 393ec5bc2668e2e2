"""The base class of all parts of a recipe, and marks for keys that do not change the result of a stage."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Mark(Enum):
    """The effect of a recipe key, as metadata of its field: `workers: Annotated[PositiveInt, Mark.NO_RESULT]`."""

    NO_RESULT = "changes how a stage runs, but not its result: a finished stage stays valid"
    VALIDATION = "selects the completions for validation during training"


class Part(BaseModel):
    """A part of a recipe: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    @classmethod
    def marked(cls, mark: Mark) -> set[str]:
        """The names of the fields with this mark."""
        return {name for name, field in cls.model_fields.items() if mark in field.metadata}

    def key_content(self) -> dict[str, Any]:
        """The values on which the stage's result depends, for the key of its card."""
        return self.model_dump(mode="json", exclude=self.marked(Mark.NO_RESULT))
