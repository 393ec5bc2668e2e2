"""The context of a run: its recipe, folder and device, and access to its models and token shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fastdraft.config import Recipe, TrainPart
from fastdraft.data.corpus_card import CorpusCard
from fastdraft.data.shards import Shards
from fastdraft.models import draft, named_model, pretrained, target
from fastdraft.models.draft import DraftCard
from fastdraft.models.target import TargetCard
from fastdraft.system import precision
from fastdraft.system.cards import open_stage
from fastdraft.system.errors import TargetError
from fastdraft.system.files import write_json
from fastdraft.system.precision import Precision, PrecisionChoice
from fastdraft.system.progress import log_line
from fastdraft.system.validation import read_json

PHASES = ("pretrain", "continue", "align")


@dataclass(frozen=True)
class RunContext:
    """What every stage receives."""

    recipe: Recipe
    folder: Path
    device: torch.device

    def phase(self, name: str) -> TrainPart | None:
        """The recipe's part for a training phase; None if the recipe leaves it out."""
        parts = {"pretrain": self.recipe.pretrain, "continue": self.recipe.continue_, "align": self.recipe.align}
        return parts[name]

    def drafts(self) -> list[str]:
        """The training phases of this recipe in order. Each one writes a draft."""
        return [name for name in PHASES if self.phase(name) is not None]

    def target_card(self) -> TargetCard:
        """The card that the target stage wrote."""
        return open_stage(self.folder / "target", TargetCard)

    def shards(self, source: str, split: str) -> Shards:
        """The token shards of a source: `train` or `held_out`."""
        card = open_stage(self.folder / "tokenize", CorpusCard).sources[source]
        return Shards(self.folder / "tokenize" / source / split / "shards", getattr(card, split))

    def precision(self, folder: Path, requested: PrecisionChoice) -> Precision:
        """The precision of the training phase in `folder`, chosen when it begins; resuming keeps it."""
        return _stored_precision(folder, lambda: precision.choose(requested, self.device))

    def target_precision(self, folder: Path, requested: PrecisionChoice) -> Precision:
        """The target's precision in the stage of `folder`, chosen when it begins; resuming keeps it."""
        return _stored_precision(folder, lambda: target.precision_of(self.recipe.target, requested, self.device))

    def automatic(self) -> dict[str, str]:
        """For each key with `precision: auto`: the precision on this device, and the reason."""
        chosen = precision.choose("auto", self.device)
        parts = {
            **{name: self.phase(name) for name in PHASES},
            "synthesize": self.recipe.synthesize,
            "evaluate": self.recipe.evaluate,
        }
        # The target is not opened for this comment: it may not be downloaded yet.
        unless = ", unless the target's weights are stored in fp32" if chosen.name == "bf16" else ""
        return {
            f"{name}.precision": f"{chosen.name}, {chosen.reason}{'' if name in PHASES else unless}"
            for name, part in parts.items()
            if part is not None and part.precision == "auto"
        }

    def open_target(self, dtype: torch.dtype) -> PreTrainedModel:
        """The target on this run's device."""
        return pretrained.open_model(self.recipe.target, self.device, dtype)

    def check_teacher(self, phase: str) -> None:
        """Check the phase's teacher, if the recipe names one.

        TargetError if it cannot be read or its context is shorter than a training sequence; VocabularyMismatch if its
        ids stand for other text than the target's.
        """
        part, key = self.phase(phase), f"{phase}.teacher"
        if part is None or not part.teacher:
            return
        teacher, advice = named_model.read(part.teacher, key), "leave it out: the target is then the teacher"
        tokenizer = pretrained.open_tokenizer(self.recipe.target)
        named_model.check_same_ids(teacher, tokenizer, key, f"name one of the target's own family, or {advice}")
        context = teacher.context_tokens() or part.sequence_tokens
        if context < part.sequence_tokens:
            raise TargetError(
                f"{phase}.sequence_tokens is {part.sequence_tokens:,}, the context of {key} {part.teacher} holds "
                f"{context:,} tokens\n  do: lower it, name another model, or {advice}"
            )

    def open_teacher(self, phase: str, dtype: torch.dtype) -> PreTrainedModel | None:
        """The model whose online logits a phase learns: its `teacher`, otherwise the target; None if it learns none."""
        part = self.phase(phase)
        if part is None or not part.needs_teacher:
            return None
        if not part.teacher:
            return self.open_target(dtype)
        self.check_teacher(phase)
        return named_model.open_model(part.teacher, f"{phase}.teacher", self.device, dtype)

    def open_draft(self, phase: str) -> PreTrainedModel:
        """A phase's draft; CardError if it is damaged, VocabularyMismatch if it does not fit the target."""
        folder = self.folder / phase / open_stage(self.folder / phase, DraftCard).model
        model = draft.open_draft(folder, self.device)
        draft.check_fit(model, self.target_card(), folder)
        return model


def _stored_precision(folder: Path, choose: Callable[[], Precision]) -> Precision:
    """The precision in the stage folder's precision.json; if there is none, choose one and write it there."""
    file = folder / "precision.json"
    if file.is_file():
        return read_json(file, Precision, "a precision", f"remove {folder} to begin this stage again")
    chosen = choose()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, chosen.model_dump())
    log_line(f"{folder.name}: computes in {chosen.name}: {chosen.reason}")
    return chosen
