"""Cards: the frozen result of a stage, written as JSON into its folder after everything else.

A card's `key` is a hash of all inputs of the stage: the stage's version, its part of the recipe, and the keys of the
cards that it read. If the key of the card on disk is the same, the stage is already done.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fastdraft.system.energy import Joules
from fastdraft.system.errors import CardError
from fastdraft.system.files import write_json
from fastdraft.system.validation import explain

VERSION = 3
FILE = "card.json"


class Cost(BaseModel):
    """Cost of a stage. `joules` is by part of the machine (energy.py); None if energy was not measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seconds: float
    tokens: int = 0
    joules: Joules | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class Card(BaseModel):
    """The base class of cards."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str]
    version: int = VERSION
    key: str
    cost: Cost


AnyCard = TypeVar("AnyCard", bound=Card)


def write_card(folder: Path, card: Card) -> None:
    """Write the card of a stage into its folder. This completes the stage."""
    write_json(folder / FILE, {"kind": card.kind} | card.model_dump(mode="json"))


def card_key(folder: Path) -> str | None:
    """The key of the card in a folder; None if there is no valid card of this version."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["key"]) if content["version"] == VERSION else None
    except (ValueError, KeyError, TypeError):
        return None


def read_card(folder: Path, kind: type[AnyCard]) -> AnyCard:
    """The card in a folder; CardError if it is missing, broken, or of another kind or version."""
    path = folder / FILE
    remedy = f"  do: remove {folder} and run again: the stage is then repeated"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind_and_version = (content.pop("kind"), content["version"])
    except FileNotFoundError:
        raise CardError(f"no card at {path}\n  do: run the stage that writes it") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CardError(f"{path} is not a card ({type(error).__name__}: {error})\n{remedy}") from error
    if kind_and_version != (kind.kind, VERSION):
        found = f"is a card `{kind_and_version[0]}` of version {kind_and_version[1]}"
        raise CardError(f"{path} {found}, wanted `{kind.kind}` of version {VERSION}\n{remedy}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = "\n  ".join(explain(error))
        raise CardError(f"{path} is not a valid card `{kind.kind}`:\n  {problems}\n{remedy}") from error
