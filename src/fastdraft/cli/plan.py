"""`fastdraft plan`: which draft to train for a target, what it will cost and whether it will pay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import BITS, DEVICES
from fastdraft.cli.options import AsJson, screen
from fastdraft.system.errors import RecipeError

UNITS = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9}
DEVICE_NAMES = completion.among(["cpu", *DEVICES])

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="Hub id, folder, config.json, GGUF file, `demo` or `smollm2`.",
        autocompletion=completion.models,
    ),
]
Params = Annotated[str | None, typer.Option(help="Size of the draft, like 50M. Default: 1/60 of the target.")]
DeviceName = Annotated[
    str,
    typer.Option(
        help=f"Device that runs the pair: cpu (this machine, measured), {', '.join(DEVICES)}.",
        autocompletion=DEVICE_NAMES,
    ),
]
Weights = Annotated[
    str,
    typer.Option(help=f"Precision of both models' weights: {', '.join(BITS)}.", autocompletion=completion.among(BITS)),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        help="Recipe whose stages are costed. Default: the recipe of the paper.", autocompletion=completion.recipes
    ),
]
TrainDevice = Annotated[
    str | None, typer.Option(help="Device that trains the draft. Default: --device.", autocompletion=DEVICE_NAMES)
]


def plan(
    target: Target,
    params: Params = None,
    device: DeviceName = "cpu",
    weights: Weights = "int8",
    recipe: RecipeFile = None,
    train_device: TrainDevice = None,
    as_json: AsJson = False,
) -> None:
    """Print which draft a target should have, what it will cost, and whether it will pay. Nothing is trained."""
    import fastdraft
    from fastdraft.report import terminal_plan

    if weights not in BITS:
        raise RecipeError(f"--weights: found {weights}, wanted one of {', '.join(BITS)}\n  do: choose one of them")
    result = fastdraft.plan(
        target,
        params_millions=None if params is None else _params_millions(params),
        device=device,
        weights=weights,
        recipe=recipe,
        train_device=train_device,
    )
    if as_json:
        print(result.model_dump_json(indent=2))
    else:
        screen.print(terminal_plan.plan(result))


def _params_millions(params: str) -> float:
    """Millions of parameters from text like `50M`, `0.1B`, `640k`."""
    number, unit = params[:-1], params[-1:]
    try:
        millions = float(number) * UNITS[unit] / 1e6
    except (ValueError, KeyError):
        millions = 0
    if not 0 < millions < float("inf"):
        raise RecipeError(f"--params: found {params}, wanted a number and k, M or B\n  do: write it like 50M")
    return millions
