"""The command line: parse, call, print; one file a command. A user's mistake prints without a traceback and exits 2."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fastdraft import __version__, processes, stages
from fastdraft.cli import check, export, plan, recipes, road, search
from fastdraft.errors import FastDraftError, MainProcessFailed, UserError
from fastdraft.target import quiet

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="A draft model for any target.")


def main() -> None:
    """The `fastdraft` command."""
    quiet()
    try:
        app()
    except MainProcessFailed as error:
        sys.exit(error.exit_code)
    except FastDraftError as error:
        kind = "error" if isinstance(error, UserError) else type(error).__name__
        where = "" if processes.is_main() else f"process {processes.rank()}: "
        print(f"{where}{kind}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """A draft model for speculative decoding, for any target."""
    if show:
        print(f"fastdraft {__version__}")
        raise typer.Exit


app.command()(check.check)
app.command()(plan.plan)
app.command()(search.search)
app.command()(road.run)
for _stage in stages.STAGES:
    help_ = f"Run the stage `{_stage.name}` of a recipe alone; the stages it needs must be done."
    app.command(_stage.name, help=help_)(road.stage_command(_stage.name))
app.command()(road.status)
app.command()(export.export)
app.command()(export.push)
app.add_typer(recipes.app, name="recipe")
