"""The pipeline: target -> tokenize -> pretrain -> continue -> synthesize -> align -> evaluate.

A stage makes one artefact in its own folder of the run and writes its card last. A card with the key of the same inputs
means that the stage is done; a folder that another recipe filled is moved aside, never overwritten.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from fastdraft import init
from fastdraft.config import Recipe, TrainPart
from fastdraft.data.corpus_card import CorpusCard
from fastdraft.models import named_model
from fastdraft.models.draft import DraftCard
from fastdraft.models.run_context import RunContext
from fastdraft.models.target import TargetCard, digest
from fastdraft.pipeline.evaluate import make_evaluation
from fastdraft.pipeline.stage_result import StageResult
from fastdraft.pipeline.synthesize import make_completions
from fastdraft.pipeline.target import make_target
from fastdraft.pipeline.tokenize import make_tokens
from fastdraft.pipeline.train_phase import make_draft
from fastdraft.results.evaluation import EvaluationCard
from fastdraft.synthesize.completions_card import CompletionsCard
from fastdraft.system import energy, processes
from fastdraft.system.cards import VERSION, Card, Cost, card_key, read_card, write_card
from fastdraft.system.errors import RecipeError, RunError
from fastdraft.system.files import claim, disk_full_explained, remove
from fastdraft.system.manifest import Manifest
from fastdraft.system.progress import log_line

# Keys that change how a stage is made and not what it makes. `on_nonfinite` is among them so that a phase that has
# stopped can go on from its last checkpoint with another word on such steps; one that skipped some says so.
WITHOUT_EFFECT = {
    *("checkpoint_seconds", "workers", "executor", "slurm"),
    *("activation_checkpointing", "micro_batch_size", "on_nonfinite", "ray_workers", "validation_prompts", "licence"),
}
# Keys of `evaluate` that decide what a draft is measured on while it trains.
MEASURED_BY = {
    *("tasks", "prompts", "max_prompt_tokens", "max_new_tokens", "temperatures", "verify_gamma", "validation_prompts"),
}


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline: what it needs, the part of the recipe that it depends on, and how it is made.

    `version` rises when the stage makes something else from the same inputs. Where there are several processes, all of
    them make a `shared` stage; any other is made by the main one while the others wait.
    """

    name: str
    needs: tuple[str, ...]
    part: Callable[[Recipe], Any]
    make: Callable[[RunContext, Path], StageResult]
    card: type[Card]
    version: int = 1
    shared: bool = False


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe in order: those whose part it has."""
    return [stage for stage in STAGES if stage.part(recipe)[0] is not None]


def run_stages(
    run_context: RunContext, manifest: Manifest, until: str | None = None, only: str | None = None
) -> dict[str, Card]:
    """The cards of the stages passed: through the pipeline to its end or `until` a stage, or `only` one whose needs are
    met.

    RunError where `only` needs a stage that has not been run; RecipeError where the recipe has no such stage.
    """
    stages = stages_of(run_context.recipe)
    _check_names(stages, until, only)
    keys: dict[str, str] = {}
    passed: dict[str, Card] = {}
    for stage in stages:
        keys[stage.name] = key_of(stage, run_context.recipe, keys)
        done = processes.on_rank0(partial(_is_done, run_context.folder / stage.name, keys[stage.name]))
        if done:
            manifest.stage(stage.name, "already done")
        elif only in (None, stage.name):
            _make(stage, run_context, manifest, keys[stage.name])
        elif stage.name in _needs(stages, only):
            raise RunError(
                f"{only} needs {stage.name}, which is not done with this recipe in {run_context.folder}\n"
                f"  do: fastdraft {stage.name} RECIPE first, with the same keys and folder"
            )
        if done or only in (None, stage.name):
            passed[stage.name] = read_card(run_context.folder / stage.name, stage.card)
        if stage.name in (until, only):
            break
    return passed


def _check_names(stages: list[Stage], *names: str | None) -> None:
    known = [stage.name for stage in stages]
    for name in names:
        if name is not None and name not in known:
            raise RecipeError(
                f"no stage `{name}` in this recipe, only {', '.join(known)}\n"
                f"  do: choose one of them, or give the recipe the part that the stage is made from"
            )


def _needs(stages: list[Stage], name: str | None) -> tuple[str, ...]:
    return next(stage.needs for stage in stages if stage.name == name)


def standing(run_context: RunContext) -> dict[str, str]:
    """Each stage of the recipe: `done`, `begun`, `of another recipe` or `not begun`."""
    keys: dict[str, str] = {}
    found: dict[str, str] = {}
    for stage in stages_of(run_context.recipe):
        keys[stage.name] = key_of(stage, run_context.recipe, keys)
        claim_file = run_context.folder / stage.name / "key"
        claimed = claim_file.read_text() if claim_file.is_file() else None
        ours = "done" if card_key(run_context.folder / stage.name) == keys[stage.name] else "begun"
        found[stage.name] = (
            "not begun" if claimed is None else ours if claimed == keys[stage.name] else "of another recipe"
        )
    return found


def _is_done(folder: Path, key: str) -> bool:
    return card_key(folder) == key


def _make(stage: Stage, run_context: RunContext, manifest: Manifest, key: str) -> None:
    folder = run_context.folder / stage.name
    if moved := processes.on_rank0(lambda: claim(folder, key)):
        manifest.note(f"{stage.name}: what another recipe or version left was moved to {moved}")
        log_line(f"{stage.name}: made anew; what another recipe left is in {moved}")
    log_line(f"{stage.name} ...")
    make, started = partial(stage.make, run_context, folder), time.monotonic()
    with (
        disk_full_explained(folder),
        _warnings_in_manifest(manifest),
        energy.Meter(energy.counters(run_context.device)) as meter,
    ):
        made = make() if stage.shared else processes.on_rank0(make)
        cost = _cost(made, time.monotonic() - started, energy.over_processes(meter.joules()))
    card = stage.card(key=key, cost=cost, **made.fields)
    processes.on_rank0(partial(_finish, folder, card, made.leftovers))
    manifest.stage(stage.name, "made")
    log_line(f"{stage.name}: done in {cost.seconds:.1f} s")


def _cost(made: StageResult, seconds: float, joules: energy.Joules) -> Cost:
    """Of this call, unless what was made says that it began before."""
    if made.seconds is not None:
        return Cost(seconds=made.seconds, tokens=made.tokens, joules=made.joules)
    return Cost(seconds=seconds, tokens=made.tokens, joules=joules)


def _finish(folder: Path, card: Card, leftovers: tuple[Path, ...]) -> None:
    write_card(folder, card)
    for left in leftovers:
        remove(left)


@contextmanager
def _warnings_in_manifest(manifest: Manifest) -> Iterator[None]:
    """A warning is shown and left in the manifest, once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            yield
        finally:
            for text in dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught):
                manifest.note(text)
                log_line(text)


def key_of(stage: Stage, recipe: Recipe, keys: Mapping[str, str]) -> str:
    """The key of a stage's card: the hash of all that it is made of, `keys` being those of the stages before it."""
    inputs = {need: keys[need] for need in stage.needs if need in keys}
    content = json.dumps(
        [stage.name, stage.version, VERSION, stage.part(recipe), inputs], sort_keys=True, default=_plain
    )
    return str(xxhash.xxh3_64_hexdigest(content.encode()))


def _plain(part: Any) -> Any:
    return part.model_dump(mode="json", exclude=WITHOUT_EFFECT)


def _phase(recipe: Recipe, name: str, part: TrainPart | None) -> tuple[Any, ...]:
    """What a phase of training depends on; the files of a donor too, where the weights start from one, and of a
    teacher; and what is measured, where the draft or the end is chosen by that.
    """
    if part is None:
        return (None,)
    donor, chosen = init.digest(recipe.draft), part.keep == "best" or part.early_stopping_patience
    measure = recipe.evaluate.model_dump(mode="json", include=MEASURED_BY) if recipe.evaluate and chosen else None
    teacher = [named_model.digest(part.teacher, f"{name}.teacher")] if part.teacher else None
    return (part, recipe.draft, recipe.seed, *(each for each in (donor, measure, teacher) if each))


STAGES = (
    Stage("target", (), lambda r: (r.target, digest(r.target)), make_target, TargetCard),
    Stage("tokenize", ("target",), lambda r: (r.corpus or None, r.tokenize, r.seed), make_tokens, CorpusCard),
    Stage(
        "pretrain",
        ("target", "tokenize"),
        lambda r: _phase(r, "pretrain", r.pretrain),
        make_draft,
        DraftCard,
        shared=True,
    ),
    Stage(
        "continue",
        ("target", "tokenize", "pretrain"),
        lambda r: _phase(r, "continue", r.continue_),
        make_draft,
        DraftCard,
        shared=True,
    ),
    Stage("synthesize", ("target", "tokenize"), lambda r: (r.synthesize, r.seed), make_completions, CompletionsCard),
    Stage(
        "align",
        ("target", "tokenize", "pretrain", "continue", "synthesize"),
        lambda r: _phase(r, "align", r.align),
        make_draft,
        DraftCard,
        shared=True,
    ),
    Stage(
        "evaluate",
        ("target", "tokenize", "pretrain", "continue", "align"),
        lambda r: (r.evaluate, r.seed),
        make_evaluation,
        EvaluationCard,
    ),
)
