"""`search`: which depth of draft is fastest on this machine, by pilots; the best shape goes into the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import TIMERS as NAMES
from fastdraft.cli.options import AsJson, Overrides, RecipePath, screen
from fastdraft.cli.pipeline import Folder, run_recipe
from fastdraft.system.errors import RecipeError
from fastdraft.system.optional_packages import need

Engine = Annotated[
    str,
    typer.Option(help=f"Where steps are timed: {', '.join(NAMES)}.", autocompletion=completion.among(NAMES)),
]
Timed = Annotated[Path | None, typer.Option(help="Model timed in the target's place: a stand-in.")]


def search(
    recipe: RecipePath,
    overrides: Overrides = None,
    fraction: Annotated[float, typer.Option(help="Share of the recipe's tokens that a pilot is trained on.")] = 0.1,
    pilots: Annotated[int, typer.Option(help="Depths to try, at least.")] = 5,
    engine: Engine = "openvino",
    timed_target: Timed = None,
    write: Annotated[bool, typer.Option(help="Write the best shape into the recipe.")] = True,
    plot: Annotated[Path | None, typer.Option(help="Picture of speed-up against depth (.png, .svg).")] = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Train pilots of several depths at the recipe's budget and find the fastest on this machine."""
    if not 0 < fraction <= 1:
        raise RecipeError(f"--fraction: found {fraction:g}, wanted more than 0 and 1 at most\n  do: write it like 0.1")
    if engine not in NAMES:
        raise RecipeError(f"--engine: found {engine}, wanted one of {', '.join(NAMES)}\n  do: choose one of them")
    if plot and plot.suffix not in (".png", ".svg"):
        raise RecipeError(f"--plot: found {plot}, wanted a name that ends in .png or .svg\n  do: rename it")
    if plot:
        need("matplotlib", "view")
    if timed_target and not (timed_target / "config.json").is_file():
        raise RecipeError(f"--timed-target: no config.json in {timed_target}\n  do: give the folder of a model")
    from fastdraft.config.resolve import resolve
    from fastdraft.config.yaml_syntax import with_draft
    from fastdraft.pipeline.pilots import Setting
    from fastdraft.pipeline.pilots import search as find
    from fastdraft.pipeline.step_timers import TIMERS
    from fastdraft.report import terminal_search
    from fastdraft.system.files import atomic_write

    resolved = resolve(recipe, overrides or [])
    with run_recipe(resolved, folder) as (run_context, manifest), TIMERS[engine]() as step_seconds:
        found = find(run_context, manifest, Setting(fraction, pilots, engine, step_seconds, timed_target))
    if plot:
        terminal_search.picture(found, plot)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        screen.print(terminal_search.search(found))
    if write:
        sizes = {"hidden_size": found.best.hidden_size, "layers": found.best.layers}
        with atomic_write(recipe) as part:
            part.write_text(with_draft(recipe.read_text(encoding="utf-8"), sizes), encoding="utf-8")
