"""`pretrain`, `continue`, `align`: a draft after each phase of training."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from fastdraft import init
from fastdraft.config import SAMPLE_OBJECTIVES, Recipe, TrainPart
from fastdraft.data.corpus_card import CorpusCard
from fastdraft.data.document import Portion
from fastdraft.data.order import Batch, Mixture, Rows, ShardRows
from fastdraft.data.prefetch import Ahead
from fastdraft.models import draft, target
from fastdraft.models.run_context import PHASES, RunContext
from fastdraft.models.shape import DraftShape
from fastdraft.pipeline.stage_result import StageResult
from fastdraft.pipeline.validation import open_measure
from fastdraft.synthesize.completions import CompletionStore
from fastdraft.synthesize.training_sequences import CompletionRows, RecordedCompletions
from fastdraft.system import processes
from fastdraft.system.cards import read_card
from fastdraft.system.errors import CorpusError, ShardError
from fastdraft.system.files import write_json
from fastdraft.train import trackers
from fastdraft.train.early_stopping import kept_step
from fastdraft.train.loop import Phase, train
from fastdraft.train.objectives import objective

# A donor's layers are chosen on so many tokens. Two of the demo target's five cost the same to .03 nats: on 4 096
# tokens and on these they went in another order, and the same two of the five stayed.
START_SAMPLE_TOKENS = 8192


def make_draft(run_context: RunContext, folder: Path) -> StageResult:
    """One phase of training; which one is the folder's name."""
    name, recipe = folder.name, run_context.recipe
    part = run_context.phase(name)
    assert part is not None, "a stage without a part is not in the pipeline"
    form = init.shape_of(recipe.target, recipe.draft)
    precision = processes.on_rank0(lambda: run_context.precision(folder, part.precision))
    processes.on_rank0(lambda: _note_data(run_context, part, folder))
    phase = Phase(
        name=name,
        model=_first_weights(run_context, folder, form),
        part=part,
        mixture=Ahead(Mixture(_rows(run_context, part), part.mix, _seed(recipe, name))),
        held_out={source: _held_out(run_context, source, part) for source in recipe.corpus},
        objective=objective(part, run_context.open_teacher(name, precision.dtype)),
        folder=folder,
        device=run_context.device,
        dtype=precision.dtype,
        parallel=recipe.parallel,
        measure=open_measure(run_context),
        trackers=partial(trackers.opened, recipe.trackers, recipe.name, folder),
    )
    progress = train(phase)
    files, card = target.folder_of(recipe.target), run_context.target_card()
    processes.on_rank0(lambda: draft.save(phase.model, files, card, folder / "model"))
    fields = {
        "target": recipe.target.path,
        "target_digest": card.digest,
        "precision": precision,
        "shape": init.as_built(form, phase.model),
        **processes.on_rank0(lambda: _measured(folder, kept_step(progress))),
    }
    return StageResult(fields, progress.tokens, progress.seconds, progress.joules, tuple(folder.glob("checkpoint-*")))


def _note_data(run_context: RunContext, part: TrainPart, folder: Path) -> None:
    """data.json, what the phase trains on; ShardError where it would go on with other shards than it began with."""
    texts, note = [name for name in part.mix if name != "synthetic"], folder / "data.json"
    sources = read_card(run_context.folder / "tokenize", CorpusCard).sources if texts else {}
    now = {name: sources[name].train.digest for name in texts}
    begun = note.is_file() and any(folder.glob("checkpoint-*"))
    before = json.loads(note.read_text()) if begun else now
    if changed := sorted(name for name in now if now[name] != before.get(name)):
        raise ShardError(
            f"the shards of {', '.join(changed)} are not those that {folder} began with\n"
            f"  do: bring back {run_context.folder / 'tokenize'} as it was, or remove {folder} to begin this phase anew"
        )
    write_json(note, now)


def _first_weights(run_context: RunContext, folder: Path, form: DraftShape) -> PreTrainedModel:
    """The draft of the phase before; where this phase is the first, the recipe's start."""
    before = run_context.drafts()[: run_context.drafts().index(folder.name)]
    if before:
        return run_context.open_draft(before[-1])
    init_inputs = init.InitInputs(
        target=run_context.recipe.target,
        part=run_context.recipe.draft,
        shape=form,
        seed=run_context.recipe.seed,
        device=run_context.device,
        sample=lambda: _sample(run_context, folder.name),
        note=folder / "init.json",
    )
    return init.first_weights(init_inputs)


def _sample(run_context: RunContext, phase: str) -> Batch:
    """The first rows of a phase, to measure a donor on."""
    part = run_context.phase(phase)
    assert part is not None, "a stage without a part is not in the pipeline"
    mixture = Mixture(_rows(run_context, part), part.mix, _seed(run_context.recipe, phase))
    return mixture.next_batch(math.ceil(START_SAMPLE_TOKENS / part.sequence_tokens))


def _rows(run_context: RunContext, part: TrainPart) -> dict[str, Rows]:
    length = part.sequence_tokens
    rows: dict[str, Rows] = {
        name: ShardRows(run_context.shards(name, "train"), length) for name in part.mix if name != "synthetic"
    }
    if "synthetic" in part.mix:
        store = CompletionStore(run_context.folder / "synthesize" / "completions")
        rows["synthetic"] = (
            _recorded(store, part) if part.needs_recorded_data else CompletionRows(store.shards(), length, store.folder)
        )
    return rows


def _recorded(store: CompletionStore, part: TrainPart) -> RecordedCompletions:
    """Rows with their records; CorpusError where an objective wants log-probabilities and no row has any."""
    rows = RecordedCompletions(store.shards(), part.sequence_tokens, store.folder)
    if SAMPLE_OBJECTIVES & part.objectives.keys() and not rows.known:
        raise CorpusError(
            f"no row of {store.folder} has log-probabilities, and align has {', '.join(part.recorded_keys)}\n"
            f"  do: let `synthesize.rescore` find them, or take an objective of the text or of the distribution"
        )
    return rows


def _seed(recipe: Recipe, phase: str) -> int:
    """Each phase has an order of its own, so that CP does not begin with the very rows that PT began with."""
    return recipe.seed + 1000 * PHASES.index(phase)


def _held_out(run_context: RunContext, source: str, part: TrainPart) -> list[Batch]:
    rows = ShardRows(run_context.shards(source, "held_out"), part.sequence_tokens)
    count = min(part.held_out_sequences, rows.rows)
    stream = Mixture({source: rows}, {source: 1.0}, run_context.recipe.seed)
    sizes = [min(part.batch_size, count - done) for done in range(0, count, part.batch_size)]
    portion = Portion(processes.rank(), processes.count())
    return [stream.next_batch(size, portion) for size in sizes]


def _measured(folder: Path, step: int) -> dict[str, Any]:
    """What the card says of the draft of a step: its tokens, and what was measured then of each source and task."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    row = next(row for row in lines if row["step"] == step)
    losses = {key.removeprefix("held_out_").removesuffix("_nats"): key for key in row if key.startswith("held_out_")}
    rates = {key.removeprefix("block_efficiency_"): key for key in row if key.startswith("block_efficiency_")}
    return {
        "trained_tokens": row["tokens"],
        "held_out_nats": {name: row[key] for name, key in losses.items()},
        "block_efficiency": {name: row[key] for name, key in rates.items()},
    }
