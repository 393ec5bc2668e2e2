"""Arguments and options shared by several commands, their parsers, and the console that prints results."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from fastdraft.cli import completion
from fastdraft.system import limits
from fastdraft.system.errors import RecipeError
from fastdraft.system.terminal import Screen

# Python has no standard output if the shell has closed it.
screen = Screen(width=None if sys.stdout is not None and sys.stdout.isatty() else 150)

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="YAML file of a recipe.", autocompletion=completion.recipes)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys with dots.", autocompletion=completion.overrides),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def parse_gammas(text: str) -> tuple[int, ...]:
    """Block lengths written like `1-16`, `4` or `1,2,8`, sorted, without duplicates; RecipeError if one is invalid."""
    gammas: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", piece)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high <= limits.GAMMA:
            raise RecipeError(
                f"--gammas: found {text}, wanted block lengths from 1 to {limits.GAMMA}\n"
                f"  do: write it like 1-16 or 2,4"
            )
        gammas.update(range(low, high + 1))
    return tuple(sorted(gammas))


def parse_temperatures(arguments: list[str]) -> list[float]:
    """Temperatures written like `0,0.6`; RecipeError if one is invalid."""
    temperatures = []
    for piece in ",".join(arguments).split(","):
        if not re.fullmatch(r"\s*(\d{1,3}(?:\.\d*)?|\.\d+)\s*", piece):
            raise RecipeError(f"--temperature: found {piece}, wanted 0 to 999\n  do: write it like 0,0.6")
        temperatures.append(float(piece))
    return temperatures
