"""`pretrain`, `continue` and `align`: one phase of training each (PT, CP and FT of the paper)."""

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
from fastdraft.data.order import Batch, Mixture, Sequences, ShardSequences
from fastdraft.data.prefetch import PrefetchedMixture
from fastdraft.models import draft, pretrained
from fastdraft.models.run_context import PHASES, RunContext
from fastdraft.models.shape import DraftShape
from fastdraft.pipeline.stage_result import StageResult
from fastdraft.pipeline.validation import open_validation
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions_card import CompletionsCard
from fastdraft.synthesize.training_sequences import CompletionSequences, TeacherCompletionSequences
from fastdraft.system import processes
from fastdraft.system.cards import open_stage
from fastdraft.system.errors import CorpusError, ShardError
from fastdraft.system.files import write_json
from fastdraft.train import trackers
from fastdraft.train.early_stopping import kept_step
from fastdraft.train.loop import Phase, train
from fastdraft.train.objectives import objective

# Tokens on which the layers of a donor are chosen. With 4,096 tokens the same two of the demo target's five layers were
# kept; two of those that were dropped differ by .03 nats and changed places.
INIT_SAMPLE_TOKENS = 8192


def make_draft(name: str, run_context: RunContext, folder: Path) -> StageResult:
    """Train the draft in one phase: `pretrain`, `continue` or `align`."""
    recipe, part = run_context.recipe, run_context.phase(name)
    assert part is not None, "a stage without a part is not in the pipeline"
    form = init.shape_of(recipe.target, recipe.draft)
    precision = processes.on_rank0(lambda: run_context.precision(folder, part.precision))
    processes.on_rank0(lambda: _note_data(run_context, part, folder))
    phase = Phase(
        name=name,
        model=_first_weights(run_context, name, folder, form),
        part=part,
        mixture=PrefetchedMixture(Mixture(_rows(run_context, part), part.mix, _seed(recipe, name))),
        held_out={source: _held_out(run_context, source, part) for source in recipe.corpus},
        objective=objective(part, run_context.open_teacher(name, precision.dtype)),
        folder=folder,
        device=run_context.device,
        dtype=precision.dtype,
        parallel=recipe.parallel,
        measure=open_validation(run_context),
        trackers=partial(trackers.opened, recipe.trackers, recipe.name, folder),
    )
    progress = train(phase)
    files, card = pretrained.folder_of(recipe.target), run_context.target_card()
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
    """Write data.json, the digests of the shards; ShardError if a resumed phase would continue with other shards."""
    names, file = [name for name in part.mix if name != "synthetic"], folder / "data.json"
    sources = open_stage(run_context.folder / "tokenize", CorpusCard).sources if names else {}
    digests = {name: sources[name].train.digest for name in names}
    resumed = file.is_file() and any(folder.glob("checkpoint-*"))
    before = json.loads(file.read_text()) if resumed else digests
    if changed := sorted(name for name in digests if digests[name] != before.get(name)):
        raise ShardError(
            f"the shards of {', '.join(changed)} have changed since {folder} was begun\n"
            f"  do: restore {run_context.folder / 'tokenize'}, or remove {folder} to begin this phase again"
        )
    write_json(file, digests)


def _first_weights(run_context: RunContext, name: str, folder: Path, form: DraftShape) -> PreTrainedModel:
    """The draft of the phase before; in the first phase, the weights that `draft.init` names."""
    before = run_context.drafts()[: run_context.drafts().index(name)]
    if before:
        return run_context.open_draft(before[-1])
    init_inputs = init.InitInputs(
        target=run_context.recipe.target,
        part=run_context.recipe.draft,
        shape=form,
        seed=run_context.recipe.seed,
        device=run_context.device,
        sample=lambda: _sample(run_context, name),
        layers_file=folder / "init.json",
    )
    return init.first_weights(init_inputs)


def _sample(run_context: RunContext, phase: str) -> Batch:
    """The first sequences of a phase, for measuring a donor's layers."""
    part = run_context.phase(phase)
    assert part is not None, "a stage without a part is not in the pipeline"
    mixture = Mixture(_rows(run_context, part), part.mix, _seed(run_context.recipe, phase))
    return mixture.next_batch(math.ceil(INIT_SAMPLE_TOKENS / part.sequence_tokens))


def _rows(run_context: RunContext, part: TrainPart) -> dict[str, Sequences]:
    length = part.sequence_tokens
    rows: dict[str, Sequences] = {
        name: ShardSequences(run_context.shards(name, "train"), length) for name in part.mix if name != "synthetic"
    }
    if "synthetic" in part.mix:
        open_stage(run_context.folder / "synthesize", CompletionsCard)  # checks the files
        store = CompletionStore(run_context.folder / "synthesize" / "completions")
        rows["synthetic"] = (
            _recorded(store, part)
            if part.needs_recorded_data
            else CompletionSequences(store.shards(), length, store.folder)
        )
    return rows


def _recorded(store: CompletionStore, part: TrainPart) -> TeacherCompletionSequences:
    """Sequences with their recorded log-probabilities; CorpusError if an objective needs them and none has any."""
    rows = TeacherCompletionSequences(store.shards(), part.sequence_tokens, store.folder)
    if SAMPLE_OBJECTIVES & part.objectives.keys() and not rows.with_logp:
        raise CorpusError(
            f"{', '.join(part.recorded_keys)} of align needs log-probabilities, and {store.folder} has none\n"
            f"  do: set synthesize.rescore, or choose an objective that uses the text or the target's distribution"
        )
    return rows


def _seed(recipe: Recipe, phase: str) -> int:
    """Each phase shuffles differently, so that CP does not begin with the sequences that PT began with."""
    return recipe.seed + 1000 * PHASES.index(phase)


def _held_out(run_context: RunContext, source: str, part: TrainPart) -> list[Batch]:
    rows = ShardSequences(run_context.shards(source, "held_out"), part.sequence_tokens)
    count = min(part.held_out_sequences, len(rows))
    stream = Mixture({source: rows}, {source: 1.0}, run_context.recipe.seed)
    sizes = [min(part.batch_size, count - done) for done in range(0, count, part.batch_size)]
    portion = Portion(processes.rank(), processes.world_size())
    return [stream.next_batch(size, portion) for size in sizes]


def _measured(folder: Path, step: int) -> dict[str, Any]:
    """Fields of the card for the draft of a step: trained tokens, held-out losses and block efficiencies."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    row = next(row for row in lines if row["step"] == step)
    losses = {key.removeprefix("held_out_").removesuffix("_nats"): key for key in row if key.startswith("held_out_")}
    rates = {key.removeprefix("block_efficiency_"): key for key in row if key.startswith("block_efficiency_")}
    return {
        "trained_tokens": row["tokens"],
        "held_out_nats": {name: row[key] for name, key in losses.items()},
        "block_efficiency": {name: row[key] for name, key in rates.items()},
    }
