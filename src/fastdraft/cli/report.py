"""`report`: what a run made, as one HTML page; several runs side by side; the same figures as PNG."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from fastdraft.system.errors import RunError
from fastdraft.system.optional_packages import need

# Above the first, a line for each run; above the second, a page that no one reads.
SIDE_BY_SIDE, IN_A_TABLE = 6, 1000
# In a page of one run; of several runs it is written where the command is given.
NAME = "report.html"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    show: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
    out: Annotated[
        Path | None, typer.Option(help=f"The page; otherwise {NAME} in the run, or here for several runs.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Folder for the figures as PNG.")] = None,
) -> None:
    """One self-contained page of what runs made: worth deploying, where it fails, what it cost. It asks no network."""
    _check(runs, out, png)
    from fastdraft.report import comparison, figures, page
    from fastdraft.report.charts import write_pngs
    from fastdraft.report.read import read
    from fastdraft.system.files import atomic_write

    accounts = [read(run, whole=len(runs) <= SIDE_BY_SIDE) for run in runs]
    html = page.one(accounts[0]) if len(runs) == 1 else page.several(accounts, compact=len(runs) > SIDE_BY_SIDE)
    path = out or (runs[0] / NAME if len(runs) == 1 else Path(NAME))
    with atomic_write(path) as part:
        part.write_text(html, encoding="utf-8")
    print(path)
    if png is not None:
        drawn = (
            figures.of_run(accounts[0]) if len(runs) == 1 else figures.of_runs(accounts, comparison.labels(accounts))
        )
        for picture in write_pngs(drawn, png):
            print(picture)
    if show:
        webbrowser.open(path.resolve().as_uri())


def _check(runs: list[Path], out: Path | None, png: Path | None) -> None:
    """RunError for what cannot be done, MissingExtra for what is not installed, before anything is read."""
    if len(runs) > IN_A_TABLE:
        raise RunError(
            f"report: found {len(runs):,} runs, wanted {IN_A_TABLE:,} at most\n  do: name fewer of them at a time"
        )
    if twice := sorted({str(run) for run in runs if sum(run.resolve() == other.resolve() for other in runs) > 1}):
        raise RunError(f"report: {twice[0]} is given twice\n  do: name each run once")
    for name, path in (("--out", out), ("--png", png)):
        if path is not None and path.is_dir() != (name == "--png") and path.exists():
            kind = "a folder" if path.is_dir() else "a file"
            raise RunError(
                f"{name}: {path} is {kind}, wanted {'a folder' if name == '--png' else 'a file'}\n  do: name another"
            )
    need("plotly", "report")
    if png is not None:
        need("matplotlib", "view")
