"""`fastdraft plan`: which draft to train for a target, what it will cost and whether it will pay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import BITS, DEVICES
from fastdraft.cli.options import AsJson, screen
from fastdraft.system.errors import RecipeError

if TYPE_CHECKING:
    from fastdraft.planning.devices import Device

UNITS = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9}
DEVICE_NAMES = completion.among(["cpu", *DEVICES])

Target = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="Hub id, folder, config.json, or `demo`.", autocompletion=completion.models),
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
    from fastdraft.config import TargetPart
    from fastdraft.config.resolve import resolve
    from fastdraft.planning.plan import Setting, make_plan
    from fastdraft.report import terminal_plan

    if weights not in BITS:
        raise RecipeError(f"--weights: found {weights}, wanted one of {', '.join(BITS)}\n  do: choose one of them")
    params_millions = None if params is None else _params_millions(params)
    devices = {name: _device(name, weights) for name in {device, train_device or device}}
    setting = Setting(devices[device], devices[train_device or device], weights)
    resolved = resolve(recipe, []).recipe if recipe else None
    result = make_plan(TargetPart(path=target), params_millions, resolved, setting)
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


def _device(name: str, weights: str) -> Device:
    """The device of this name. `cpu` is this machine, measured in a few seconds."""
    from fastdraft.planning.devices import published
    from fastdraft.planning.probe import probe_cpu

    return probe_cpu(weights=weights) if name == "cpu" else published(name)
