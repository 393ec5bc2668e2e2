"""The command line, one file per command: parse the options, call the library, print the result.

A mistake of the user prints an error without a traceback and exits with code 2.

Help, completion and `--version` must answer at once, so importing these modules imports neither torch, transformers
nor pydantic. A command imports what it needs inside its function, types are imported under TYPE_CHECKING, and the names
that help and completion list are copied to `choices.py` (`tests/cli/test_completion.py` checks both).
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from fastdraft import __version__
from fastdraft.cli import align, bench, boundary, check, evaluate, export, pipeline, plan, play, recipes, report, search
from fastdraft.cli.choices import STAGES
from fastdraft.system.dependencies import check_dependencies

app = typer.Typer(
    cls=boundary.Commands, no_args_is_help=True, pretty_exceptions_enable=False, help="A draft model for any target."
)


def main() -> None:
    """The `fastdraft` command."""
    # Set before huggingface_hub is imported. FastDraft's own progress bars replace those of the hub and transformers.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    boundary.run(app, sys.argv[1:])


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """A draft model for speculative decoding, for any target."""
    if show:
        print(f"fastdraft {__version__}")
        raise typer.Exit
    check_dependencies()


app.command()(check.check)
app.command()(plan.plan)
app.command()(search.search)
app.command()(pipeline.run)
for _stage in STAGES:
    if _stage == "evaluate":  # also evaluates a draft that has no recipe
        app.command()(evaluate.evaluate)
    elif _stage == "align":  # also aligns a finished draft on a user's own data
        app.command()(align.align)
    else:
        _help = f"Run only the stage `{_stage}` of a recipe. The stages that it needs must be done."
        app.command(_stage, help=_help)(pipeline.stage_command(_stage))
app.command()(pipeline.status)
app.command()(bench.bench)
app.command()(report.report)
app.command()(play.play)
app.command()(export.export)
app.command()(export.push)
app.add_typer(recipes.app, name="recipe")
