"""`fastdraft export` and `fastdraft push`: write a draft in the format of an engine, and upload it to the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import FORMATS
from fastdraft.cli.options import AsJson, screen

WEIGHTS = "; ".join(f"{name}: {', '.join(weights)}" for name, weights in FORMATS.items())

Draft = Annotated[Path, typer.Argument(metavar="DRAFT", help="Folder of a draft, of a training phase, or of a run.")]
Format = Annotated[
    str, typer.Option("--format", help=f"{', '.join(FORMATS)}.", autocompletion=completion.among(FORMATS))
]
Weights = Annotated[
    str | None,
    typer.Option(
        help=f"Precision of the weights. Default: the first one. {WEIGHTS}.",
        autocompletion=completion.among(dict.fromkeys(name for names in FORMATS.values() for name in names)),
    ),
]
Target = Annotated[
    str | None, typer.Option(help="Hub id, folder, GGUF file, `demo` or `smollm2`. Default: the target of the run.")
]
Out = Annotated[
    Path | None, typer.Option(help="New folder. Default: RUN/export/FORMAT-WEIGHTS, or a folder next to DRAFT.")
]
Folder = Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder that `fastdraft export` made.")]
Repo = Annotated[str, typer.Argument(metavar="REPO", help="Repository on the hub, like me/my-draft.")]
Public = Annotated[bool, typer.Option("--public", help="Make a new repository public. Default: private.")]
Yes = Annotated[bool, typer.Option("--yes", help="Upload. Default: only print what would be uploaded.")]


def export(
    draft: Draft,
    format_: Format,
    weights: Weights = None,
    target: Target = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Write a draft in the format of an engine, verify the export in that engine, and write a model card."""
    import fastdraft
    from fastdraft.report import terminal_export

    folder, card = fastdraft.export(draft, format_, weights=weights, target=target, out=out)
    if as_json:
        print(json.dumps({"folder": str(folder), "card": card.model_dump(mode="json")}, indent=2, ensure_ascii=False))
    else:
        screen.print(terminal_export.export_report(folder, card))


def push(folder: Folder, repo: Repo, public: Public = False, yes: Yes = False) -> None:
    """Upload an export to the hub. Without --yes: print what would be uploaded, and upload nothing."""
    from huggingface_hub import HfApi

    from fastdraft.exporters.upload import planned
    from fastdraft.exporters.upload import push as upload

    plan = planned(folder, repo, private=not public)
    screen.print(plan.summary(), highlight=False)
    if yes:
        screen.print(f"uploaded: {upload(plan, HfApi())}")
    else:
        screen.print("nothing was uploaded: add --yes to upload")
