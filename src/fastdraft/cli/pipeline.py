"""`run`, one command for each stage, and `status`: a recipe on its way down the road."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import STAGES
from fastdraft.cli.options import AsJson, Overrides, RecipePath, screen
from fastdraft.system.errors import DiskFull, RecipeError, RunError, Stopped

if TYPE_CHECKING:
    import torch

    from fastdraft.config.resolve import Resolved
    from fastdraft.models.run_context import Journey
    from fastdraft.system.cards import Card
    from fastdraft.system.manifest import Manifest

INTERRUPTED = 130

Folder = Annotated[Path | None, typer.Option(help="Run folder; otherwise runs/NAME.")]
Until = Annotated[str | None, typer.Option(help="Stop after this stage.", autocompletion=completion.among(STAGES))]


def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    until: Until = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Go down the whole road of a recipe; what is done already is skipped."""
    from fastdraft.config.resolve import resolve

    _travel(resolve(recipe, overrides or []), folder, as_json, until=until)


def stage_command(name: str) -> Callable[..., None]:
    """The command that runs the stage `name` of a recipe alone."""

    def command(
        recipe: RecipePath, overrides: Overrides = None, folder: Folder = None, as_json: AsJson = False
    ) -> None:
        from fastdraft.config.resolve import resolve

        _travel(resolve(recipe, overrides or []), folder, as_json, only=name)

    return command


def status(folder: Annotated[Path, typer.Argument(metavar="RUN")], as_json: AsJson = False) -> None:
    """Where a run stands, stage by stage."""
    from fastdraft.config.resolve import resolve
    from fastdraft.pipeline import stages

    if not (folder / "resolved.yaml").is_file():
        raise RunError(f"no run at {folder}: it has no resolved.yaml\n  do: give the folder of a run, like runs/demo")
    found = stages.standing(_journey(resolve(folder / "resolved.yaml", []), folder))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for name, state in found.items():
            print(f"{name:12} {state}")


def _travel(
    resolved: Resolved, folder: Path | None, as_json: bool, until: str | None = None, only: str | None = None
) -> None:
    from fastdraft.pipeline import stages
    from fastdraft.system import processes

    with on_the_road(resolved, folder) as (journey, manifest):
        made = stages.travel(journey, manifest, until, only)
    processes.end()
    if processes.is_main():
        _print_cards(journey, made, as_json)


@contextmanager
def on_the_road(resolved: Resolved, folder: Path | None) -> Iterator[tuple[Journey, Manifest]]:
    """Hold a recipe's run folder while something is made in it; who stops it is told how to go on."""
    import torch

    from fastdraft.config.resolve import digest
    from fastdraft.system import processes
    from fastdraft.system.manifest import Manifest
    from fastdraft.system.progress import say
    from fastdraft.system.signals import ended_by_sigterm
    from fastdraft.train import trackers

    recipe = resolved.recipe
    trackers.check(recipe.trackers)
    folder = folder or Path("runs") / recipe.name
    journey = _journey(resolved, folder)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    try:
        with ended_by_sigterm(), ExitStack() as held:
            processes.led(lambda: _take(journey, resolved, held))
            manifest = Manifest(folder, digest(recipe), recipe.seed, journey.device)
            with _end_noted(manifest):
                yield journey, manifest
    except KeyboardInterrupt as stop:
        say("stopped: the same command goes on from the last checkpoint")
        processes.end()
        raise typer.Exit(0 if isinstance(stop, Stopped) else INTERRUPTED) from None


@contextmanager
def _end_noted(manifest: Manifest) -> Iterator[None]:
    """Leave in the manifest how the command ended."""
    try:
        yield
    except KeyboardInterrupt:
        manifest.end("interrupted")
        raise
    except BaseException as error:
        with suppress(DiskFull):  # what stopped the stage is the news, not that there is no space to note it
            manifest.end(f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    manifest.end("finished")


def _take(journey: Journey, resolved: Resolved, held: ExitStack) -> None:
    """Hold a run folder until `held` closes, and write what is run into it."""
    from fastdraft.config.resolve import resolved_yaml
    from fastdraft.system.files import finished_last, locked, make_folder

    make_folder(journey.folder)
    held.enter_context(locked(journey.folder))
    with finished_last(journey.folder / "resolved.yaml") as part:
        part.write_text(resolved_yaml(resolved, journey.automatic()), encoding="utf-8")


def _print_cards(journey: Journey, cards: dict[str, Card], as_json: bool) -> None:
    """The result of a command: the card of each stage that it passed, or the tables made of them."""
    from fastdraft.models.target import folder_of
    from fastdraft.report import terminal_quality, terminal_run
    from fastdraft.results.evaluation import EvaluationCard
    from fastdraft.synthesize.completions_card import CompletionsCard

    if as_json:
        print(json.dumps({name: card.model_dump(mode="json") for name, card in cards.items()}, indent=2))
        return
    evaluation = cards.get("evaluate")
    if isinstance(evaluation, EvaluationCard):
        screen.print(terminal_run.results(evaluation.results))
        screen.print(terminal_run.judged(evaluation.judged))
    synthesis = cards.get("synthesize")
    if isinstance(synthesis, CompletionsCard) and synthesis.quality is not None:
        screen.print(terminal_quality.written(synthesis.engine, synthesis.log_probabilities, synthesis.quality))
    screen.print(terminal_run.costs({name: card.cost for name, card in cards.items()}))
    if journey.drafts() and journey.drafts()[-1] in cards:
        screen.print(
            terminal_run.usage(folder_of(journey.recipe.target), journey.folder / journey.drafts()[-1] / "model")
        )


def _journey(resolved: Resolved, folder: Path) -> Journey:
    from fastdraft.models.run_context import Journey

    return Journey(resolved.recipe, folder, usable_device(resolved.recipe.device))


def usable_device(name: str) -> torch.device:
    """`auto` is the first accelerator that torch finds, else the CPU; RecipeError where the device is not there.

    Of several processes each gets its own device of that kind.
    """
    import torch

    from fastdraft.system import processes
    from fastdraft.system.progress import say

    found = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = found if name == "auto" else torch.device(name)
        if not processes.launched():
            torch.empty(0, device=device)
    # What torch raises for a device that it was not built for differs from device to device.
    except (RuntimeError, AssertionError, ImportError) as error:
        raise RecipeError(
            f"device: found {name}, which torch cannot use here ({str(error).splitlines()[0]})\n"
            f"  do: set device=auto, or --device auto, which is {found} on this machine"
        ) from error
    if not processes.launched():
        return device
    if foreign := processes.drop_foreign_settings():
        say(f"not heeded: {', '.join(foreign)}; the recipe's `parallel` and `precision` say it")
    return processes.begin(device)
