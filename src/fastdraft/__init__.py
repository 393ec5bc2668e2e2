"""FastDraft: a draft model for speculative decoding, for any target.

The functions below are what the command line calls: `run`, `plan`, `check`, `evaluate`, `bench`, `export`, `align` and
`load_recipe`. They return the cards that the commands print and raise `fastdraft.FastDraftError` where a command
prints an error. `import fastdraft` takes milliseconds: torch and transformers are imported by the first call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from fastdraft.system.errors import FastDraftError

if TYPE_CHECKING:
    from fastdraft.compatibility.report import Report
    from fastdraft.config.resolve import Resolved
    from fastdraft.evaluation.score import Scores
    from fastdraft.planning.plan import Plan
    from fastdraft.results.bench import BenchResult
    from fastdraft.results.export import ExportCard
    from fastdraft.synthesize.completions import SamplingParams
    from fastdraft.system.cards import Card
    from fastdraft.system.precision import PrecisionChoice

__version__ = version("fastdraft")
__all__ = ["FastDraftError", "align", "bench", "check", "evaluate", "export", "load_recipe", "plan", "run"]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Resolved:
    """The recipe of a YAML file under overrides like `"align.train_tokens=1000000"`, with the origin of each value.

    RecipeError lists everything that is wrong with it.
    """
    from fastdraft.config.resolve import resolve

    return resolve(Path(path), overrides)


def run(
    recipe: str | Path | Resolved,
    overrides: Sequence[str] = (),
    *,
    folder: str | Path | None = None,
    until: str | None = None,
    only: str | None = None,
) -> dict[str, Card]:
    """Run the stages of a recipe: all of them, those up to `until`, or `only` one. Returns the card of each of them.

    Finished stages are skipped, and a stage that was stopped is resumed. The folder is runs/NAME unless one is given.
    """
    from fastdraft.pipeline.run import run_recipe

    resolved = load_recipe(recipe, overrides) if isinstance(recipe, str | Path) else recipe
    return run_recipe(resolved, None if folder is None else Path(folder), until, only)


def plan(
    target: str,
    *,
    params_millions: float | None = None,
    device: str = "cpu",
    weights: str = "int8",
    recipe: str | Path | Resolved | None = None,
    train_device: str | None = None,
) -> Plan:
    """Which draft a target should have, what it will cost, and whether it will pay; nothing is trained.

    `target` is a hub id, a folder, a config.json, a GGUF file, `demo` or `smollm2`. The draft is that of
    `params_millions`, otherwise that of the recipe, otherwise the paper's fraction of the target. Without a recipe the
    paper's tokens are costed. The device `cpu` is measured here, others have published figures.
    """
    from fastdraft import init
    from fastdraft.config import TargetPart
    from fastdraft.planning.devices import published
    from fastdraft.planning.plan import Setting, make_plan
    from fastdraft.planning.probe import probe_cpu

    resolved = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    chosen = resolved.recipe if resolved else None
    of_recipe = init.shape_of(TargetPart(path=target), chosen.draft) if chosen and params_millions is None else None
    names = dict.fromkeys((device, train_device or device))
    devices = {name: probe_cpu(weights=weights) if name == "cpu" else published(name) for name in names}
    setting = Setting(device=devices[device], training_device=devices[train_device or device], weights=weights)
    return make_plan(target, of_recipe or params_millions, chosen, setting)


def check(target: str, draft: str) -> Report:
    """Does a draft fit its target? The rule of every engine, and stricter ones. `report.holds` is True if all hold."""
    from fastdraft.compatibility.report import check_pair
    from fastdraft.models import named_pairs
    from fastdraft.models.model_files import read

    draft_files = read(named_pairs.draft(draft) if draft in named_pairs.NAMES else draft)
    return check_pair(read(target, weights=False), draft_files)


def evaluate(
    draft: str | Path,
    *,
    target: str | None = None,
    tasks: Sequence[str] | None = None,
    temperatures: Iterable[float] | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    gammas: Iterable[int] = range(1, 17),
    prompts: int | None = None,
    max_new_tokens: int | None = None,
    compare: str | Path | None = None,
    verify: bool = False,
    verify_prompts: int = 16,
    verify_gamma: int = 4,
    data: str | Path | None = None,
    keep: str | Path | None = None,
    batch_size: int = 64,
    precision: PrecisionChoice = "auto",
    resamples: int = 1000,
    seed: int = 7,
    device: str = "auto",
) -> Scores:
    """Acceptance rate and block efficiency of a draft, and of another one to `compare`, on what their target writes.

    `target` is by default the one that the draft's run names. `data` is a folder of completions to score on without
    the target; otherwise the target writes into `keep`, by default in the user's cache. With `verify`, real
    speculative decoding runs on the first `verify_prompts` prompts of each task; `verified` of the result has what it
    found, `disagreements` included.
    """
    from fastdraft.evaluation.inputs import EvaluateOptions
    from fastdraft.evaluation.score import evaluate_draft
    from fastdraft.evaluation.tasks import DEFAULT_TASKS
    from fastdraft.system.torch_device import usable_device

    if temperatures is None and data is None:
        temperatures = (0.0, 0.6)
    options = EvaluateOptions(
        draft=str(draft),
        target=target,
        tasks=tuple(tasks or (() if data else DEFAULT_TASKS)),
        sampling_settings=_sampling(temperatures or (), top_k=top_k, top_p=top_p),
        gammas=tuple(gammas),
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        compare=None if compare is None else str(compare),
        verify_prompts=verify_prompts if verify else 0,
        verify_gamma=verify_gamma,
        data=None if data is None else Path(data),
        keep=None if keep is None else Path(keep),
        batch_size=batch_size,
        precision=precision,
        resamples=resamples,
        seed=seed,
        device=usable_device(device),
    )
    return evaluate_draft(options)


def bench(
    target: str,
    draft: str | Path,
    *,
    engine: str = "openvino",
    device: str | None = None,
    weights: str | None = None,
    draft_weights: str | None = None,
    tasks: Sequence[str] = (),
    temperatures: Iterable[float] = (0.0, 0.6),
    gammas: Iterable[int] = (1, 2, 3, 4, 5, 6, 8),
    prompts: int = 4,
    tokens: int = 64,
    repeats: int = 3,
    save: bool = False,
) -> BenchResult:
    """Time a pair in an engine: without a draft, with prompt lookup, with the draft at each gamma. Advises what to set.

    `save` keeps the result next to the draft, for its model card. BenchError where the engine is not installed or not
    known.
    """
    from fastdraft.benchmark import bench_pair
    from fastdraft.system.progress import log_line

    options = bench_pair.BenchOptions(
        target=target,
        draft=str(draft),
        engine=engine,
        device=device,
        weights=weights,
        draft_weights=draft_weights,
        tasks=tuple(tasks),
        sampling_settings=_sampling(temperatures),
        gammas=tuple(gammas),
        prompts=prompts,
        tokens=tokens,
        repeats=repeats,
    )
    result = bench_pair.bench(options)
    if save:
        log_line(f"saved in {bench_pair.save(options, result)}")
    return result


def export(
    draft: str | Path,
    format: str,
    *,
    weights: str | None = None,
    target: str | None = None,
    out: str | Path | None = None,
) -> tuple[Path, ExportCard]:
    """Write a draft for an engine, prove it in that engine, and describe it in a model card: the folder, and its card.

    `format` is huggingface, openvino or gguf.
    """
    from fastdraft.exporters import export_draft

    return export_draft.export(
        export_draft.ExportOptions(
            draft=Path(draft), format=format, weights=weights, target=target, out=None if out is None else Path(out)
        )
    )


def align(
    draft: str | Path,
    target: str,
    data: str | Path,
    *,
    folder: str | Path | None = None,
    overrides: Sequence[str] = (),
    held_out_fraction: float = 0.1,
    max_new_tokens: int = 128,
    temperatures: Iterable[float] = (0.0, 0.6, 1.0),
) -> Scores:
    """Align a finished draft to your own prompts or logs: scores after and before, on the held-out prompts.

    `data` is a .jsonl or .parquet file with `prompt` or `messages`, and `completion` where there are answers; otherwise
    the target writes them. The folder of the run is runs/align-DATA unless one is given.
    """
    from fastdraft.pipeline.realign import RealignOptions, realign

    return realign(
        RealignOptions(
            draft=str(draft),
            target=target,
            data=str(data),
            folder=Path(folder) if folder else Path("runs") / f"align-{Path(data).name.partition('.')[0]}",
            held_out_fraction=held_out_fraction,
            max_new_tokens=max_new_tokens,
            sampling_settings=_sampling(temperatures),
            overrides=tuple(overrides),
        )
    )


def _sampling(temperatures: Iterable[float], top_k: int = 0, top_p: float = 1.0) -> tuple[SamplingParams, ...]:
    """Sampling parameters of each temperature, without repetition; 0 is greedy."""
    from fastdraft.synthesize.completions import SamplingParams

    found = (SamplingParams(at, top_k, top_p) if at else SamplingParams(0.0) for at in temperatures)
    return tuple(dict.fromkeys(found))
