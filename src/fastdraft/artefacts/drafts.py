"""`pretrain`, `continue`, `align`: a draft after each phase of training."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedModel

from fastdraft import draft, shape, target
from fastdraft.artefacts.journey import PHASES, Journey, Made
from fastdraft.corpus.order import Batch, Mixture, Rows, ShardRows
from fastdraft.recipe import Recipe, TrainPart
from fastdraft.synthesize.completions import CompletionStore
from fastdraft.synthesize.rows import CompletionRows
from fastdraft.train.loop import Phase, train
from fastdraft.train.objectives import objective


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
        mixture=Mixture(_rows(journey, part), part.mix, _seed(recipe, name)),
        held_out={source: _held_out(journey, source, part) for source in recipe.corpus},
        objective=objective(part.objective, None if part.objective == "cross_entropy" else journey.open_target()),
        folder=folder,
        device=journey.device,
    )
    progress = train(phase)
    draft.save(phase.model, target.folder_of(recipe.target), journey.target_card(), folder / "model")
    fields = {
        "target": recipe.target.path,
        "target_digest": journey.target_card().digest,
        "shape": form,
        "trained_tokens": progress.tokens,
        "held_out_nats": _last_held_out(folder),
    }
    return Made(fields, progress.tokens, progress.seconds, tuple(folder.glob("checkpoint-*")))


def _first_weights(journey: Journey, phase: str, form: shape.DraftShape) -> PreTrainedModel:
    """The draft of the phase before; random weights where this phase is the first."""
    before = journey.drafts()[: journey.drafts().index(phase)]
    return journey.open_draft(before[-1]) if before else draft.new(form, journey.recipe.seed)


def _rows(journey: Journey, part: TrainPart) -> dict[str, Rows]:
    rows: dict[str, Rows] = {
        name: ShardRows(journey.shards(name, "train"), part.sequence_tokens) for name in part.mix if name != "synthetic"
    }
    if "synthetic" in part.mix:
        store = CompletionStore(journey.folder / "synthesize" / "completions")
        rows["synthetic"] = CompletionRows(store.read(), part.sequence_tokens)
    return rows


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
    """Held-out loss of each source that has a held-out side, as the last step measured it."""
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    names = {key: key.removeprefix("held_out_").removesuffix("_nats") for key in last if key.startswith("held_out_")}
    return {name: last[key] for key, name in names.items()}
