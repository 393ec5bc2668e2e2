"""Arguments and options that several commands share, and the terminal that results are printed on."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fastdraft.cli import completion
from fastdraft.system.errors import RecipeError

if TYPE_CHECKING:
    from fastdraft.synthesize.completions import SamplingParams

# Drafted tokens of a block.
LONGEST_BLOCK = 64

screen = Console(width=None if sys.stdout.isatty() else 150)

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe's YAML file.", autocompletion=completion.recipes)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe, dotted.", autocompletion=completion.overrides),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def block_lengths(text: str) -> tuple[int, ...]:
    """`1-16`, `4`, `1,2,8`, in order, each once; RecipeError where one is none, or beyond what an engine drafts."""
    found: set[int] = set()
    for piece in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", piece)
        low, high = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if not 1 <= low <= high <= LONGEST_BLOCK:
            raise RecipeError(
                f"--gammas: found {text}, wanted block lengths from 1 to {LONGEST_BLOCK}\n  do: say 1-16 or 2,4"
            )
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def sampling_of_options(given: list[str], top_k: int = 0, top_p: float = 1.0) -> tuple[SamplingParams, ...]:
    """Temperatures like `0,0.6`, each once."""
    from fastdraft.synthesize.completions import SamplingParams

    found = []
    for piece in (piece for argument in given for piece in argument.split(",")):
        number = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*", piece)
        if not number:
            raise RecipeError(f"--temperature: found {piece}, wanted 0 or more\n  do: write it like 0,0.6")
        found.append(SamplingParams(float(number[1]), top_k, top_p) if float(number[1]) else SamplingParams(0.0))
    return tuple(dict.fromkeys(found))
