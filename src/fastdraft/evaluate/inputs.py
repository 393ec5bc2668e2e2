"""Drafts and what their target wrote, brought together for `evaluate DRAFT`; what does not fit together is refused."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from fastdraft.config import TargetPart
from fastdraft.evaluate.recording import (
    Recording,
    RecordingCard,
    Target,
    chosen,
    record,
    recorded,
    usual_folder,
    vocabulary_digest,
)
from fastdraft.evaluate.run_recording import is_own, own_recording
from fastdraft.evaluate.tasks import tasks_of
from fastdraft.models import draft as drafts
from fastdraft.models import draft_origin, target
from fastdraft.models.draft_origin import Origin
from fastdraft.models.target import TargetCard
from fastdraft.models.token_bytes import spelled
from fastdraft.results.export import ExportCard
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.system.cards import FILE, Cost, read_card
from fastdraft.system.errors import RecordingError, VocabularyMismatch
from fastdraft.system.files import locked
from fastdraft.system.precision import Asked
from fastdraft.system.progress import log_line


@dataclass(frozen=True)
class EvaluateOptions:
    """What is asked for. `data`: score on that folder's completions; otherwise the target writes, into `keep`.

    With `data`, empty `tasks` and `distributions` mean all that is there.
    """

    draft: str
    device: torch.device
    gammas: tuple[int, ...]
    tasks: tuple[str, ...] = ()
    sampling_settings: tuple[SamplingParams, ...] = ()
    target: str | None = None
    data: Path | None = None
    keep: Path | None = None
    other: str | None = None
    prompts: int | None = None
    max_new_tokens: int | None = None
    resamples: int = 1000
    seed: int = 7
    batch_size: int = 64
    precision: Asked = "auto"


class Subjected(NamedTuple):
    """A draft that is measured: as it was named, where it lies, opened."""

    name: str
    origin: Origin
    model: PreTrainedModel


class Material(NamedTuple):
    """Drafts, and the completions that they are scored on, which lie in `folder`."""

    target: TargetPart
    folder: Path
    recording: Recording
    drafts: list[Subjected]


def material(options: EvaluateOptions) -> Material:
    """Completions and drafts; all that does not fit together is refused before the target writes a token.

    RecordingError where the completions are another target's, VocabularyMismatch where a draft does not fit.
    """
    origins_by_name = {
        name: draft_origin.origin_named(name) for name in (options.draft, options.other) if name is not None
    }
    if options.data is None:
        part = _target(options, origins_by_name[options.draft])
        folder, found = _written(options, part, origins_by_name)
    else:
        part, folder, found = _kept(options, options.data, origins_by_name)
    card = found.card.target
    opened = [Subjected(name, origin, _open(origin, card, options.device)) for name, origin in origins_by_name.items()]
    return Material(part, folder, found, opened)


def trained_for(origin: Origin) -> str | None:
    """The digest of the target that a draft is for, as its card says; None where nothing says it."""
    exported = _export_card(origin)
    return exported.target_digest if exported else origin.trained_for()


def _written(options: EvaluateOptions, part: TargetPart, places: dict[str, Origin]) -> tuple[Path, Recording]:
    """What the target writes, or has written before."""
    if options.keep is not None and is_own(options.keep):
        raise RecordingError(
            f"{options.keep} is what a run wrote for its own evaluation, to which nothing is added\n"
            f"  do: score on it with --data {options.keep}, or --keep another folder"
        )
    tokenizer = target.open_tokenizer(part)
    vocabulary, rows = vocabulary_digest(spelled(tokenizer)), target.open_config(part).get_text_config().vocab_size
    for name, origin in places.items():
        _check_fit(name, origin, part.path, rows, vocabulary)
    card = TargetCard(key="", cost=Cost(seconds=0.0), **target.card(part))
    tasks = tasks_of(options.tasks, tokenizer, card.context_tokens, options.prompts, options.max_new_tokens)
    for task in tasks:
        for line in task.losses():
            log_line(line)
    folder = options.keep or usual_folder(card.digest)
    log_line(f"what the target writes is kept in {folder}")
    precision = target.precision_of(part, options.precision, options.device)
    writer = Target(card, precision, part.revision, vocabulary, partial(target.open_model, part, options.device))
    with locked(folder, "--keep"):
        return folder, record(folder, writer, tasks, options.sampling_settings, options.seed, options.batch_size)


def _kept(options: EvaluateOptions, data: Path, places: dict[str, Origin]) -> tuple[TargetPart, Path, Recording]:
    """What was recorded before, or written for the evaluation of a run, of the target that is meant."""
    asked = options.tasks, options.sampling_settings
    found = chosen(data, own_recording(data), *asked) if is_own(data) else recorded(data, *asked)
    card = found.card
    for name, origin in places.items():
        _check_fit(name, origin, card.target.name, card.target.vocab_rows, card.vocabulary)
    _check_meant(options, card, data, places)
    part = TargetPart(path=card.target.name, revision=card.revision)
    return (part if options.target is None else TargetPart(path=options.target)), data, found


def _export_card(origin: Origin) -> ExportCard | None:
    """What says which target an exported draft is for."""
    return read_card(origin.folder, ExportCard) if (origin.folder / FILE).is_file() else None


def _target(options: EvaluateOptions, origin: Origin) -> TargetPart:
    """The target that is named, or else the one that the draft's export or run names."""
    if options.target is not None:
        return TargetPart(path=options.target)
    exported = _export_card(origin)
    if exported is None:
        return draft_origin.target_of(origin)
    return TargetPart(path=exported.target, revision=exported.target_revision)


def _check_meant(options: EvaluateOptions, card: RecordingCard, data: Path, places: dict[str, Origin]) -> None:
    """RecordingError unless the completions are of the target named, or of the one that each draft's card names."""
    if options.target is None:
        said = {name: digest for name, origin in places.items() if (digest := trained_for(origin))}
    elif options.target == card.target.name and not _is_here(options.target):
        return  # a hub's files are not fetched to be looked at
    else:
        said = {options.target: target.digest(TargetPart(path=options.target))}
    for name, digest in said.items():
        if digest != card.target.digest:
            what = f"the card of {name} names" if options.target is None else f"{name} has"
            meant = (
                f"; to score a draft on a target that it was not made for, name that with --target {card.target.name}"
            )
            raise RecordingError(
                f"{data} was written by {card.target.name} (files' digest {card.target.digest}), {what} {digest}: "
                f"another target, or another revision of it\n"
                f"  do: make completions of that one, with --target and without --data"
                + (meant if options.target != card.target.name else "")
            )


def _is_here(path: str) -> bool:
    return path == "demo" or Path(path).expanduser().exists()


def _check_fit(name: str, origin: Origin, target_name: str, target_rows: int, vocabulary: str) -> None:
    """VocabularyMismatch unless the draft has the target's rows, and its ids stand for the same bytes."""
    part = TargetPart(path=str(origin.folder.resolve()))
    rows = target.open_config(part).get_text_config().vocab_size
    same = vocabulary_digest(spelled(target.open_tokenizer(part))) == vocabulary
    if rows != target_rows or not same:
        found = f"{rows:,} rows" if rows != target_rows else f"{rows:,} rows, but other bytes behind its ids"
        raise VocabularyMismatch(
            f"{name} has {found}; target {target_name} has {target_rows:,} rows\n"
            f"  wanted: the target's padded vocabulary and its tokenizer\n"
            f"  do: fastdraft check {target_name} {origin.folder} --repair"
        )


def _open(origin: Origin, card: TargetCard, device: torch.device) -> PreTrainedModel:
    model = target.open_model(TargetPart(path=str(origin.folder.resolve())), device)
    drafts.check_fit(model, card, origin.folder)
    return model
