"""`export`: a draft in the form that an engine reads, with its proof and its model card."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import xxhash

from fastdraft.compatibility.engine_rules import ENGINE_RULES
from fastdraft.config import TargetPart
from fastdraft.export import collect_evidence, licence_terms, proof
from fastdraft.export import model_card as cards
from fastdraft.export.formats import Format, format_named
from fastdraft.models import draft, draft_origin, pretrained
from fastdraft.models.draft_origin import Origin
from fastdraft.models.hub import commit_of
from fastdraft.models.model_files import read
from fastdraft.models.target import TargetCard
from fastdraft.models.token_bytes import PROBES
from fastdraft.results.export import EngineAcceptance, ExportCard
from fastdraft.system.cards import Cost, write_card
from fastdraft.system.errors import ExportError, VocabularyMismatch
from fastdraft.system.files import atomic_write
from fastdraft.system.progress import log_line

RECIPE = "recipe.yaml"


class ExportOptions(NamedTuple):
    """What is asked for; what is None follows from the draft and its run, or is the format's usual choice."""

    draft: Path
    format: str
    weights: str | None = None
    target: TargetPart | None = None
    out: Path | None = None


def export(options: ExportOptions) -> tuple[Path, ExportCard]:
    """The folder made, and its card.

    ExportError where the folder is there already, or format and draft do not go together; VocabularyMismatch where the
    draft does not fit its target; ProofError where what was written does not say what the draft says.
    """
    started, form = time.monotonic(), format_named(options.format)
    weights = form.weights(options.weights, options.format)
    form.ready()
    origin = draft_origin.origin_of(options.draft)
    part = options.target or draft_origin.target_of(origin)
    out = options.out or place(origin, f"{options.format}-{weights}")
    _check_free(out)
    theirs = draft_origin.target_card(origin, part)
    part = as_read(part, theirs.commit)
    agreed = accepted(part, origin.folder, form.engines)
    known, licence = collect_evidence.evidence(origin, part, theirs), collect_evidence.licence_of(origin, theirs)
    with atomic_write(out) as folder:
        made = _made(form, weights, origin, part, theirs.model_copy(update={"licence": licence}), folder)
        card = ExportCard(
            key=xxhash.xxh3_64_hexdigest(f"{options.format} {weights} {theirs.digest} {made['files']}".encode()),
            cost=Cost(seconds=time.monotonic() - started),
            format=options.format,
            weights=weights,
            draft=str(options.draft),
            target=part.path,
            target_revision=theirs.commit or part.revision,
            target_digest=theirs.digest,
            target_licence=licence,
            accepted=agreed,
            **made,
        )
        (folder / cards.FILE).write_text(cards.model_card(known, card), encoding="utf-8")
        if known.recipe is not None:
            (folder / RECIPE).write_text(known.recipe, encoding="utf-8")
        write_card(folder, card)
    return out, card


def place(origin: Origin, name: str) -> Path:
    """Where an export goes: into its run, or else beside its draft."""
    folder = origin.folder
    return folder.with_name(f"{folder.name}-{name}") if origin.run is None else origin.run / "export" / name


def _made(
    form: Format, weights: str, origin: Origin, part: TargetPart, theirs: TargetCard, destination: Path
) -> dict[str, Any]:
    """Written, with the target's very tokenizer files, and proved; what the card says of it."""
    model = pretrained.load(origin.folder, torch.float32).eval()
    context = int(model.config.get_text_config().max_position_embeddings)
    tried = proof.material(pretrained.open_tokenizer(part), PROBES, collect_evidence.completions(origin, theirs), context)
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "model"
        draft.save(model, pretrained.folder_of(part, weights=False), theirs, whole)
        log_line("writing it ...")
        notes = form.write(whole, destination, weights)
    log_line("proving it ...")
    found = proof.prove(model, form.open(destination, min(tried.longest_tokens, context)), tried)
    proof.check(found, form.agreement[weights], f"{origin.folder}, weights {weights}")
    licence_terms.accompany(destination, theirs.licence, pretrained.folder_of(part, weights=False))
    files = {path.name: path.stat().st_size for path in sorted(destination.iterdir())}
    return {"files": files, "notes": (*notes, *_other_target_notes(origin, theirs)), "proof": found}


def _other_target_notes(origin: Origin, theirs: TargetCard) -> Iterator[str]:
    """A line where the run's target is not this one: what was measured there is left out."""
    trained_for = origin.trained_for()
    if trained_for is not None and trained_for != theirs.digest:
        yield (
            f"trained for another target, or another revision of it: its files' digest was {trained_for}, that of "
            f"{theirs.name} is {theirs.digest}; what its run measured is left out"
        )


def as_read(part: TargetPart, commit: str | None) -> TargetPart:
    """The target at the commit that was read, where the branch that it names has moved on since."""
    moved = commit not in (None, commit_of(pretrained.folder_of(part, weights=False)))
    return part.model_copy(update={"revision": commit}) if moved else part


def _check_free(out: Path) -> None:
    """ExportError where something is at `out`, or nothing can be made there: said before any work."""
    if out.exists():
        raise ExportError(f"{out} is there already\n  do: remove it, or choose another folder with --out")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ExportError(f"{out} cannot be made: nothing can be written in {above}\n  do: choose another with --out")


def accepted(part: TargetPart, folder: Path, engines: tuple[str, ...]) -> tuple[EngineAcceptance, ...]:
    """What the rules of engines, named by their beginnings, say; VocabularyMismatch where one refuses the pair."""
    ours, theirs = read(part, weights=False), read(folder)
    rules = [rule for rule in ENGINE_RULES if rule.name.startswith(engines)]
    results = [(rule, rule.check(ours, theirs)) for rule in rules]
    refused = [f"  {rule.name}: {result.why}" for rule, result in results if not result.holds]
    if refused:
        told = "\n".join(refused)
        raise VocabularyMismatch(
            f"{folder} is no draft for {part.path}:\n{told}\n  do: fastdraft check {part.path} {folder} --repair"
        )
    return tuple(EngineAcceptance(engine=f"{rule.name} ({rule.version})", why=result.why) for rule, result in results)
