"""The context of a run: its recipe, its folder, its device, and the models and shards found there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fastdraft.config import Recipe, TrainPart
from fastdraft.data.corpus_card import CorpusCard
from fastdraft.data.shards import Shards
from fastdraft.models import draft, named_model, target
from fastdraft.models.target import TargetCard
from fastdraft.system import precision
from fastdraft.system.cards import read_card
from fastdraft.system.errors import TargetError
from fastdraft.system.files import write_json
from fastdraft.system.precision import Asked, Precision
from fastdraft.system.progress import log_line

PHASES = ("pretrain", "continue", "align")


@dataclass(frozen=True)
class RunContext:
    """A recipe on its way: what every stage is given."""

    recipe: Recipe
    folder: Path
    device: torch.device

    def phase(self, name: str) -> TrainPart | None:
        """The recipe's part for a phase of training."""
        parts = {"pretrain": self.recipe.pretrain, "continue": self.recipe.continue_, "align": self.recipe.align}
        return parts[name]

    def drafts(self) -> list[str]:
        """The phases of this recipe, in order; each leaves a draft."""
        return [name for name in PHASES if self.phase(name) is not None]

    def target_card(self) -> TargetCard:
        """The card of the target."""
        return read_card(self.folder / "target", TargetCard)

    def shards(self, source: str, side: str) -> Shards:
        """One side of a tokenised source."""
        card = read_card(self.folder / "tokenize", CorpusCard).sources[source]
        return Shards(self.folder / "tokenize" / source / side / "shards", getattr(card, side))

    def precision(self, folder: Path, asked: Asked) -> Precision:
        """What a phase of training computes in, chosen when it begins: a phase that is resumed elsewhere keeps it.

        Of several processes one asks and tells the others.
        """
        return _kept(folder, lambda: precision.choose(asked, self.device))

    def target_precision(self, folder: Path, asked: Asked) -> Precision:
        """What the target computes in during the stage of this folder: chosen when it begins, and kept."""
        return _kept(folder, lambda: target.precision_of(self.recipe.target, asked, self.device))

    def automatic(self) -> dict[str, str]:
        """For each `precision: auto` of the recipe: what it is on this device, and why."""
        found = precision.choose("auto", self.device)
        parts = {
            **{name: self.phase(name) for name in PHASES},
            "synthesize": self.recipe.synthesize,
            "evaluate": self.recipe.evaluate,
        }
        # The target is not opened for a comment: it may not be here yet.
        unless = ", unless the target's weights are stored in fp32" if found.name == "bf16" else ""
        return {
            f"{name}.precision": f"{found.name}, {found.reason}{'' if name in PHASES else unless}"
            for name, part in parts.items()
            if part is not None and part.precision == "auto"
        }

    def open_target(self, dtype: torch.dtype) -> PreTrainedModel:
        """The target on this run's device."""
        return target.open_model(self.recipe.target, self.device, dtype)

    def check_teacher(self, phase: str) -> None:
        """Where a phase has a teacher: TargetError where it is missing or its context is shorter than a row,
        VocabularyMismatch where it means something else by the ids.
        """
        part, key = self.phase(phase), f"{phase}.teacher"
        if part is None or not part.teacher:
            return
        teacher, advice = named_model.read(part.teacher, key), "leave it out: the target itself is asked then"
        tokenizer = target.open_tokenizer(self.recipe.target)
        named_model.check_same_ids(teacher, tokenizer, key, f"name one of the target's own family, or {advice}")
        context = teacher.context_tokens() or part.sequence_tokens
        if context < part.sequence_tokens:
            raise TargetError(
                f"{phase}.sequence_tokens is {part.sequence_tokens:,}, the context of {key} {part.teacher} holds "
                f"{context:,} tokens\n  do: lower it, name another model, or {advice}"
            )

    def open_teacher(self, phase: str, dtype: torch.dtype) -> PreTrainedModel | None:
        """The model whose online distribution a phase learns: its `teacher`, or the target; None where it learns
        none.
        """
        part = self.phase(phase)
        if part is None or not part.needs_teacher:
            return None
        if not part.teacher:
            return self.open_target(dtype)
        self.check_teacher(phase)
        return named_model.open_model(part.teacher, f"{phase}.teacher", self.device, dtype)

    def open_draft(self, phase: str) -> PreTrainedModel:
        """The draft that a phase left; VocabularyMismatch where it is not one for this target."""
        folder = self.folder / phase / "model"
        model = draft.open_draft(folder, self.device)
        draft.check_fit(model, self.target_card(), folder)
        return model


def _kept(folder: Path, choose: Callable[[], Precision]) -> Precision:
    """The precision that precision.json in a stage's folder says; where there is none, one is chosen and kept there."""
    file = folder / "precision.json"
    if file.is_file():
        return Precision.model_validate_json(file.read_text(encoding="utf-8"))
    found = choose()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, found.model_dump())
    log_line(f"{folder.name}: computes in {found.name}: {found.reason}")
    return found
