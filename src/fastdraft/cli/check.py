"""`fastdraft check`: check that a draft fits its target in every engine; `--repair` writes a copy that fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastdraft.cli import completion
from fastdraft.cli.options import AsJson, screen
from fastdraft.system.errors import RepairError

# As with grep and diff: 1 is a negative result, 2 is a mistake in the command.
DOES_NOT_FIT = 1

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="Hub id, folder, GGUF file, `demo` or `smollm2`. The weights are not needed.",
        autocompletion=completion.models,
    ),
]
Draft = Annotated[
    str,
    typer.Argument(
        metavar="DRAFT", help="Hub id, folder, GGUF file, `demo` or `smollm2`.", autocompletion=completion.models
    ),
]
Repair = Annotated[bool, typer.Option("--repair", help="Write a copy of the draft that fits, and check the copy.")]
Out = Annotated[Path | None, typer.Option(help="New folder for the repaired draft. Default: DRAFT-repaired.")]


def check(target: Target, draft: Draft, repair: Repair = False, out: Out = None, as_json: AsJson = False) -> None:
    """Check that a draft fits its target, by each engine's rules and stricter ones. Exit code 1: some fail."""
    from fastdraft.compatibility import repair as repairs
    from fastdraft.compatibility.report import check_pair
    from fastdraft.models import named_pairs
    from fastdraft.models.model_files import read
    from fastdraft.report import terminal_check

    if out is not None and not repair:
        raise RepairError(f"--out {out} is the folder of a repaired draft\n  do: add --repair, or leave out --out")
    target_files = read(target, weights=False)
    draft_files = read(named_pairs.draft(draft) if draft in named_pairs.NAMES else draft)
    out = out or repairs.default_folder(draft_files)
    if repair:
        repairs.check_free(out)
    report = check_pair(target_files, draft_files)
    if not as_json:
        screen.print(terminal_check.findings(report))
    holds, repaired = report.holds, None
    if repair and not holds and not report.obstacle:
        changes = repairs.repair(target_files, draft_files, out)
        second_report = check_pair(target_files, read(str(out)), repaired=True)
        holds = second_report.holds
        repaired = {"folder": str(out), "done": changes, "report": second_report.model_dump(mode="json")}
        if not as_json:
            screen.print(terminal_check.repaired(out, changes), terminal_check.findings(second_report))
    if as_json:
        print(json.dumps(report.model_dump(mode="json") | {"repaired": repaired}, indent=2, ensure_ascii=False))
    raise typer.Exit(0 if holds else DOES_NOT_FIT)
