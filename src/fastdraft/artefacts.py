"""How each stage makes its artefact: it reads other stages' cards, calls the rooms, returns its own card's fields."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import PreTrainedModel

from fastdraft import draft, shape, target
from fastdraft.corpus.order import Batch, Mixture, Rows, ShardRows
from fastdraft.corpus.shards import Shards, SourceCard
from fastdraft.corpus.tokenized import write_source, write_tokenizer
from fastdraft.draft import DraftCard
from fastdraft.errors import RecipeError
from fastdraft.recipe import Recipe, TrainPart
from fastdraft.records import Card, read_card
from fastdraft.run import remove
from fastdraft.target import TargetCard
from fastdraft.train.loop import Phase, train
from fastdraft.train.objectives import objective

PHASES = ("pretrain", "continue", "align")


class CorpusCard(Card):
    """The tokenised sources by name; their shards lie in SOURCE/{train,held_out}/shards beside the card."""

    kind: ClassVar[str] = "corpus"
    sources: dict[str, SourceCard]


class Made(NamedTuple):
    """An artefact: the kind of its card, the card's own fields, the tokens that went through, and the seconds if not
    simply those of this call (a phase that was resumed)."""

    card: type[Card]
    fields: dict[str, Any]
    tokens: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Journey:
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
        return read_card(self.folder / "target", TargetCard)

    def shards(self, source: str, side: str) -> Shards:
        """One side of a tokenised source."""
        card = read_card(self.folder / "tokenize", CorpusCard).sources[source]
        return Shards(self.folder / "tokenize" / source / side / "shards", getattr(card, side))

    def open_target(self) -> PreTrainedModel:
        return target.open_model(self.recipe.target, self.device)

    def open_draft(self, phase: str) -> PreTrainedModel:
        folder = self.folder / phase / "model"
        model = draft.open_draft(folder, self.device)
        draft.check_fit(model, self.target_card(), folder)
        return model


def make_target(journey: Journey, _folder: Path) -> Made:
    return Made(TargetCard, target.card(journey.recipe.target))


def make_tokens(journey: Journey, folder: Path) -> Made:
    recipe, card = journey.recipe, journey.target_card()
    frame = folder / "tokenizer.json"
    tokenizer = target.open_tokenizer(recipe.target).backend_tokenizer
    write_tokenizer(tokenizer, frame, card.bos_id if card.adds_bos else None, card.eos_ids[0])
    sources = {
        name: write_source(name, part, recipe.tokenize, frame, folder / name, recipe.seed)
        for name, part in recipe.corpus.items()
    }
    return Made(
        CorpusCard, {"sources": sources}, sum(card.train.tokens + card.held_out.tokens for card in sources.values())
    )


def make_draft(journey: Journey, folder: Path) -> Made:
    """One phase of training; which one is the folder's name."""
    name, recipe = folder.name, journey.recipe
    part = journey.phase(name)
    assert part is not None, "a stage without a part is not on the road"
    form = shape.derive(target.open_config(recipe.target), recipe.draft)
    phase = Phase(
        name=name,
        model=_first_weights(journey, name, form),
        part=part,
        mixture=Mixture(_rows(journey, name, part), _weights(part), _seed(recipe, name)),
        held_out={source: _held_out(journey, source, part) for source in recipe.corpus},
        objective=objective(part.objective, None if part.objective == "cross_entropy" else journey.open_target()),
        folder=folder,
        device=journey.device,
    )
    progress = train(phase)
    draft.save(phase.model, target.folder_of(recipe.target), journey.target_card(), folder / "model")
    for checkpoint in folder.glob("checkpoint-*"):
        remove(checkpoint)
    fields = {
        "target": recipe.target.path,
        "target_digest": journey.target_card().digest,
        "shape": form,
        "trained_tokens": progress.tokens,
        "held_out_nats": _last_held_out(folder),
    }
    return Made(DraftCard, fields, progress.tokens, progress.seconds)


def _first_weights(journey: Journey, phase: str, form: shape.DraftShape) -> PreTrainedModel:
    """The draft of the phase before; random weights where this phase is the first."""
    before = journey.drafts()[: journey.drafts().index(phase)]
    return journey.open_draft(before[-1]) if before else draft.new(form, journey.recipe.seed)


def _rows(journey: Journey, phase: str, part: TrainPart) -> dict[str, Rows]:
    names = _weights(part)
    unknown = set(names) - set(journey.recipe.corpus) - {"synthetic"}
    if unknown:
        raise RecipeError(
            f"{phase}.mix names {', '.join(sorted(unknown))}, which is no source of this recipe\n"
            f"  wanted: {', '.join(sorted(journey.recipe.corpus))} or synthetic\n  do: correct {phase}.mix"
        )
    return {name: ShardRows(journey.shards(name, "train"), part.sequence_tokens) for name in names}


def _weights(part: TrainPart) -> dict[str, float]:
    return part.mix or {"synthetic": 1.0}


def _seed(recipe: Recipe, phase: str) -> int:
    """Each phase has an order of its own, so that CP does not begin with the very rows that PT began with."""
    return recipe.seed + 1000 * PHASES.index(phase)


def _held_out(journey: Journey, source: str, part: TrainPart) -> list[Batch]:
    rows = ShardRows(journey.shards(source, "held_out"), part.sequence_tokens)
    count = min(part.held_out_sequences, rows.rows)
    stream = Mixture({source: rows}, {source: 1.0}, journey.recipe.seed)
    sizes = [min(part.batch_sequences, count - done) for done in range(0, count, part.batch_sequences)]
    return [stream.next_batch(size) for size in sizes]


def _last_held_out(folder: Path) -> dict[str, float]:
    rows = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    last = [row for row in rows if any(key.startswith("held_out_") for key in row)][-1]
    names = {key: key.removeprefix("held_out_").removesuffix("_nats") for key in last if key.startswith("held_out_")}
    return {name: last[key] for key, name in names.items()}
