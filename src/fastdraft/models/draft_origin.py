"""Where a draft comes from: its folder, the run that made it, and the target it was made for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fastdraft.config import Recipe, TargetPart
from fastdraft.config.resolve import resolve
from fastdraft.models import named_pairs, target
from fastdraft.models.draft import DraftCard, check_stage
from fastdraft.models.pretrained import folder_of
from fastdraft.models.run_context import PHASES
from fastdraft.models.target import TargetCard
from fastdraft.system.cards import FILE, AnyCard, Cost, read_card
from fastdraft.system.errors import ExportError


class Origin(NamedTuple):
    """A draft's folder, and the run that contains it; None if it lies in no run."""

    folder: Path
    run: Path | None

    @property
    def phase(self) -> str:
        """The training phase that wrote the draft."""
        return self.folder.parent.name

    def recipe(self) -> Recipe | None:
        """The run's recipe."""
        return None if self.run is None else resolve(self.run / "resolved.yaml").recipe

    def card(self, stage: str, kind: type[AnyCard]) -> AnyCard | None:
        """A stage's card; None if the stage has not finished."""
        if self.run is None or not (self.run / stage / FILE).is_file():
            return None
        return read_card(self.run / stage, kind)

    def drafts(self) -> dict[str, DraftCard]:
        """The cards of the phases up to the draft's own, in order."""
        cards = {phase: self.card(phase, DraftCard) for phase in PHASES[: PHASES.index(self.phase) + 1]}
        return {phase: card for phase, card in cards.items() if card is not None}

    def trained_for(self) -> str | None:
        """The digest of the target that the draft was trained for; None if it is not known."""
        card = self.card(self.phase, DraftCard)
        return None if card is None else card.target_digest

    def bench_folder(self) -> Path:
        """The folder of bench records: in the draft's run, or in its own folder."""
        return (self.run or self.folder) / "bench"


def origin_of(draft: str | Path) -> Origin:
    """The origin of a draft: the name of a pair, a hub id, its folder, that of its phase, or a run (its last draft).

    ExportError if there is no draft; CardError if a training phase wrote it, and it has changed since.
    """
    if draft in named_pairs.NAMES:
        return Origin(named_pairs.draft(str(draft)), None)
    local = Path(draft).expanduser()
    if isinstance(draft, str) and not local.exists() and not draft.startswith((".", "/", "~")):
        return Origin(folder_of(draft), None)
    places = [local, local / "model", *(local / phase / "model" for phase in reversed(PHASES))]
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    if folder is None:
        raise ExportError(
            f"no draft at {local}: it has neither config.json nor model/config.json\n"
            f"  do: give the folder of a draft, like runs/demo/align/model"
        )
    check_stage(folder)
    phase = folder.resolve().parent
    in_run = phase.name in PHASES and (phase / FILE).is_file() and (phase.parent / "resolved.yaml").is_file()
    return Origin(folder, folder.parent.parent if in_run else None)


def target_of(origin: Origin) -> TargetPart:
    """The target of the draft's run or pair; ExportError if it is part of neither."""
    for name in named_pairs.NAMES:
        if origin.folder == named_pairs.draft(name):
            return TargetPart(path=name)
    recipe = origin.recipe()
    if recipe is None:
        raise ExportError(f"no run next to {origin.folder} names the target of this draft\n  do: add --target TARGET")
    return recipe.target


def target_card(origin: Origin, part: TargetPart) -> TargetCard:
    """The target's card, without downloading weights.

    A local target's card is computed anew, so that changed files are noticed; a hub target's is read from the run.
    """
    recipe, stored = origin.recipe(), origin.card("target", TargetCard)
    is_local = part.path in named_pairs.NAMES or Path(part.path).expanduser().exists()
    same_files = recipe is not None and recipe.target.model_copy(update={"licence": part.licence}) == part
    if stored is not None and same_files and not is_local:
        return stored
    return TargetCard(key="", cost=Cost(seconds=0.0), **target.card(part, weights=False))
