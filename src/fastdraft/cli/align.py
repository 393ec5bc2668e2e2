"""`fastdraft align`: run the stage `align` of a recipe, or align a finished draft on a user's own prompts or logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastdraft.cli.options import AsJson, parse_temperatures, screen
from fastdraft.cli.pipeline import Folder, exit_on_interrupt, stage_command
from fastdraft.system import limits
from fastdraft.system.errors import RecipeError

PANEL = "With --draft"

Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="YAML file of a recipe; recipe keys with dots."),
]
Draft = Annotated[
    str | None, typer.Option(help="Draft: its folder, the folder of its run, or a hub id.", rich_help_panel=PANEL)
]
Target = Annotated[
    str | None, typer.Option(help="Target: hub id, folder, GGUF file, `demo` or `smollm2`.", rich_help_panel=PANEL)
]
Data = Annotated[
    str | None,
    typer.Option(
        help=".jsonl or .parquet file with `prompt` or `messages`, and with `completion` if it has answers. Without "
        "`completion` the target generates the answers.",
        rich_help_panel=PANEL,
    ),
]
Out = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/align-DATA.", rich_help_panel=PANEL)]
HeldOut = Annotated[
    float, typer.Option(help="Fraction of the prompts that is held out for the evaluation.", rich_help_panel=PANEL)
]
MaxNewTokens = Annotated[
    int,
    typer.Option(min=1, max=limits.SEQUENCE, help="Maximum length of an answer of the target.", rich_help_panel=PANEL),
]
Temperature = Annotated[
    list[str] | None, typer.Option(help="Temperatures of the evaluation. Default: 0,0.6,1.", rich_help_panel=PANEL)
]


def align(
    arguments: Arguments = None,
    draft: Draft = None,
    target: Target = None,
    data: Data = None,
    out: Out = None,
    held_out: HeldOut = 0.1,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Align a draft to its target. With a RECIPE: run only its stage `align`. The stages that it needs must be done.
    With --draft, --target and --data: align a finished draft on your own prompts or logs; evaluate before and after.
    """
    arguments = arguments or []
    required = {"--draft": draft, "--target": target, "--data": data}
    missing = [option for option, value in required.items() if value is None]
    if len(missing) == len(required):
        if not arguments:
            raise RecipeError(
                "found neither a recipe nor --draft, wanted one of them\n"
                "  do: fastdraft align RECIPE, or add --draft, --target and --data"
            )
        stage_command("align")(Path(arguments[0]), arguments[1:], folder, as_json)
        return
    if missing or folder is not None:
        problem = "--folder needs a recipe" if folder is not None else f"missing {', '.join(missing)}"
        raise RecipeError(
            f"{problem}; this command aligns a finished draft\n"
            f"  do: fastdraft align --draft DRAFT --target TARGET --data FILE.jsonl [--out FOLDER]"
        )
    if not 0 < held_out < 1:
        raise RecipeError(
            f"--held-out: found {held_out:g}, wanted more than 0 and less than 1\n  do: write it like 0.1"
        )
    import fastdraft
    from fastdraft.report import terminal_scores
    from fastdraft.system import processes

    with exit_on_interrupt():
        scores = fastdraft.align(
            str(draft),
            str(target),
            str(data),
            folder=out,
            overrides=arguments,
            held_out_fraction=held_out,
            max_new_tokens=max_new_tokens,
            temperatures=parse_temperatures(temperature or ["0,0.6,1"]),
        )
    if not processes.is_main():
        return
    if as_json:
        print(json.dumps(scores.model_dump(mode="json"), indent=2, ensure_ascii=False))
    else:
        screen.print(terminal_scores.scores(scores))
