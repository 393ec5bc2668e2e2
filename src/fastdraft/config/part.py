"""What all parts of a recipe share, and the marks that say which keys a stage's result depends on."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Mark(Enum):
    """What a recipe key decides, as metadata of its field: `workers: Annotated[PositiveInt, Mark.NO_RESULT]`."""

    NO_RESULT = "how a stage runs, and not what it makes: another value leaves a finished stage as it is"
    VALIDATION = "which completions a draft is measured on while it trains"


class Part(BaseModel):
    """A part of a recipe: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    @classmethod
    def marked(cls, mark: Mark) -> set[str]:
        """The names of the fields that have this mark."""
        return {name for name, field in cls.model_fields.items() if mark in field.metadata}

    def key_content(self) -> dict[str, Any]:
        """The values that a stage's result depends on, for the key of its card."""
        return self.model_dump(mode="json", exclude=self.marked(Mark.NO_RESULT))
