"""Arguments and options that several commands share, and the terminal that results are printed on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

screen = Console(width=None if sys.stdout.isatty() else 150)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe's YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe, dotted.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
