"""The command line: parse, call, print; one file a command. A user's mistake prints without a traceback and exits 2.

Help, completion and `--version` answer at once, so nothing here imports torch, transformers or pydantic to define a
command: what a command works with is imported in its function, its types under TYPE_CHECKING, and the names of tables
that help or completion lists stand in `words.py` (`tests/cli/test_cli.py` holds both).
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from fastdraft import __version__
from fastdraft.cli import align, bench, check, evaluate, export, pipeline, plan, play, recipes, report, search
from fastdraft.cli.choices import STAGES
from fastdraft.system.dependencies import check_dependencies
from fastdraft.system.errors import FastDraftError, MainProcessFailed, UserError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="A draft model for any target.")


def main() -> None:
    """The `fastdraft` command."""
    # Before huggingface_hub is imported: its bars and those of transformers stay off, for ours show the long work.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except MainProcessFailed as error:
        sys.exit(error.exit_code)
    except FastDraftError as error:
        kind = "error" if isinstance(error, UserError) else type(error).__name__
        print(f"{_which_process()}{kind}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _which_process() -> str:
    """Of several processes, the one that this is; nothing for the main one."""
    if "RANK" not in os.environ:
        return ""
    from fastdraft.system import processes

    return "" if processes.is_main() else f"process {processes.rank()}: "


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
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
    if _stage == "evaluate":  # also of a draft that comes without a recipe
        app.command(_stage, help=evaluate.HELP)(evaluate.evaluate)
        continue
    if _stage == "align":  # also of a finished draft, on a user's own data
        app.command(_stage, help=align.HELP)(align.align)
        continue
    help_ = f"Run the stage `{_stage}` of a recipe alone; the stages it needs must be done."
    app.command(_stage, help=help_)(pipeline.stage_command(_stage))
app.command()(pipeline.status)
app.command()(bench.bench)
app.command()(report.report)
app.command()(play.play)
app.command()(export.export)
app.command()(export.push)
app.add_typer(recipes.app, name="recipe")
