"""The cards that stages hand on: frozen, written as JSON beside their artefact, and last of all.

A card's `key` is the hash of all that made the artefact: the stage's version, its part of the recipe, the keys of the
cards it read. The same key means: already done.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fastdraft.system.energy import Joules
from fastdraft.system.errors import CardError
from fastdraft.system.files import write_json

VERSION = 2
FILE = "card.json"


class Cost(BaseModel):
    """What a stage took. `joules` by part of the machine that told (energy.py); None where none was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seconds: float
    tokens: int = 0
    joules: Joules | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class Card(BaseModel):
    """What every card says."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str]
    version: int = VERSION
    key: str
    cost: Cost


AnyCard = TypeVar("AnyCard", bound=Card)


def write_card(folder: Path, card: Card) -> None:
    """Write the card of the artefact in a folder: from now on it exists."""
    write_json(folder / FILE, {"kind": card.kind} | card.model_dump(mode="json"))


def card_key(folder: Path) -> str | None:
    """The key of the artefact in a folder; None where there is none, or one of another version."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["key"]) if content["version"] == VERSION else None
    except (ValueError, KeyError, TypeError):
        return None


def read_card(folder: Path, kind: type[AnyCard]) -> AnyCard:
    """The card in a folder; CardError where it is missing, broken, of another kind or version."""
    path = folder / FILE
    advice = f"  do: remove {folder} and run again: this stage is then made anew"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = (content.pop("kind"), content["version"])
    except FileNotFoundError:
        raise CardError(f"no card at {path}\n  do: run the stage that makes it") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CardError(f"{path} is not a card ({type(error).__name__}: {error})\n{advice}") from error
    if found != (kind.kind, VERSION):
        raise CardError(
            f"{path} is a card `{found[0]}` of version {found[1]}, wanted `{kind.kind}` of {VERSION}\n{advice}"
        )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise CardError(f"{path} does not read as a card `{kind.kind}`: {error}\n{advice}") from error
