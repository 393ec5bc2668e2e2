"""Where a draft comes from: its folder, the run that made it, and the target it was made for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fastdraft.config import Recipe, TargetPart
from fastdraft.config.resolve import resolve
from fastdraft.models import target
from fastdraft.models.draft import DraftCard
from fastdraft.models.run_context import PHASES
from fastdraft.models.target import TargetCard
from fastdraft.system.cards import FILE, AnyCard, Cost, read_card
from fastdraft.system.errors import ExportError


class Origin(NamedTuple):
    """A draft's folder, and the run that it lies in, if it lies in one."""

    folder: Path
    run: Path | None

    @property
    def phase(self) -> str:
        """The phase that made the draft."""
        return self.folder.parent.name

    def recipe(self) -> Recipe | None:
        """What the run was made from."""
        return None if self.run is None else resolve(self.run / "resolved.yaml").recipe

    def card(self, stage: str, kind: type[AnyCard]) -> AnyCard | None:
        """A stage's card; None where the stage is not done."""
        done = self.run is not None and (self.run / stage / FILE).is_file()
        return read_card(self.run / stage, kind) if self.run is not None and done else None

    def drafts(self) -> dict[str, DraftCard]:
        """The cards of the phases up to the draft's own, in order."""
        found = {phase: self.card(phase, DraftCard) for phase in PHASES[: PHASES.index(self.phase) + 1]}
        return {phase: card for phase, card in found.items() if card is not None}

    def trained_for(self) -> str | None:
        """The digest of the target that the draft was trained for; None where nothing says it."""
        card = self.card(self.phase, DraftCard)
        return None if card is None else card.target_digest


def origin_of(given: Path) -> Origin:
    """A draft given by its own folder, by that of its phase, or by its run, whose last draft it then is."""
    places = [given, given / "model", *(given / phase / "model" for phase in reversed(PHASES))]
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    if folder is None:
        raise ExportError(
            f"no draft at {given}: it has neither config.json nor model/config.json\n"
            f"  do: give the folder of a draft, like runs/demo/align/model"
        )
    phase = folder.resolve().parent
    ours = phase.name in PHASES and (phase / FILE).is_file() and (phase.parent / "resolved.yaml").is_file()
    return Origin(folder, folder.parent.parent if ours else None)


def origin_named(name: str) -> Origin:
    """A draft by its folder, that of its phase or its run, or by its hub id."""
    local = Path(name).expanduser()
    if local.exists() or name.startswith((".", "/", "~")):
        return origin_of(local)
    return Origin(target.folder_of(TargetPart(path=name)), None)


def target_of(origin: Origin) -> TargetPart:
    """The target that the draft's run names; ExportError where there is no run."""
    recipe = origin.recipe()
    if recipe is None:
        raise ExportError(
            f"nothing beside {origin.folder} says which target it is a draft for\n  do: add --target TARGET"
        )
    return recipe.target


def target_card(origin: Origin, part: TargetPart) -> TargetCard:
    """The target's card: made anew of a folder's files, so that a change is seen; of a hub's model the run's own card.

    A hub's weights are not fetched for it.
    """
    recipe, measured = origin.recipe(), origin.card("target", TargetCard)
    here = part.path == "demo" or Path(part.path).expanduser().exists()
    if not here and measured is not None and recipe is not None and _same_files(recipe.target, part):
        return measured
    return TargetCard(key="", cost=Cost(seconds=0.0), **target.card(part, weights=False))


def _same_files(one: TargetPart, other: TargetPart) -> bool:
    return one.model_copy(update={"licence": None}) == other.model_copy(update={"licence": None})


def benches(origin: Origin) -> Path:
    """Where records of benches lie: in the draft's run, or in its own folder."""
    return (origin.run or origin.folder) / "bench"
