"""Run the stages of a recipe: those that are done already are skipped, the others are made, and their cards written."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fastdraft.data.corpus_card import CorpusCard
from fastdraft.models.draft import DraftCard
from fastdraft.models.run_context import RunContext
from fastdraft.models.target import TargetCard
from fastdraft.pipeline.checks import check_inputs
from fastdraft.pipeline.evaluate import make_evaluation
from fastdraft.pipeline.stage_result import StageResult
from fastdraft.pipeline.stages import Stage, key_of, stages_of
from fastdraft.pipeline.synthesize import make_completions
from fastdraft.pipeline.target import make_target
from fastdraft.pipeline.tokenize import make_tokens
from fastdraft.pipeline.train_phase import make_draft
from fastdraft.pipeline.validation import ValidationCard, make_validation
from fastdraft.results.evaluation import EvaluationCard
from fastdraft.synthesize.completions_card import CompletionsCard
from fastdraft.system import energy, processes
from fastdraft.system.cards import Card, Cost, card_key, open_stage, read_card, write_card
from fastdraft.system.errors import RecipeError, RunError
from fastdraft.system.files import claim, disk_full_explained, place_of, remove, restore
from fastdraft.system.manifest import Manifest
from fastdraft.system.progress import log_line


class Maker(NamedTuple):
    """How a stage is made, and the class of its card."""

    make: Callable[[RunContext, Path], StageResult]
    card: type[Card]


# By the stage's name. The stages themselves are in stages.py, which needs neither torch nor transformers.
MAKERS = {
    "target": Maker(make_target, TargetCard),
    "tokenize": Maker(make_tokens, CorpusCard),
    "validation": Maker(make_validation, ValidationCard),
    "pretrain": Maker(partial(make_draft, "pretrain"), DraftCard),
    "continue": Maker(partial(make_draft, "continue"), DraftCard),
    "synthesize": Maker(make_completions, CompletionsCard),
    "align": Maker(partial(make_draft, "align"), DraftCard),
    "evaluate": Maker(make_evaluation, EvaluationCard),
}


def run_stages(
    run_context: RunContext, manifest: Manifest, until: str | None = None, only: str | None = None
) -> dict[str, Card]:
    """The cards of the stages passed: all stages of the recipe, those up to `until`, or `only` one.

    The inputs of all stages that are not done are checked before a folder is moved or made. RunError if a stage that
    `only` needs is not done; RecipeError if the recipe has no stage of that name; CardError if the files of a stage
    that is done are damaged.
    """
    stages = stages_of(run_context.recipe)
    _check_names(stages, until, only)
    names = [stage.name for stage in stages]
    stages = stages[: names.index(until or only or names[-1]) + 1]
    keys: dict[str, str] = {}
    for stage in stages:
        keys[stage.name] = key_of(stage, run_context.recipe, keys)
    done = [name for name in keys if processes.on_rank0(partial(_is_done, run_context.folder / name, keys[name]))]
    to_make = [name for name in keys if name not in done and only in (None, name)]
    if missing := [name for name in _needs(stages, only) if name in keys.keys() - set(done)]:
        raise RunError(
            f"{only} needs {', '.join(missing)}: not done with this recipe in {run_context.folder}\n"
            f"  do: fastdraft run RECIPE --until {missing[-1]} first, with the same keys and folder"
        )
    if to_make:
        processes.on_rank0(partial(check_inputs, run_context, to_make))
    passed: dict[str, Card] = {}
    for stage in stages:
        if stage.name not in (*done, *to_make):
            continue
        folder, card = run_context.folder / stage.name, MAKERS[stage.name].card
        if found := processes.on_rank0(partial(restore, folder, keys[stage.name])):
            manifest.note(f"{stage.name}: the result of this recipe was found in {found}")
            log_line(f"{stage.name}: the result of this recipe was found in {found}")
        if stage.name in done:
            manifest.stage(stage.name, "already done")
        else:
            _make(stage, run_context, manifest, keys[stage.name])
        used = only in (None, stage.name) or stage.name in _needs(stages, only)
        passed[stage.name] = open_stage(folder, card) if used else read_card(folder, card)
    return passed


def _check_names(stages: list[Stage], *names: str | None) -> None:
    known = [stage.name for stage in stages]
    for name in names:
        if name is not None and name not in known:
            raise RecipeError(
                f"no stage `{name}` in this recipe, only {', '.join(known)}\n"
                f"  do: choose one of them, or give the recipe the part that the stage is made from"
            )


def _needs(stages: list[Stage], only: str | None) -> list[str]:
    """The stages that must be done before `only`, in order; none for None."""
    needs = {need for stage in stages if stage.name == only for need in (*stage.needs, *stage.reads)}
    return [stage.name for stage in stages if stage.name in needs]


def _is_done(folder: Path, key: str) -> bool:
    """Whether a stage is done, also if its result has to be brought back from `stale/`."""
    return card_key(place_of(folder, key)) == key


def _make(stage: Stage, run_context: RunContext, manifest: Manifest, key: str) -> None:
    folder = run_context.folder / stage.name
    if moved := processes.on_rank0(lambda: claim(folder, key)):
        manifest.note(f"{stage.name}: the result of another recipe or version was moved to {moved}")
        log_line(f"{stage.name}: runs again; the result of another recipe was moved to {moved}")
    log_line(f"{stage.name} ...")
    maker, started = MAKERS[stage.name], time.monotonic()
    make = partial(maker.make, run_context, folder)
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
    card = maker.card(key=key, cost=cost, **result.fields)
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
