"""`run`, one command for each stage, and `status`: a recipe on its way through the pipeline."""

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
    from fastdraft.models.run_context import RunContext
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
    """Go down the whole pipeline of a recipe; what is done already is skipped."""
    from fastdraft.config.resolve import resolve

    _run_stages(resolve(recipe, overrides or []), folder, as_json, until=until)


def stage_command(name: str) -> Callable[..., None]:
    """The command that runs the stage `name` of a recipe alone."""

    def command(
        recipe: RecipePath, overrides: Overrides = None, folder: Folder = None, as_json: AsJson = False
    ) -> None:
        from fastdraft.config.resolve import resolve

        _run_stages(resolve(recipe, overrides or []), folder, as_json, only=name)

    return command


def status(folder: Annotated[Path, typer.Argument(metavar="RUN")], as_json: AsJson = False) -> None:
    """Where a run stands, stage by stage."""
    from fastdraft.config.resolve import resolve
    from fastdraft.pipeline import stages

    if not (folder / "resolved.yaml").is_file():
        raise RunError(f"no run at {folder}: it has no resolved.yaml\n  do: give the folder of a run, like runs/demo")
    found = stages.standing(_run_context(resolve(folder / "resolved.yaml", []), folder))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for name, state in found.items():
            print(f"{name:12} {state}")


def _run_stages(
    resolved: Resolved, folder: Path | None, as_json: bool, until: str | None = None, only: str | None = None
) -> None:
    from fastdraft.pipeline import stages
    from fastdraft.system import processes

    with run_recipe(resolved, folder) as (run_context, manifest):
        made = stages.run_stages(run_context, manifest, until, only)
    processes.end()
    if processes.is_main():
        _print_cards(run_context, made, as_json)


@contextmanager
def run_recipe(resolved: Resolved, folder: Path | None) -> Iterator[tuple[RunContext, Manifest]]:
    """Hold a recipe's run folder while something is made in it; who stops it is told how to go on."""
    import torch

    from fastdraft.config.resolve import digest
    from fastdraft.system import processes
    from fastdraft.system.manifest import Manifest
    from fastdraft.system.progress import log_line
    from fastdraft.system.signals import ended_by_sigterm
    from fastdraft.train import trackers

    recipe = resolved.recipe
    trackers.check(recipe.trackers)
    folder = folder or Path("runs") / recipe.name
    run_context = _run_context(resolved, folder)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    try:
        with ended_by_sigterm(), ExitStack() as held:
            processes.on_rank0(lambda: _take(run_context, resolved, held))
            manifest = Manifest(folder, digest(recipe), recipe.seed, run_context.device)
            with _end_in_manifest(manifest):
                yield run_context, manifest
    except KeyboardInterrupt as stop:
        log_line("stopped: the same command goes on from the last checkpoint")
        processes.end()
        raise typer.Exit(0 if isinstance(stop, Stopped) else INTERRUPTED) from None


@contextmanager
def _end_in_manifest(manifest: Manifest) -> Iterator[None]:
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


def _take(run_context: RunContext, resolved: Resolved, held: ExitStack) -> None:
    """Hold a run folder until `held` closes, and write what is run into it."""
    from fastdraft.config.resolve import resolved_yaml
    from fastdraft.system.files import atomic_write, locked, make_folder

    make_folder(run_context.folder)
    held.enter_context(locked(run_context.folder))
    with atomic_write(run_context.folder / "resolved.yaml") as part:
        part.write_text(resolved_yaml(resolved, run_context.automatic()), encoding="utf-8")


def _print_cards(run_context: RunContext, cards: dict[str, Card], as_json: bool) -> None:
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
        screen.print(terminal_run.verified(evaluation.verified))
    synthesis = cards.get("synthesize")
    if isinstance(synthesis, CompletionsCard) and synthesis.quality is not None:
        screen.print(terminal_quality.written(synthesis.engine, synthesis.log_probabilities, synthesis.quality))
    screen.print(terminal_run.costs({name: card.cost for name, card in cards.items()}))
    if run_context.drafts() and run_context.drafts()[-1] in cards:
        screen.print(
            terminal_run.usage(
                folder_of(run_context.recipe.target), run_context.folder / run_context.drafts()[-1] / "model"
            )
        )


def _run_context(resolved: Resolved, folder: Path) -> RunContext:
    from fastdraft.models.run_context import RunContext

    return RunContext(resolved.recipe, folder, usable_device(resolved.recipe.device))


def usable_device(name: str) -> torch.device:
    """`auto` is the first accelerator that torch finds, else the CPU; RecipeError where the device is not there.

    Of several processes each gets its own device of that kind.
    """
    import torch

    from fastdraft.system import processes
    from fastdraft.system.progress import log_line

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
        log_line(f"not used: {', '.join(foreign)}; the recipe's `parallel` and `precision` say it")
    return processes.begin(device)
