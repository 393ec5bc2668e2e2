"""`plan`: which draft to make for a target, what it will cost, whether it will pay here; before any training."""

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

PLACES = completion.among(["cpu", *DEVICES])
Named = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="Hub id, folder, config.json, or `demo`.", autocompletion=completion.models),
]
Budget = Annotated[
    str | None, typer.Option(help="Budget of the draft, like 50M; otherwise 1/50 to 1/75 of the target.")
]
Where = Annotated[
    str,
    typer.Option(help=f"Where the pair runs: cpu (measured here), {', '.join(DEVICES)}.", autocompletion=PLACES),
]
Weights = Annotated[
    str,
    typer.Option(help=f"Precision of both models' weights: {', '.join(BITS)}.", autocompletion=completion.among(BITS)),
]
Costed = Annotated[
    Path | None,
    typer.Option(help="Recipe whose stages are costed; otherwise the paper's.", autocompletion=completion.recipes),
]
Trained = Annotated[
    str | None, typer.Option(help="Where the draft is trained; otherwise --device.", autocompletion=PLACES)
]
UNITS = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9}


def plan(
    target: Named,
    params: Budget = None,
    device: Where = "cpu",
    weights: Weights = "int8",
    recipe: Costed = None,
    train_device: Trained = None,
    as_json: AsJson = False,
) -> None:
    """Which draft a target should have, what it will cost, and whether it will pay; nothing is trained."""
    from fastdraft.config import TargetPart
    from fastdraft.config.resolve import resolve
    from fastdraft.planning.plan import Setting, make_plan
    from fastdraft.report import terminal_plan

    if weights not in BITS:
        raise RecipeError(f"--weights: found {weights}, wanted one of {', '.join(BITS)}\n  do: choose one of them")
    millions = None if params is None else _millions(params)
    measured = {name: _device(name, weights) for name in {device, train_device or device}}
    setting = Setting(measured[device], measured[train_device or device], weights)
    chosen = resolve(recipe, []).recipe if recipe else None
    made = make_plan(TargetPart(path=target), millions, chosen, setting)
    if as_json:
        print(made.model_dump_json(indent=2))
    else:
        screen.print(terminal_plan.plan(made))


def _millions(params: str) -> float:
    """Millions of parameters out of `50M`, `0.1B`, `640k`."""
    number, unit = params[:-1], params[-1:]
    try:
        millions = float(number) * UNITS[unit] / 1e6
    except (ValueError, KeyError):
        millions = 0
    if not 0 < millions < float("inf"):
        raise RecipeError(f"--params: found {params}, wanted a number and k, M or B\n  do: write it like 50M")
    return millions


def _device(name: str, weights: str) -> Device:
    """The device of this name; `cpu` is measured on this machine, in seconds."""
    from fastdraft.planning.devices import published
    from fastdraft.planning.probe import probe_cpu

    return probe_cpu(weights=weights) if name == "cpu" else published(name)
