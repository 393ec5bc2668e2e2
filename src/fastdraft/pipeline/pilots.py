"""Which depth drafts fastest on this machine, at one budget of parameters?

Pilot drafts of several depths, each as wide as the budget allows, are trained with a fraction of the recipe's tokens.
Block efficiency is measured in one pass over the target's completions, the step time of pilot and target in an engine.
Together they predict the wall-clock speed-up (docs/maths.md, `speedup`).
FastDraft (arXiv:2411.11055), section 3: too shallow a draft predicts badly, too deep a one drafts slowly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict

from fastdraft import init
from fastdraft.config import DraftPart, Recipe
from fastdraft.maths.acceptance import speedup
from fastdraft.models import pretrained
from fastdraft.models.run_context import RunContext
from fastdraft.models.shape import DraftShape, derive
from fastdraft.pipeline import stages
from fastdraft.pipeline.evaluate import Completions, complete_tasks, score_draft
from fastdraft.pipeline.run_stages import run_stages
from fastdraft.pipeline.step_timers import StepTimer
from fastdraft.results.evaluation import TaskResult
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.system.errors import RecipeError, ShapeError
from fastdraft.system.files import remove, write_json
from fastdraft.system.manifest import Manifest
from fastdraft.system.progress import log_line

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Widths tried, coarse steps first: the finer ones only where a budget has too few of the coarse.
WIDTH_STEPS = (64, 32, 16, 8)
SHARED = ("target", "tokenize", "validation", "synthesize")


class Figures(BaseModel):
    """Base of the results of a search."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Served(Figures):
    """A pilot on one task at one temperature: the speed-up at its best gamma.

    `low` and `high` are the speed-ups at the ends of the interval of block efficiency.
    """

    task: str
    temperature: float
    alpha: float
    best_gamma: int
    block_efficiency: float
    speedup: float
    low: float
    high: float


class Pilot(Figures):
    """A draft of one depth: its step time in the engine, and the geometric mean of the speed-up over `served`."""

    hidden_size: int
    layers: int
    parameters: int
    trained_tokens: int
    step_seconds: float
    served: tuple[Served, ...]
    speedup: float


class Search(Figures):
    """All pilots, shallowest first, and the target's seconds for a step on a block of N tokens, by N."""

    kind: ClassVar[str] = "search"
    target: str
    timed: str
    engine: str
    fraction: float
    target_seconds: dict[int, float]
    pilots: tuple[Pilot, ...]

    @property
    def best(self) -> Pilot:
        """The fastest pilot; the shallowest of equally fast ones."""
        return max(self.pilots, key=lambda pilot: pilot.speedup)


class Setting(NamedTuple):
    """The fraction of the recipe's tokens, the number of pilots, the engine and its step timer.

    `timed` is the folder of a model whose steps are timed instead of the target's.
    """

    fraction: float
    pilots: int
    engine: str
    step_seconds: StepTimer
    timed: Path | None = None


def search(run_context: RunContext, manifest: Manifest, setting: Setting) -> Search:
    """Train and measure the pilots. A search that was stopped is resumed.

    RecipeError if the recipe has no evaluation or no phase of training; ShapeError if its budget allows too few depths.
    """
    recipe = run_context.recipe
    if recipe.evaluate is None or not run_context.drafts():
        raise RecipeError("a search trains and measures pilots: give the recipe a phase of training and `evaluate`")
    shapes = pilot_shapes(recipe, setting.pilots)
    for stage in SHARED:
        if stage in [known.name for known in stages.stages_of(recipe)]:
            run_stages(run_context, manifest, only=stage)
    folder = run_context.folder / "search"
    precision = run_context.target_precision(folder, recipe.evaluate.precision)
    model = run_context.open_target(precision.dtype)
    completions = complete_tasks(run_context, recipe.evaluate, model, CompletionStore(folder / "completions"))
    drafts = [_train(run_context, manifest, shape, setting.fraction, folder) for shape in shapes]
    blocks = (1, *(gamma + 1 for gamma in recipe.evaluate.gammas))
    timed = setting.timed or pretrained.folder_of(recipe.target)
    seconds = {n: setting.step_seconds(timed, n) for n in sorted(set(blocks))}
    result = Search(
        target=recipe.target.path,
        timed=str(setting.timed or recipe.target.path),
        engine=setting.engine,
        fraction=setting.fraction,
        target_seconds=seconds,
        pilots=tuple(_measure(pilot, completions, seconds, setting) for pilot in drafts),
    )
    write_json(folder / "search.json", result.model_dump(mode="json"))
    return result


def pilot_shapes(recipe: Recipe, count: int) -> list[DraftShape]:
    """Shapes of at least `count` depths, shallowest first, each as wide as the budget allows.

    Widths are multiples of the largest of WIDTH_STEPS that gives enough depths. The budget is `draft.params_millions`,
    or the size of the draft that the recipe describes.
    """
    config = pretrained.open_config(recipe.target)
    budget = recipe.draft.params_millions or init.shape_of(recipe.target, recipe.draft).parameters / 1e6
    shapes: list[DraftShape] = []
    for step in WIDTH_STEPS:
        widest = (_widest(config, recipe.draft, budget, depth, step) for depth in DEPTHS)
        # Several depths may have the same width; the deepest of them comes closest to the budget.
        shapes = list({shape.hidden_size: shape for shape in widest if shape}.values())
        if len(shapes) >= count:
            return shapes[: max(count, 5)]
    raise ShapeError(
        f"a budget of {budget:g}M allows {len(shapes)} depths that differ in width, wanted {count}\n"
        f"  do: raise draft.params_millions, or lower --pilots"
    )


def _widest(config: Any, part: DraftPart, budget: float, depth: int, step: int) -> DraftShape | None:
    """The widest draft of this depth within the budget, by bisection; None if there is none."""
    low, high, widest = 1, config.get_text_config().hidden_size // step, None
    while low <= high:
        middle = (low + high) // 2
        sizes = DraftPart(hidden_size=middle * step, layers=depth, init=part.init, context_tokens=part.context_tokens)
        shape = derive(config, sizes)
        if shape.parameters <= budget * 1e6:
            low, widest = middle + 1, shape
        else:
            high = middle - 1
    return widest


class _Trained(NamedTuple):
    shape: DraftShape
    run_context: RunContext


def _train(run_context: RunContext, manifest: Manifest, shape: DraftShape, fraction: float, folder: Path) -> _Trained:
    """Train a pilot in all phases of the recipe. Stages that do not depend on the draft are links to the main run."""
    pilot = RunContext(_pilot_recipe(run_context.recipe, shape, fraction), folder / _name(shape), run_context.device)
    log_line(f"pilot {_name(shape)}: {shape.parameters:,} parameters")
    pilot.folder.mkdir(parents=True, exist_ok=True)
    for stage in SHARED:
        if (run_context.folder / stage).is_dir():
            remove(pilot.folder / stage, inside=pilot.folder)
            (pilot.folder / stage).symlink_to((run_context.folder / stage).resolve(), target_is_directory=True)
    for phase in pilot.drafts():
        run_stages(pilot, manifest, only=phase)
    return _Trained(shape, pilot)


def _pilot_recipe(recipe: Recipe, shape: DraftShape, fraction: float) -> Recipe:
    """The recipe with another shape of the draft and a fraction of the tokens of each phase."""
    sizes = {"hidden_size": shape.hidden_size, "layers": shape.layers}
    kept = recipe.draft.model_dump(include={"init", "context_tokens"})
    changed: dict[str, Any] = {"draft": DraftPart(**sizes, **kept)}
    for name in ("pretrain", "continue_", "align"):
        if part := getattr(recipe, name):
            changed[name] = part.model_copy(update={"train_tokens": max(1, math.ceil(part.train_tokens * fraction))})
    return recipe.model_copy(update=changed)


def _measure(
    trained: _Trained, completions: Completions, target_seconds: Mapping[int, float], setting: Setting
) -> Pilot:
    """Score a trained pilot and time its step."""
    run_context, part, last = trained.run_context, trained.run_context.recipe.evaluate, trained.run_context.drafts()[-1]
    assert part is not None, "checked before anything was trained"
    step = setting.step_seconds(run_context.folder / last / "model", 1)
    results = score_draft(run_context, part, last, completions)
    served = tuple(_served(result, step, target_seconds) for result in results)
    return Pilot(
        hidden_size=trained.shape.hidden_size,
        layers=trained.shape.layers,
        parameters=trained.shape.parameters,
        trained_tokens=sum(phase.train_tokens for name in run_context.drafts() if (phase := run_context.phase(name))),
        step_seconds=step,
        served=served,
        speedup=math.exp(sum(math.log(each.speedup) for each in served) / len(served)),
    )


def _served(result: TaskResult, step: float, target_seconds: Mapping[int, float]) -> Served:
    """The speed-up on one task at one temperature, at the gamma that is fastest there."""

    def faster(tau: float, gamma: int) -> float:
        return speedup(tau, gamma, step, target_seconds[1], target_seconds[gamma + 1])

    best = max(result.gammas, key=lambda at: faster(at.block_efficiency.value, at.gamma))
    value, low, high = (
        faster(tau, best.gamma)
        for tau in (best.block_efficiency.value, best.block_efficiency.low, best.block_efficiency.high)
    )
    return Served(
        task=result.task,
        temperature=result.temperature,
        alpha=result.alpha.value,
        best_gamma=best.gamma,
        block_efficiency=best.block_efficiency.value,
        speedup=value,
        low=low,
        high=high,
    )


def _name(shape: DraftShape) -> str:
    return f"{shape.hidden_size}x{shape.layers}"
