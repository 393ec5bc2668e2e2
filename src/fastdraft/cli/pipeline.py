"""`fastdraft run`, one command per stage, and `fastdraft status`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import STAGES
from fastdraft.cli.options import AsJson, Overrides, RecipePath, screen
from fastdraft.system.errors import CardError, Stopped, VerificationError

if TYPE_CHECKING:
    from fastdraft.config import Recipe
    from fastdraft.results.evaluation import VerificationResult
    from fastdraft.system.cards import Card

# Exit code of a process that Ctrl-C ended: 128 + SIGINT.
INTERRUPTED = 130

Folder = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/NAME.")]
Until = Annotated[str | None, typer.Option(help="Stop after this stage.", autocompletion=completion.among(STAGES))]

Verify = Annotated[bool, typer.Option("--verify", help="Read every file of the stages that are done, in full.")]


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Exit with code 130 on Ctrl-C and 0 on SIGTERM, without typer's own message: the run has logged how to resume."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise typer.Exit(0 if isinstance(interrupt, Stopped) else INTERRUPTED) from None


def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    until: Until = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Run all stages of a recipe. Stages that are done already are skipped."""
    _run(recipe, overrides, folder, as_json, until=until)


def stage_command(name: str) -> Callable[..., None]:
    """The command that runs only the stage `name` of a recipe."""

    def command(
        recipe: RecipePath, overrides: Overrides = None, folder: Folder = None, as_json: AsJson = False
    ) -> None:
        _run(recipe, overrides, folder, as_json, only=name)

    return command


def _run(
    recipe: Path,
    overrides: list[str] | None,
    folder: Path | None,
    as_json: bool,
    until: str | None = None,
    only: str | None = None,
) -> None:
    import fastdraft
    from fastdraft.system import processes

    resolved = fastdraft.load_recipe(recipe, overrides or [])
    with exit_on_interrupt():
        cards = fastdraft.run(resolved, folder=folder, until=until, only=only)
    if not processes.is_main():
        return
    if as_json:
        print(json.dumps({name: card.model_dump(mode="json") for name, card in cards.items()}, indent=2))
    else:
        _print_tables(resolved.recipe, folder or Path("runs") / resolved.recipe.name, cards)
    from fastdraft.results.evaluation import EvaluationCard

    evaluation = cards.get("evaluate")
    if isinstance(evaluation, EvaluationCard):
        check_agreement(evaluation.verified)


def check_agreement(verified: Mapping[str, Sequence[VerificationResult]]) -> None:
    """VerificationError if real speculative decoding disagrees with the one pass; call it after printing."""
    from fastdraft.results.formatting import disagreements

    if found := disagreements(verified):
        raise VerificationError(
            f"real speculative decoding and the one-pass evaluation disagree, first in {found[0]}\n"
            f"  kept: all results, with {len(found)} disagreements\n"
            f"  do: do not trust the rates; verify more prompts, then report it with the versions of torch and "
            f"transformers"
        )


def _print_tables(recipe: Recipe, folder: Path, cards: dict[str, Card]) -> None:
    """Print the evaluation, the quality of the synthetic data, the cost and the use of the draft, if there are any."""
    from fastdraft.models.model_folder import folder_of
    from fastdraft.models.run_context import PHASES
    from fastdraft.pipeline.stages import stages_of
    from fastdraft.report import terminal_quality, terminal_run
    from fastdraft.results.evaluation import EvaluationCard
    from fastdraft.synthesize.completions_card import CompletionsCard

    evaluation = cards.get("evaluate")
    if isinstance(evaluation, EvaluationCard):
        screen.print(terminal_run.results(evaluation.results))
        if evaluation.verified:
            screen.print(terminal_run.verified(evaluation.verified))
    synthesis = cards.get("synthesize")
    if isinstance(synthesis, CompletionsCard) and synthesis.quality is not None:
        screen.print(terminal_quality.quality_table(synthesis.engine, synthesis.log_probabilities, synthesis.quality))
    screen.print(terminal_run.costs({name: card.cost for name, card in cards.items()}))
    phases = [stage.name for stage in stages_of(recipe) if stage.name in PHASES]
    if phases and phases[-1] in cards:
        screen.print(terminal_run.usage(folder_of(recipe.target), folder / phases[-1] / "model"))


def status(
    folder: Annotated[Path, typer.Argument(metavar="RUN")],
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Print the state of each stage of a run. With --verify: exit code 2 if a file is not as its card records it."""
    from fastdraft.config.resolve import resolve
    from fastdraft.pipeline.stages import recipe_file, states_of

    states = states_of(resolve(recipe_file(folder), []).recipe, folder)
    if as_json:
        print(json.dumps(states, indent=2))
    else:
        for name, state in states.items():
            print(f"{name:12} {state}")
    if verify:
        _verify(folder, [name for name, state in states.items() if state == "done"])


def _verify(run: Path, stages: Sequence[str]) -> None:
    """Check all files of these stages; CardError that names every damaged stage."""
    from fastdraft.pipeline.run_stages import MAKERS
    from fastdraft.system.cards import open_stage
    from fastdraft.system.progress import log_line

    problems = []
    for name in stages:
        try:
            card = open_stage(run / name, MAKERS[name].card, whole=True)
            log_line(f"{name}: {len(card.contents):,} files are as their card records them")
        except CardError as error:
            problems.append(str(error))
    if problems:
        raise CardError("\n".join(problems))
