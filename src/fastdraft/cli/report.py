"""`fastdraft report`: an HTML page about one run, or about several side by side; the figures as PNG."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fastdraft.system.errors import RunError
from fastdraft.system.optional_packages import need

# More runs than this get one line each instead of figures.
MAX_SIDE_BY_SIDE = 6
MAX_RUNS = 1000
NAME = "report.html"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help=f"File of the page. Default: {NAME} in the run folder; here if there are several runs."),
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Folder for the figures as PNG.")] = None,
) -> None:
    """Write a self-contained page about runs: whether to deploy the draft, where it fails, what it cost."""
    _check(runs, out, png)
    from fastdraft.report import comparison, figures, page
    from fastdraft.report.charts import write_pngs
    from fastdraft.report.run_data import read_run
    from fastdraft.system.files import atomic_write

    compact = len(runs) > MAX_SIDE_BY_SIDE
    accounts = [read_run(run, cards_only=compact) for run in runs]
    html = page.one(accounts[0]) if len(runs) == 1 else page.several(accounts, compact)
    path = out or (runs[0] / NAME if len(runs) == 1 else Path(NAME))
    with _writable("--out", path), atomic_write(path) as part:
        part.write_text(html, encoding="utf-8")
    print(path)
    if png is not None:
        drawn = (
            figures.of_run(accounts[0]) if len(runs) == 1 else figures.of_runs(accounts, comparison.labels(accounts))
        )
        with _writable("--png", png):
            pictures = write_pngs(drawn, png)
        print(*pictures, sep="\n")
    if show:
        webbrowser.open(path.resolve().as_uri())


@contextmanager
def _writable(option: str, path: Path) -> Iterator[None]:
    """RunError, which names the option, instead of the system's error if a path cannot be written."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{option}: {path} cannot be written: {error.strerror}\n  do: name another path") from error


def _check(runs: list[Path], out: Path | None, png: Path | None) -> None:
    """RunError for invalid arguments, MissingExtra for missing packages, before anything is read."""
    if len(runs) > MAX_RUNS:
        raise RunError(f"report: found {len(runs):,} runs, wanted at most {MAX_RUNS:,}\n  do: name fewer of them")
    paths = list(map(os.path.realpath, runs))  # Path.resolve raises an error for a looping link
    if duplicates := [str(run) for run, path in zip(runs, paths, strict=True) if paths.count(path) > 1]:
        raise RunError(f"report: {min(duplicates)} is named twice\n  do: name each run once")
    if out is not None and out.is_dir():
        raise RunError(f"--out: {out} is a folder, wanted a file\n  do: name another")
    if png is not None and png.exists() and not png.is_dir():
        raise RunError(f"--png: {png} is a file, wanted a folder\n  do: name another")
    from fastdraft.pipeline.stages import recipe_file

    for run in runs:
        recipe_file(run)
    need("plotly", "report")
    if png is not None:
        need("matplotlib", "view")
