"""The base class of all parts of a recipe, the types of its values, and marks for keys that do not change a result.

Every whole number of a recipe has an upper limit (system/limits.py).
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fastdraft.system import limits

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# Timers of the operating system hold no span of time above some centuries.
Seconds = Annotated[float, Field(gt=0, le=10**8)]
Total = Annotated[int, Field(gt=0, le=limits.TOTAL)]
SequenceTokens = Annotated[int, Field(gt=0, le=limits.SEQUENCE)]
BatchSize = Annotated[int, Field(gt=0, le=limits.BATCH)]
SampleSize = Annotated[int, Field(gt=0, le=limits.SAMPLE)]
Parallel = Annotated[int, Field(gt=0, le=limits.PARALLEL)]
Gamma = Annotated[int, Field(gt=0, le=limits.GAMMA)]
Width = Annotated[int, Field(gt=0, le=limits.WIDTH)]
Heads = Annotated[int, Field(gt=0, le=limits.HEADS)]
Count = Annotated[int, Field(gt=0, le=limits.COUNT)]

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
# What FastDraft itself writes next to the folders that have these names.
TAKEN = re.compile(r"(key|lock|stale|[a-z]+\.(json|yaml|html)|.*\.(attempts|fastdraft-(part|old)))")


def _check_name(name: str) -> str:
    if not re.fullmatch(NAME, name):
        raise ValueError(
            f"found {name[:100]!r}, wanted 1 to 64 letters, digits, `.`, `_` or `-`, the first a letter or a digit"
        )
    if TAKEN.fullmatch(name):
        raise ValueError(f"found {name!r}, wanted a name that no file of a run has")
    return name


# A name that becomes the name of a folder or a file: it cannot lead elsewhere.
Name = Annotated[str, AfterValidator(_check_name), Field(json_schema_extra={"pattern": f"^{NAME}$"})]


def as_name(text: str) -> str:
    """A `Name` from any text: other characters become `-`."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:64] or "run"
    return f"{name[:60]}-run" if TAKEN.fullmatch(name) else name


class Mark(Enum):
    """The effect of a recipe key, as metadata of its field: `workers: Annotated[Parallel, Mark.NO_RESULT]`."""

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
