"""`check`: does a draft fit its target in every engine; `--repair` makes a copy that does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastdraft.cli import completion
from fastdraft.cli.options import AsJson, screen
from fastdraft.system.errors import RepairError

if TYPE_CHECKING:
    from fastdraft.compatibility.report import Report
    from fastdraft.models.model_files import Side

# As grep and diff: 1 is what was found, 2 is a mistake in what was asked.
DOES_NOT_FIT = 1

Model = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="Hub id, folder, or `demo`; weights are not needed.",
        autocompletion=completion.models,
    ),
]
Draft = Annotated[
    str, typer.Argument(metavar="DRAFT", help="Hub id, folder, or `demo`.", autocompletion=completion.models)
]
Repair = Annotated[bool, typer.Option("--repair", help="Write a copy of the draft that fits, then check that one.")]
Out = Annotated[Path | None, typer.Option(help="New folder for the repaired draft; otherwise DRAFT-repaired.")]


def check(target: Model, draft: Draft, repair: Repair = False, out: Out = None, as_json: AsJson = False) -> None:
    """Does a draft fit its target? Every engine's own rule, and stronger ones. Exit code 0: all hold; 1: not all."""
    from fastdraft.compatibility import repair as repairs
    from fastdraft.compatibility.report import check_pair
    from fastdraft.models.model_files import read
    from fastdraft.report import terminal_check

    if out is not None and not repair:
        raise RepairError(f"--out {out} names a place for a repaired draft\n  do: add --repair, or leave out --out")
    ours, theirs = read(target, weights=False), read(draft)
    destination = out or repairs.place(theirs)
    if repair:
        repairs.check_free(destination)
    report = check_pair(ours, theirs)
    _show(terminal_check.findings(report), as_json)
    made = _repaired(ours, theirs, report, destination, as_json) if repair and not report.holds else None
    if as_json:
        print(json.dumps(report.model_dump(mode="json") | {"repaired": made}, indent=2, ensure_ascii=False))
    raise typer.Exit(0 if (report.holds if made is None else made["report"]["holds"]) else DOES_NOT_FIT)


def _repaired(ours: Side, theirs: Side, report: Report, out: Path, as_json: bool) -> dict[str, Any] | None:
    """What was done, and the report on the result; None where nothing can be."""
    from fastdraft.compatibility import repair as repairs
    from fastdraft.compatibility.report import check_pair
    from fastdraft.models.model_files import read
    from fastdraft.report import terminal_check

    if report.obstacle:
        return None
    done = repairs.repair(ours, theirs, out)
    _show(terminal_check.repaired(out, done), as_json)
    again = check_pair(ours, read(str(out)), repaired=True)
    _show(terminal_check.findings(again), as_json)
    return {"folder": str(out), "done": done, "report": again.model_dump(mode="json")}


def _show(shown: Any, as_json: bool) -> None:
    if not as_json:
        screen.print(shown)
