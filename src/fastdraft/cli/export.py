"""`export` and `push`: a draft in the form that an engine reads; its way to the hub, when asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import FORMATS
from fastdraft.cli.options import AsJson, screen

WEIGHTS = "; ".join(f"{name}: {', '.join(weights)}" for name, weights in FORMATS.items())

Draft = Annotated[Path, typer.Argument(metavar="DRAFT", help="Folder of a draft, of its phase, or of its run.")]
Form = Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.", autocompletion=completion.among(FORMATS))]
Weights = Annotated[
    str | None,
    typer.Option(
        help=f"Precision; the first is usual. {WEIGHTS}.",
        autocompletion=completion.among(dict.fromkeys(name for names in FORMATS.values() for name in names)),
    ),
]
Target = Annotated[str | None, typer.Option(help="Hub id, folder, or `demo`; otherwise the one that the run names.")]
Out = Annotated[Path | None, typer.Option(help="New folder; otherwise RUN/export/FORMAT-WEIGHTS, or beside DRAFT.")]
Folder = Annotated[Path, typer.Argument(metavar="EXPORT", help="A folder that `fastdraft export` made.")]
Repo = Annotated[str, typer.Argument(metavar="REPO", help="The repository on the hub, like me/my-draft.")]
Public = Annotated[bool, typer.Option("--public", help="For all to see; otherwise a new repository is private.")]
Yes = Annotated[bool, typer.Option("--yes", help="Upload; otherwise only say what would be.")]


def export(
    draft: Draft,
    format_: Form,
    weights: Weights = None,
    target: Target = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Write a draft in the form that an engine reads, prove it in that engine, and describe it in a model card."""
    from fastdraft.config import TargetPart
    from fastdraft.export.export_draft import ExportOptions
    from fastdraft.export.export_draft import export as hand_over
    from fastdraft.report import terminal_export

    part = None if target is None else TargetPart(path=target)
    folder, card = hand_over(ExportOptions(draft, format_, weights, part, out))
    if as_json:
        print(json.dumps({"folder": str(folder), "card": card.model_dump(mode="json")}, indent=2, ensure_ascii=False))
    else:
        screen.print(terminal_export.export_report(folder, card))


def push(folder: Folder, repo: Repo, public: Public = False, yes: Yes = False) -> None:
    """Upload an export to the hub. Without --yes: say what would be uploaded, and do nothing."""
    from huggingface_hub import HfApi

    from fastdraft.export.upload import planned
    from fastdraft.export.upload import push as upload

    plan = planned(folder, repo, private=not public)
    screen.print(plan.said(), markup=False, highlight=False)
    if yes:
        screen.print(f"uploaded: {upload(plan, HfApi())}", markup=False)
    else:
        screen.print("nothing was uploaded: add --yes to do it")
