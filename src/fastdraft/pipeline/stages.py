"""The pipeline: target -> tokenize -> validation -> pretrain -> continue -> synthesize -> align -> evaluate.

Each stage writes into its own folder of the run, and its card last. A stage is done if its card has the key of its
present inputs. The folder of a stage that was made from other inputs is moved to `stale/`, never overwritten.
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
from fastdraft.config.part import Mark, Part
from fastdraft.data.corpus_card import CorpusCard
from fastdraft.models import named_model
from fastdraft.models.draft import DraftCard
from fastdraft.models.pretrained import digest
from fastdraft.models.run_context import RunContext
from fastdraft.models.target import TargetCard
from fastdraft.pipeline.evaluate import make_evaluation
from fastdraft.pipeline.stage_result import StageResult
from fastdraft.pipeline.synthesize import make_completions
from fastdraft.pipeline.target import make_target
from fastdraft.pipeline.tokenize import make_tokens
from fastdraft.pipeline.train_phase import make_draft
from fastdraft.pipeline.validation import ValidationCard, make_validation
from fastdraft.results.evaluation import EvaluationCard
from fastdraft.synthesize.completions_card import CompletionsCard
from fastdraft.system import energy, processes
from fastdraft.system.cards import VERSION, Card, Cost, card_key, read_card, write_card
from fastdraft.system.errors import RecipeError, RunError
from fastdraft.system.files import claim, disk_full_explained, remove
from fastdraft.system.manifest import Manifest
from fastdraft.system.progress import log_line


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline: the stages it needs, the part of the recipe that it depends on, and how it is made.

    `needs` are part of its key. `reads` are stages that must be done too, but another result of theirs does not change
    what this one makes. `version` rises when the stage makes something else from the same inputs. With several
    processes, all of them make a `shared` stage; the main one makes any other while the rest wait.
    """

    name: str
    needs: tuple[str, ...]
    part: Callable[[Recipe], Any]
    make: Callable[[RunContext, Path], StageResult]
    card: type[Card]
    reads: tuple[str, ...] = ()
    version: int = 1
    shared: bool = False


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe in order: those whose part it has."""
    return [stage for stage in STAGES if stage.part(recipe)[0] is not None]


def run_stages(
    run_context: RunContext, manifest: Manifest, until: str | None = None, only: str | None = None
) -> dict[str, Card]:
    """The cards of the stages passed: all stages of the recipe, those up to `until`, or `only` one.

    RunError if a stage that `only` needs is not done; RecipeError if the recipe has no stage of that name.
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
    return next((*stage.needs, *stage.reads) for stage in stages if stage.name == name)


def states_of(run_context: RunContext) -> dict[str, str]:
    """The state of each stage of the recipe: `done`, `begun`, `of another recipe` or `not begun`."""
    keys: dict[str, str] = {}
    states: dict[str, str] = {}
    for stage in stages_of(run_context.recipe):
        keys[stage.name] = key_of(stage, run_context.recipe, keys)
        folder = run_context.folder / stage.name
        if not (folder / "key").is_file():
            states[stage.name] = "not begun"
        elif (folder / "key").read_text(errors="replace") != keys[stage.name]:
            states[stage.name] = "of another recipe"
        else:
            states[stage.name] = "done" if card_key(folder) == keys[stage.name] else "begun"
    return states


def _is_done(folder: Path, key: str) -> bool:
    return card_key(folder) == key


def _make(stage: Stage, run_context: RunContext, manifest: Manifest, key: str) -> None:
    folder = run_context.folder / stage.name
    if moved := processes.on_rank0(lambda: claim(folder, key)):
        manifest.note(f"{stage.name}: the result of another recipe or version was moved to {moved}")
        log_line(f"{stage.name}: runs again; the result of another recipe was moved to {moved}")
    log_line(f"{stage.name} ...")
    make, started = partial(stage.make, run_context, folder), time.monotonic()
    with (
        disk_full_explained(folder),
        _warnings_in_manifest(manifest),
        energy.Meter(energy.counters(run_context.device)) as meter,
    ):
        result = make() if stage.shared else processes.on_rank0(make)
        cost = Cost(
            seconds=time.monotonic() - started,
            tokens=result.tokens,
            joules=energy.summed_over_processes(meter.joules()),
        )
    if result.seconds is not None:  # a resumed stage counts the seconds and joules of all its calls
        cost = Cost(seconds=result.seconds, tokens=result.tokens, joules=result.joules)
    card = stage.card(key=key, cost=cost, **result.fields)
    processes.on_rank0(partial(_finish, folder, card, result.leftovers))
    manifest.stage(stage.name, "made")
    log_line(f"{stage.name}: done in {cost.seconds:.1f} s")


def _finish(folder: Path, card: Card, leftovers: tuple[Path, ...]) -> None:
    write_card(folder, card)
    for left in leftovers:
        remove(left, inside=folder)


@contextmanager
def _warnings_in_manifest(manifest: Manifest) -> Iterator[None]:
    """Print each warning once, and keep it in the manifest."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            yield
        finally:
            for text in dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught):
                manifest.note(text)
                log_line(text)


def key_of(stage: Stage, recipe: Recipe, keys: Mapping[str, str]) -> str:
    """The key of a stage's card: the hash of all its inputs. `keys` holds the keys of the stages before it."""
    inputs = {need: keys[need] for need in stage.needs if need in keys}
    content = json.dumps(
        [stage.name, stage.version, VERSION, stage.part(recipe), inputs], sort_keys=True, default=Part.key_content
    )
    return str(xxhash.xxh3_64_hexdigest(content.encode()))


def _validation(recipe: Recipe) -> tuple[Any, ...]:
    """What the validation completions depend on; (None,) where no draft is measured while it trains."""
    part, trains = recipe.evaluate, recipe.pretrain or recipe.continue_ or recipe.align
    if part is None or not trains or not part.validation_prompts:
        return (None,)
    return (part.model_dump(mode="json", include=part.marked(Mark.VALIDATION)), recipe.seed)


def _phase(recipe: Recipe, name: str, part: TrainPart | None) -> tuple[Any, ...]:
    """What a phase of training depends on: its part; the files of a donor of first weights and of a teacher; and the
    validation, where the kept draft or the end of the phase is chosen by it.
    """
    if part is None:
        return (None,)
    donor, validation, teacher = init.digest(recipe.draft), None, None
    if recipe.evaluate and (part.keep == "best" or part.early_stopping_patience):
        validation = (*_validation(recipe), recipe.evaluate.verify_gamma)
    if part.teacher:
        teacher = [named_model.digest(part.teacher, f"{name}.teacher")]
    return (part, recipe.draft, recipe.seed, *(each for each in (donor, validation, teacher) if each))


STAGES = (
    Stage("target", (), lambda r: (r.target, digest(r.target)), make_target, TargetCard),
    Stage("tokenize", ("target",), lambda r: (r.corpus or None, r.tokenize, r.seed), make_tokens, CorpusCard),
    Stage("validation", ("target", "tokenize"), _validation, make_validation, ValidationCard, version=2),
    Stage(
        "pretrain",
        ("target", "tokenize"),
        lambda r: _phase(r, "pretrain", r.pretrain),
        partial(make_draft, "pretrain"),
        DraftCard,
        reads=("validation",),
        shared=True,
    ),
    Stage(
        "continue",
        ("target", "tokenize", "pretrain"),
        lambda r: _phase(r, "continue", r.continue_),
        partial(make_draft, "continue"),
        DraftCard,
        reads=("validation",),
        shared=True,
    ),
    Stage(
        "synthesize",
        ("target", "tokenize"),
        lambda r: (r.synthesize, r.seed),
        make_completions,
        CompletionsCard,
        version=2,
    ),
    Stage(
        "align",
        ("target", "tokenize", "pretrain", "continue", "synthesize"),
        lambda r: _phase(r, "align", r.align),
        partial(make_draft, "align"),
        DraftCard,
        reads=("validation",),
        shared=True,
    ),
    Stage(
        "evaluate",
        ("target", "tokenize", "pretrain", "continue", "align"),
        lambda r: (r.evaluate, r.seed),
        make_evaluation,
        EvaluationCard,
        version=2,
    ),
)
