"""`fastdraft search`: find the depth of the draft that is fastest on this machine, by training pilots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import TIMERS as ENGINES
from fastdraft.cli.options import AsJson, Overrides, RecipePath, screen
from fastdraft.cli.pipeline import Folder, exit_on_interrupt
from fastdraft.system import limits
from fastdraft.system.errors import RecipeError
from fastdraft.system.optional_packages import need

Fraction = Annotated[float, typer.Option(help="Fraction of the recipe's tokens that each pilot is trained on.")]
Pilots = Annotated[int, typer.Option(min=1, max=limits.LAYERS, help="Minimum number of depths to try.")]
Engine = Annotated[
    str,
    typer.Option(
        help=f"Engine in which steps are timed: {', '.join(ENGINES)}.", autocompletion=completion.among(ENGINES)
    ),
]
TimedTarget = Annotated[Path | None, typer.Option(help="Model that is timed instead of the target: a stand-in.")]
Write = Annotated[bool, typer.Option(help="Write the best shape into the recipe.")]
Plot = Annotated[Path | None, typer.Option(help="Plot of speed-up against depth (.png, .svg).")]


def search(
    recipe: RecipePath,
    overrides: Overrides = None,
    fraction: Fraction = 0.1,
    pilots: Pilots = 5,
    engine: Engine = "openvino",
    timed_target: TimedTarget = None,
    write: Write = True,
    plot: Plot = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Train pilots of several depths, all of the recipe's size, and find the fastest one on this machine."""
    if not 0 < fraction <= 1:
        raise RecipeError(f"--fraction: found {fraction:g}, wanted more than 0 and at most 1\n  do: write it like 0.1")
    if engine not in ENGINES:
        raise RecipeError(f"--engine: found {engine}, wanted one of {', '.join(ENGINES)}\n  do: choose one of them")
    if plot and plot.suffix not in (".png", ".svg"):
        raise RecipeError(f"--plot: found {plot}, wanted a name that ends in .png or .svg\n  do: rename it")
    if plot:
        need("matplotlib", "view")
    if timed_target and not (timed_target / "config.json").is_file():
        raise RecipeError(f"--timed-target: no config.json in {timed_target}\n  do: name the folder of a model")
    from fastdraft.config.resolve import resolve
    from fastdraft.config.yaml_syntax import with_draft
    from fastdraft.pipeline.pilots import Setting
    from fastdraft.pipeline.pilots import search as search_pilots
    from fastdraft.pipeline.run import open_run
    from fastdraft.pipeline.step_timers import TIMERS
    from fastdraft.report import terminal_search
    from fastdraft.system.files import atomic_write

    resolved = resolve(recipe, overrides or [])
    with (
        exit_on_interrupt(),
        open_run(resolved, folder) as (run_context, manifest),
        TIMERS[engine]() as step_seconds,
    ):
        result = search_pilots(run_context, manifest, Setting(fraction, pilots, engine, step_seconds, timed_target))
    if plot:
        terminal_search.plot(result, plot)
    if as_json:
        print(result.model_dump_json(indent=2))
    else:
        screen.print(terminal_search.search(result))
    if write:
        shape = {"hidden_size": result.best.hidden_size, "layers": result.best.layers}
        with atomic_write(recipe) as part:
            part.write_text(with_draft(recipe.read_text(encoding="utf-8"), shape), encoding="utf-8")
