"""`align`: the stage of a recipe; or, of a finished draft, its alignment to a user's own prompts or logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdraft.cli.options import AsJson, sampling_of_options, screen
from fastdraft.cli.pipeline import Folder, run_recipe, stage_command
from fastdraft.system.errors import RecipeError

if TYPE_CHECKING:
    from fastdraft.pipeline.realign import Realignment

HELP = """Align a draft to its target. Of a RECIPE: its stage `align` alone; the stages it needs must be done.
With --draft, --target and --data: a finished draft on your own prompts or logs, measured before and after."""
OF_DRAFT = "Of a finished draft"
GAMMAS = (3, 5)

Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="A recipe's YAML file; keys of it, dotted."),
]
Draft = Annotated[
    str | None, typer.Option(help="The draft: its folder, that of its run, or a hub id.", rich_help_panel=OF_DRAFT)
]
Target = Annotated[str | None, typer.Option(help="Hub id, folder, or `demo`.", rich_help_panel=OF_DRAFT)]
Data = Annotated[
    str | None,
    typer.Option(
        help=".jsonl or .parquet with `prompt` or `messages`, and `completion` where there are answers; otherwise the "
        "target writes them.",
        rich_help_panel=OF_DRAFT,
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the run; otherwise runs/align-DATA.", rich_help_panel=OF_DRAFT)
]
HeldOut = Annotated[float, typer.Option(help="Share of the prompts that it is measured on.", rich_help_panel=OF_DRAFT)]
CompletionTokens = Annotated[
    int, typer.Option(min=1, help="Longest answer that the target writes.", rich_help_panel=OF_DRAFT)
]
Temperature = Annotated[
    list[str] | None, typer.Option(help="Of the measurement; otherwise 0,0.6,1.", rich_help_panel=OF_DRAFT)
]


def align(
    arguments: Arguments = None,
    draft: Draft = None,
    target: Target = None,
    data: Data = None,
    out: Out = None,
    held_out: HeldOut = 0.1,
    max_new_tokens: CompletionTokens = 128,
    temperature: Temperature = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    given = {"--draft": draft, "--target": target, "--data": data}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        _stage(arguments or [], folder, as_json)
        return
    if missing or folder is not None:
        raise RecipeError(
            f"{'--folder is for a recipe' if folder is not None else ', '.join(missing) + ' missing'}, and a draft is "
            f"named\n  do: fastdraft align --draft DRAFT --target TARGET --data FILE.jsonl [--out FOLDER]"
        )
    if not 0 < held_out < 1:
        raise RecipeError(
            f"--held-out: found {held_out:g}, wanted more than 0 and less than 1\n  do: write it like 0.1"
        )
    place = out or Path("runs") / f"align-{Path(str(data)).name.partition('.')[0]}"
    from fastdraft.pipeline.realign import Realignment

    asked = Realignment(str(draft), str(target), str(data), place, held_out, max_new_tokens)
    _realign(asked, arguments or [], temperature or ["0,0.6,1"], as_json)


def _stage(arguments: list[str], folder: Path | None, as_json: bool) -> None:
    if not arguments:
        raise RecipeError(
            "neither a recipe nor a draft is named\n  do: fastdraft align RECIPE, or --draft, --target, --data"
        )
    stage_command("align")(Path(arguments[0]), arguments[1:], folder, as_json)


def _realign(asked: Realignment, overrides: list[str], temperature: list[str], as_json: bool) -> None:
    """Down the pipeline, and both drafts on what the target writes after the held-out prompts."""
    from fastdraft.evaluate.inputs import EvaluateOptions, material
    from fastdraft.evaluate.score import score
    from fastdraft.pipeline import stages
    from fastdraft.pipeline.realign import prepare
    from fastdraft.report import terminal_scores
    from fastdraft.system import processes

    sampling_settings = sampling_of_options(temperature)
    prepared = prepare(asked, overrides)
    with run_recipe(prepared.resolved, asked.folder) as (run_context, manifest):
        stages.run_stages(run_context, manifest)
        options = EvaluateOptions(
            draft=str(asked.folder / "align" / "model"),
            other=asked.draft,
            target=asked.target,
            device=run_context.device,
            gammas=GAMMAS,
            tasks=(str(prepared.held_out),),
            sampling_settings=sampling_settings,
            prompts=None,
            max_new_tokens=asked.max_new_tokens,
            keep=asked.folder / "held_out",
            seed=run_context.recipe.seed,
        )
        found = processes.on_rank0(lambda: score(options, material(options)))
    processes.end()
    if processes.is_main() and as_json:
        print(json.dumps(found.model_dump(mode="json"), indent=2, ensure_ascii=False))
    elif processes.is_main():
        screen.print(terminal_scores.scores(found))
