"""The command line: parse, call, print. A user's mistake prints without a traceback and exits 2."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from fastdraft import __version__, resolve, stages
from fastdraft.artefacts.evaluation import EvaluationCard
from fastdraft.artefacts.journey import Journey
from fastdraft.errors import DiskFull, FastDraftError, RecipeError, RunError, UserError
from fastdraft.manifest import Manifest
from fastdraft.progress import say
from fastdraft.records import Card
from fastdraft.resolve import Resolved
from fastdraft.run import finished_last, locked
from fastdraft.schema import schema_json, schema_markdown
from fastdraft.target import folder_of, quiet
from fastdraft.view import tables

INTERRUPTED = 130
screen = Console(width=None if sys.stdout.isatty() else 150)

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="A draft model for any target.")
recipes = typer.Typer(no_args_is_help=True, help="Show, validate and explain recipes.")
app.add_typer(recipes, name="recipe")

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe's YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe, dotted.")]
Folder = Annotated[Path | None, typer.Option(help="Run folder; otherwise runs/NAME.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def main() -> None:
    """The `fastdraft` command."""
    quiet()
    try:
        app()
    except FastDraftError as error:
        kind = "error" if isinstance(error, UserError) else type(error).__name__
        print(f"{kind}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """A draft model for speculative decoding, for any target."""
    if show:
        print(f"fastdraft {__version__}")
        raise typer.Exit


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Go down the whole road of a recipe; what is done already is skipped."""
    _travel(resolve.resolve(recipe, overrides or []), folder, as_json, until=until)


def _stage_command(name: str) -> None:
    def command(
        recipe: RecipePath, overrides: Overrides = None, folder: Folder = None, as_json: AsJson = False
    ) -> None:
        _travel(resolve.resolve(recipe, overrides or []), folder, as_json, only=name)

    app.command(name, help=f"Run the stage `{name}` of a recipe alone; the stages it needs must be done.")(command)


for _stage in stages.STAGES:
    _stage_command(_stage.name)


@app.command()
def status(folder: Annotated[Path, typer.Argument(metavar="RUN")], as_json: AsJson = False) -> None:
    """Where a run stands, stage by stage."""
    if not (folder / "resolved.yaml").is_file():
        raise RunError(f"no run at {folder}: it has no resolved.yaml\n  do: give the folder of a run, like runs/demo")
    found = stages.standing(_journey(resolve.resolve(folder / "resolved.yaml", []), folder))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for name, state in found.items():
            print(f"{name:12} {state}")


@recipes.command()
def show(recipe: RecipePath, overrides: Overrides = None) -> None:
    """The complete recipe, with where each value came from."""
    print(resolve.resolved_yaml(resolve.resolve(recipe, overrides or [])), end="")


@recipes.command()
def validate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check keys, types and values; nothing is run."""
    print(f"{recipe}: sound, {resolve.digest(resolve.resolve(recipe, overrides or []).recipe)}")


@recipes.command()
def schema(markdown: Annotated[bool, typer.Option(help="As docs/recipe.md; otherwise JSON Schema.")] = False) -> None:
    """Every key with its type, default and meaning."""
    print(schema_markdown() if markdown else json.dumps(schema_json(), indent=2), end="")


def _travel(
    resolved: Resolved, folder: Path | None, as_json: bool, until: str | None = None, only: str | None = None
) -> None:
    recipe = resolved.recipe
    folder = folder or Path("runs") / recipe.name
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    journey = _journey(resolved, folder)
    _make_folder(folder)
    with locked(folder):
        with finished_last(folder / "resolved.yaml") as part:
            part.write_text(resolve.resolved_yaml(resolved), encoding="utf-8")
        manifest = Manifest(folder, resolve.digest(recipe), recipe.seed, journey.device)
        try:
            made = stages.travel(journey, manifest, until, only)
        except KeyboardInterrupt:
            manifest.end("interrupted")
            say("stopped: the same command goes on from the last checkpoint")
            raise typer.Exit(INTERRUPTED) from None
        except BaseException as error:
            with suppress(DiskFull):  # what stopped the stage is the news, not that there is no space to note it
                manifest.end(f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        manifest.end("finished")
    _print_cards(journey, made, as_json)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be a run folder: {error.strerror}\n  do: choose another one with --folder"
        ) from error


def _print_cards(journey: Journey, cards: dict[str, Card], as_json: bool) -> None:
    """The result of a command: the card of each stage that it passed, or the tables made of them."""
    if as_json:
        print(json.dumps({name: card.model_dump(mode="json") for name, card in cards.items()}, indent=2))
        return
    evaluation = cards.get("evaluate")
    if isinstance(evaluation, EvaluationCard):
        screen.print(tables.results(evaluation.results))
        screen.print(tables.judged(evaluation.judged))
    screen.print(tables.costs({name: card.cost for name, card in cards.items()}))
    if journey.drafts() and journey.drafts()[-1] in cards:
        screen.print(tables.usage(folder_of(journey.recipe.target), journey.folder / journey.drafts()[-1] / "model"))


def _journey(resolved: Resolved, folder: Path) -> Journey:
    return Journey(resolved.recipe, folder, _device(resolved.recipe.device))


def _device(name: str) -> torch.device:
    """`auto` is the first accelerator that torch finds, else the CPU; RecipeError where the device is not there."""
    found = torch.accelerator.current_accelerator() or torch.device("cpu")
    if name == "auto":
        return found
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # What torch raises for a device that it was not built for differs from device to device.
    except (RuntimeError, AssertionError, ImportError) as error:
        raise RecipeError(
            f"device: found {name}, which torch cannot use here ({str(error).splitlines()[0]})\n"
            f"  do: set device=auto, which is {found} on this machine"
        ) from error
    return device


if __name__ == "__main__":
    main()
