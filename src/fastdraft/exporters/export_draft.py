"""`export`: write a draft in the format of an engine, prove it there, and describe it in a model card."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import xxhash

from fastdraft.compatibility.engine_rules import ENGINE_RULES
from fastdraft.config import TargetPart
from fastdraft.exporters import collect_evidence, licence_terms, proof
from fastdraft.exporters import model_card as cards
from fastdraft.exporters.formats import Format, format_named
from fastdraft.models import draft, draft_origin, pretrained
from fastdraft.models.draft_origin import Origin
from fastdraft.models.hub import commit_of
from fastdraft.models.model_files import read
from fastdraft.models.target import TargetCard
from fastdraft.models.token_bytes import PROBES
from fastdraft.results.export import EngineAcceptance, ExportCard
from fastdraft.system.cards import Cost, write_card
from fastdraft.system.errors import ExportError, VocabularyMismatch
from fastdraft.system.files import atomic_write, make_folder, remove
from fastdraft.system.progress import log_line

RECIPE = "recipe.yaml"
LEAST_CONTEXT = 2


class ExportOptions(NamedTuple):
    """The options of `export`. None: the format's default weights, the run's target, the default folder."""

    draft: Path
    format: str
    weights: str | None = None
    target: TargetPart | str | None = None
    out: Path | None = None


def export(options: ExportOptions) -> tuple[Path, ExportCard]:
    """Write a draft in a format, verify it in its engine, and describe it in a model card. Returns folder and card.

    ExportError if the folder exists, or the draft cannot be written in this format; VocabularyMismatch if it does not
    fit its target; ProofError if the written draft predicts other tokens than the original.
    """
    started, export_format = time.monotonic(), format_named(options.format)
    weights = export_format.weights(options.weights, options.format)
    export_format.ready()
    origin = draft_origin.origin_of(options.draft)
    part = draft_origin.target_of(origin) if options.target is None else pretrained.as_part(options.target)
    out = options.out or place(origin, f"{options.format}-{weights}")
    _check_free(out)
    target_card = draft_origin.target_card(origin, part)
    part = at_commit(part, target_card.commit)
    engines = accepted(part, origin.folder, export_format.engines)
    evidence = collect_evidence.evidence(origin, part, target_card)
    licence = collect_evidence.licence_of(origin, target_card)
    with atomic_write(out) as folder:
        target_card = target_card.model_copy(update={"licence": licence})
        contents = _write(export_format, weights, origin, part, target_card, folder)
        key_text = f"{options.format} {weights} {target_card.digest} {contents['files']}"
        card = ExportCard(
            key=xxhash.xxh3_64_hexdigest(key_text.encode()),
            cost=Cost(seconds=time.monotonic() - started),
            format=options.format,
            weights=weights,
            draft=str(options.draft),
            target=part.path,
            target_revision=target_card.commit or part.revision,
            target_digest=target_card.digest,
            target_licence=licence,
            accepted=engines,
            **contents,
        )
        (folder / cards.FILE).write_text(cards.model_card(evidence, card), encoding="utf-8")
        if evidence.recipe is not None:
            (folder / RECIPE).write_text(evidence.recipe, encoding="utf-8")
        card = write_card(folder, card)
    return out, card


def place(origin: Origin, name: str) -> Path:
    """The default folder of an export: in the draft's run, otherwise next to the draft."""
    folder = origin.folder
    return folder.with_name(f"{folder.name}-{name}") if origin.run is None else origin.run / "export" / name


def _write(
    export_format: Format, weights: str, origin: Origin, part: TargetPart, target_card: TargetCard, destination: Path
) -> dict[str, Any]:
    """Write the draft with the target's tokenizer files, and prove it; returns files, notes and proof for the card."""
    model = pretrained.load(origin.folder, torch.float32).eval()
    if spoilt := [name for name, weight in model.named_parameters() if not weight.isfinite().all()]:
        raise ExportError(
            f"{len(spoilt)} of the weights in {origin.folder} are not finite, first {spoilt[0]}\n"
            f"  do: export an earlier draft, or train this one again"
        )
    context = int(model.config.get_text_config().max_position_embeddings)
    if context < LEAST_CONTEXT:
        raise ExportError(
            f"the draft in {origin.folder} has a context of {context} tokens\n  wanted: {LEAST_CONTEXT} or more, a "
            f"prompt and a token\n  do: correct max_position_embeddings in its config.json"
        )
    target_folder = pretrained.folder_of(part, weights=False)
    material = proof.material(
        pretrained.open_tokenizer(part), PROBES, collect_evidence.completions(origin, target_card), context
    )
    with TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        draft.save(model, target_folder, target_card, source)
        log_line("writing it ...")
        notes = export_format.write(source, destination, weights)
    log_line("proving it ...")
    result = proof.prove(model, export_format.open(destination, min(material.longest_tokens, context)), material)
    proof.check(result, export_format.agreement[weights], f"{origin.folder}, weights {weights}")
    licence_terms.accompany(destination, target_card.licence, target_folder)
    files = {path.name: path.stat().st_size for path in sorted(destination.iterdir())}
    return {"files": files, "notes": (*notes, *_other_target_notes(origin, target_card)), "proof": result}


def _other_target_notes(origin: Origin, target_card: TargetCard) -> Iterator[str]:
    """A note if the draft was trained for another target: the measurements of its run are then left out."""
    trained_for = origin.trained_for()
    if trained_for is not None and trained_for != target_card.digest:
        yield (
            f"trained for another target, or another revision of it: its files' digest was {trained_for}, that of "
            f"{target_card.name} is {target_card.digest}; the measurements of its run are left out"
        )


def at_commit(part: TargetPart, commit: str | None) -> TargetPart:
    """The target at the commit that was read, if its branch has moved on since."""
    moved = commit not in (None, commit_of(pretrained.folder_of(part, weights=False)))
    return part.model_copy(update={"revision": commit}) if moved else part


def _check_free(out: Path) -> None:
    """ExportError if `out` exists, RunError if it cannot be made, before any work is done."""
    if out.exists():
        raise ExportError(f"{out} exists already\n  do: remove it, or choose another folder with --out")
    make_folder(out, "--out")
    remove(out, inside=out.parent)


def accepted(target: pretrained.Model, draft_folder: Path, engines: tuple[str, ...]) -> tuple[EngineAcceptance, ...]:
    """The results of the rules whose names begin with one of `engines`; VocabularyMismatch if one of them fails."""
    target_files, draft_files = read(target, weights=False), read(draft_folder)
    rules = [rule for rule in ENGINE_RULES if rule.name.startswith(engines)]
    results = [(rule, rule.check(target_files, draft_files)) for rule in rules]
    if failed := [f"  {rule.name}: {result.why}" for rule, result in results if not result.holds]:
        reasons = "\n".join(failed)
        raise VocabularyMismatch(
            f"{draft_folder} is not a draft for {target_files.name}:\n{reasons}\n"
            f"  do: fastdraft check {target_files.name} {draft_folder} --repair"
        )
    return tuple(EngineAcceptance(engine=f"{rule.name} ({rule.version})", why=result.why) for rule, result in results)
