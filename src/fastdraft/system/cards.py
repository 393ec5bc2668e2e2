"""Cards: the frozen result of a stage, written as JSON into its folder after everything else.

A card's `key` is a hash of all inputs of the stage: the stage's version, its part of the recipe, and the keys of the
cards that it read. If the key of the card on disk is the same, the stage is already done.

A card also records every file of the stage. Who uses these files opens the stage with `open_stage`, which checks them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastdraft.system.energy import Joules
from fastdraft.system.errors import CardError
from fastdraft.system.files import write_json
from fastdraft.system.stage_files import StageFile, added_files, damaged_files, record_files
from fastdraft.system.validation import Seconds, Size, explain, shortened

VERSION = 4
FILE = "card.json"
# Damaged files that an error lists.
SHOWN_FILES = 20


class Cost(BaseModel):
    """Cost of a stage. `joules` is by part of the machine (energy.py); None if energy was not measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seconds: Seconds
    tokens: Size = 0
    joules: Joules | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class Card(BaseModel):
    """The base class of cards. `contents` are the files of the stage by their path in its folder.

    left_out: patterns of paths that are not recorded, because they change after the card has been written.
    grows: files may be added after the card has been written.
    refills: once its card is removed, the stage makes only those of its files again that are missing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str]
    left_out: ClassVar[tuple[str, ...]] = ()
    grows: ClassVar[bool] = False
    refills: ClassVar[bool] = False
    version: int = VERSION
    key: str
    cost: Cost
    contents: dict[str, StageFile] = Field(default_factory=dict)


AnyCard = TypeVar("AnyCard", bound=Card)


def write_card(folder: Path, card: AnyCard) -> AnyCard:
    """Write the card of a stage into its folder, which completes the stage. Returns it with the stage's contents."""
    card = card.model_copy(update={"contents": record_files(folder, _left_out(type(card)))})
    write_json(folder / FILE, {"kind": card.kind} | card.model_dump(mode="json"))
    return card


def open_stage(folder: Path, kind: type[AnyCard], whole: bool = False) -> AnyCard:
    """The card of a finished stage whose files are as the card records them; CardError if one is not.

    whole: read every file in full; otherwise only samples of large ones (stage_files.py).
    """
    card = read_card(folder, kind)
    problems = damaged_files(folder, card.contents, whole)
    remedy = f"restore the files, or remove {folder} and run again: the stage is then repeated"
    if kind.refills:
        remedy = f"remove these files and {folder / FILE}, then run again: only what is missing is made again"
    if not problems and not kind.grows:
        problems = dict.fromkeys(added_files(folder, card.contents, _left_out(kind)), "is not in its card")
        remedy = f"move what is not in the card out of {folder}"
    if problems:
        shown = [f"{name} {problem}" for name, problem in problems.items()][:SHOWN_FILES]
        more = [f"and {len(problems) - SHOWN_FILES} more"] if len(problems) > SHOWN_FILES else []
        found = "\n  ".join([*shown, *more])
        raise CardError(f"{folder} does not hold the files that its card records:\n  {found}\n  do: {remedy}")
    return card


def card_key(folder: Path) -> str | None:
    """The key of the card in a folder; None if there is no valid card of this version."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["key"]) if content["version"] == VERSION else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_card(folder: Path, kind: type[AnyCard]) -> AnyCard:
    """The card in a folder, its files unchecked; CardError if it is missing, broken, or of another kind or version."""
    path = folder / FILE
    remedy = f"  do: remove {folder} and run again: the stage is then repeated"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CardError(f"no card at {path}\n  do: run the stage that writes it") from None
    except OSError as error:
        raise CardError(f"{path} cannot be read: {error.strerror}\n{remedy}") from error
    except (ValueError, RecursionError) as error:
        raise CardError(f"{path} is not a card: it is not JSON\n{remedy}") from error
    named = content if isinstance(content, dict) else {}
    if not isinstance(named.get("kind"), str) or type(named.get("version")) is not int:
        raise CardError(f"{path} is not a card: it names no kind and version\n{remedy}")
    if (named["kind"], named["version"]) != (kind.kind, VERSION):
        found = f"is a card `{shortened(named['kind'])}` of version {shortened(str(named['version']))}"
        raise CardError(f"{path} {found}, wanted `{kind.kind}` of version {VERSION}\n{remedy}")
    if "contents" not in named:
        raise CardError(f"{path} is not a valid card `{kind.kind}`:\n  contents: missing\n{remedy}")
    try:
        return kind.model_validate({name: value for name, value in named.items() if name != "kind"})
    except ValidationError as error:
        problems = "\n  ".join(explain(error))
        raise CardError(f"{path} is not a valid card `{kind.kind}`:\n  {problems}\n{remedy}") from error


def _left_out(kind: type[Card]) -> tuple[str, ...]:
    """The card itself, the file `key` of a stage, and what this kind of card leaves out."""
    return (FILE, "key", *kind.left_out)
