"""`fastdraft recipe show`, `validate` and `schema`: look at recipes without running them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fastdraft.cli.options import Overrides, RecipePath

app = typer.Typer(no_args_is_help=True, help="Show, validate and explain recipes.")


@app.command()
def show(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Print the complete recipe, with the origin of each value."""
    from fastdraft.config import resolve

    print(resolve.resolved_yaml(resolve.resolve(recipe, overrides or [])), end="")


@app.command()
def validate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check keys, types and values. Nothing is run."""
    from fastdraft.config import resolve

    print(f"{recipe}: valid, {resolve.digest(resolve.resolve(recipe, overrides or []).recipe)}")


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option(help="Print Markdown, as in docs/recipe.md. Default: JSON Schema.")] = False,
) -> None:
    """Print every key with its type, default and meaning."""
    from fastdraft.config.schema import schema_json, schema_markdown

    print(schema_markdown() if markdown else json.dumps(schema_json(), indent=2), end="")
