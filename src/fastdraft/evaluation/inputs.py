"""What `evaluate DRAFT` scores: the drafts, and the completions of their target. Raises if they do not fit together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from fastdraft.config import TargetPart
from fastdraft.evaluation.recording import (
    Recording,
    RecordingCard,
    RecordingTarget,
    default_folder,
    read_recording,
    record,
    select,
    vocabulary_digest,
)
from fastdraft.evaluation.run_recording import card_of_run, is_run_evaluation
from fastdraft.evaluation.tasks import tasks_of
from fastdraft.models import draft as drafts
from fastdraft.models import draft_origin, named_pairs, pretrained, target
from fastdraft.models.draft_origin import Origin
from fastdraft.models.target import TargetCard
from fastdraft.models.token_bytes import id_bytes
from fastdraft.results.export import ExportCard
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.system.cards import FILE, Cost, open_stage
from fastdraft.system.errors import RecordingError, VocabularyMismatch
from fastdraft.system.files import locked
from fastdraft.system.precision import PrecisionChoice
from fastdraft.system.progress import log_line


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `evaluate DRAFT`.

    `data`: a folder of recorded completions to score on; empty `tasks` and `sampling_settings` then mean all of them.
    Without `data` the target generates completions, which are kept in `keep`. `compare`: a second draft.
    `verify_prompts`: prompts of each task on which `evaluate_draft` runs real speculative decoding; 0 for none.
    """

    draft: str
    device: torch.device
    gammas: tuple[int, ...]
    tasks: tuple[str, ...] = ()
    sampling_settings: tuple[SamplingParams, ...] = ()
    target: str | None = None
    data: Path | None = None
    keep: Path | None = None
    compare: str | None = None
    prompts: int | None = None
    max_new_tokens: int | None = None
    resamples: int = 1000
    seed: int = 7
    batch_size: int = 64
    precision: PrecisionChoice = "auto"
    verify_prompts: int = 0
    verify_gamma: int = 4


class OpenedDraft(NamedTuple):
    """A draft to score: the name the user gave, where it comes from, the model."""

    name: str
    origin: Origin
    model: PreTrainedModel


class EvaluationInputs(NamedTuple):
    """The drafts, and the recorded completions to score them on, which are in `folder`."""

    target: TargetPart
    folder: Path
    recording: Recording
    drafts: list[OpenedDraft]


def open_inputs(options: EvaluateOptions) -> EvaluationInputs:
    """The drafts and the completions; everything is checked before the target generates a token.

    RecordingError if the completions are of another target, VocabularyMismatch if a draft does not fit the target.
    """
    origins_by_name = {
        name: draft_origin.origin_of(name) for name in (options.draft, options.compare) if name is not None
    }
    if options.data is None:
        part = _target_part(options, origins_by_name[options.draft])
        folder, recording = _record(options, part, origins_by_name)
    else:
        part, folder, recording = _read(options, options.data, origins_by_name)
    card = recording.card.target
    opened = list[OpenedDraft]()
    for name, origin in origins_by_name.items():
        model = pretrained.open_model(origin.folder, options.device)
        drafts.check_fit(model, card, origin.folder)
        opened.append(OpenedDraft(name, origin, model))
    return EvaluationInputs(part, folder, recording, opened)


def target_digest(origin: Origin) -> str | None:
    """The digest of the target that a draft was made for, from its card; None if no card names one."""
    exported = _export_card(origin)
    return exported.target_digest if exported else origin.trained_for()


def _record(options: EvaluateOptions, part: TargetPart, origins_by_name: dict[str, Origin]) -> tuple[Path, Recording]:
    """The target's completions, generated now unless the folder holds them already."""
    if options.keep is not None and is_run_evaluation(options.keep):
        raise RecordingError(
            f"{options.keep} holds a run's own evaluation, to which nothing can be added\n"
            f"  do: score on it with --data {options.keep}, or --keep another folder"
        )
    tokenizer = pretrained.open_tokenizer(part)
    vocabulary, rows = vocabulary_digest(id_bytes(tokenizer)), pretrained.open_config(part).get_text_config().vocab_size
    for name, origin in origins_by_name.items():
        _check_vocabulary(name, origin, part.path, rows, vocabulary)
    card = TargetCard(key="", cost=Cost(seconds=0.0), **target.card(part))
    tasks = tasks_of(options.tasks, tokenizer, card.context_tokens, options.prompts, options.max_new_tokens)
    for task in tasks:
        for line in task.left_out_lines():
            log_line(line)
    folder = options.keep or default_folder(card.digest)
    log_line(f"the target's completions are kept in {folder}")
    recording_target = RecordingTarget(
        card=card,
        precision=target.precision_of(part, options.precision, options.device),
        revision=part.revision,
        vocabulary=vocabulary,
        open=partial(pretrained.open_model, part, options.device),
    )
    with locked(folder, "--keep"):
        return folder, record(
            folder,
            recording_target,
            tasks,
            options.sampling_settings,
            seed=options.seed,
            batch_size=options.batch_size,
        )


def _read(
    options: EvaluateOptions, data: Path, origins_by_name: dict[str, Origin]
) -> tuple[TargetPart, Path, Recording]:
    """Completions recorded earlier, by `evaluate DRAFT` or by the evaluation of a run."""
    if is_run_evaluation(data):
        recording = select(data, card_of_run(data), options.tasks, options.sampling_settings)
    else:
        recording = read_recording(data, options.tasks, options.sampling_settings)
    card = recording.card
    for name, origin in origins_by_name.items():
        _check_vocabulary(name, origin, card.target.name, card.target.vocab_rows, card.vocabulary)
    _check_target(options, card, data, origins_by_name)
    part = TargetPart(path=card.target.name, revision=card.revision)
    return (part if options.target is None else TargetPart(path=options.target)), data, recording


def _export_card(origin: Origin) -> ExportCard | None:
    return open_stage(origin.folder, ExportCard) if (origin.folder / FILE).is_file() else None


def _target_part(options: EvaluateOptions, origin: Origin) -> TargetPart:
    """The target of the options; by default the one that the draft's export or run names."""
    if options.target is not None:
        return TargetPart(path=options.target)
    exported = _export_card(origin)
    if exported is None:
        return draft_origin.target_of(origin)
    return TargetPart(path=exported.target, revision=exported.target_revision)


def _check_target(
    options: EvaluateOptions, card: RecordingCard, data: Path, origins_by_name: dict[str, Origin]
) -> None:
    """RecordingError unless the completions are of `options.target`, or else of the target each draft was made for."""
    is_local = options.target in named_pairs.NAMES or os.path.exists(os.path.expanduser(options.target or ""))
    if options.target is None:
        digests = {name: digest for name, origin in origins_by_name.items() if (digest := target_digest(origin))}
    elif options.target == card.target.name and not is_local:
        return  # a hub model is not downloaded only to compare its digest
    else:
        digests = {options.target: pretrained.digest(options.target)}
    for name, digest in digests.items():
        if digest != card.target.digest:
            subject = f"the card of {name} names" if options.target is None else f"{name} has"
            advice = "record completions of that one, with --target and without --data"
            if options.target != card.target.name:
                advice += f"; to score a draft on a target it was not made for, add --target {card.target.name}"
            raise RecordingError(
                f"{data} was written by {card.target.name} (files' digest {card.target.digest}), {subject} {digest}: "
                f"another target, or another revision of it\n  do: {advice}"
            )


def _check_vocabulary(name: str, origin: Origin, target_name: str, target_rows: int, vocabulary: str) -> None:
    """VocabularyMismatch unless the draft has as many rows as the target, and its ids stand for the same bytes."""
    rows = pretrained.open_config(origin.folder).get_text_config().vocab_size
    same_bytes = vocabulary_digest(id_bytes(pretrained.open_tokenizer(origin.folder))) == vocabulary
    if rows != target_rows or not same_bytes:
        difference = "" if rows != target_rows else ", but its ids stand for other bytes"
        raise VocabularyMismatch(
            f"{name} has {rows:,} rows{difference}; target {target_name} has {target_rows:,} rows\n"
            f"  wanted: the target's padded vocabulary and its tokenizer\n"
            f"  do: fastdraft check {target_name} {origin.folder} --repair"
        )
