"""Tokenise one source into two folders of token shards, `train` and `held_out`, with datatrove.

A document becomes what the target sees: the begin-of-text token if the target's tokenizer adds one, the tokens of the
text, and the end-of-text token.

The source is read twice, each time in as many tasks as the recipe sets: a census of its documents (census.py), then
the tokens of the training documents. After a kill, the next run continues with the unfinished tasks (attempts.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datatrove.data import Document as PipelineDocument
from datatrove.pipeline.tokens import DocumentTokenizer
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from fastdraft.config import SourcePart, TokenizePart
from fastdraft.data.attempts import new_attempt
from fastdraft.data.census import (
    DUPLICATE,
    HELD_OUT,
    SAMPLED_OUT,
    Census,
    count_portion,
    merge_portions,
    train_documents,
)
from fastdraft.data.document import Document, Portion
from fastdraft.data.executors import run_tasks
from fastdraft.data.shards import SourceCard, SplitCard, describe_shards
from fastdraft.data.sources import with_absolute_path
from fastdraft.data.split import all_shingles, allowed_keys, near_duplicates, shingles
from fastdraft.system.errors import CorpusError
from fastdraft.system.files import atomic_write, remove, write_json
from fastdraft.system.validation import read_json

CARD = "source.json"


class Job(NamedTuple):
    """A source to tokenise, and the folder of this attempt."""

    name: str
    part: SourcePart
    options: TokenizePart
    tokenizer: Path
    seed: int
    attempt: Path


def write_source(
    name: str,
    part: SourcePart,
    options: TokenizePart,
    tokenizer: Path,
    folder: Path,
    seed: int,
    inside: Path | None = None,
) -> SourceCard:
    """Tokenise both splits of a source into `folder`, unless that has been done before.

    Nothing outside `inside`, by default the parent of `folder`, is removed.
    CorpusError if the source has no training documents, or no held-out documents although some are wanted.
    """
    attempts, inside = folder.with_name(f"{folder.name}.attempts"), inside or folder.parent
    if not (folder / CARD).is_file():
        attempt = new_attempt(attempts)
        job = Job(name, with_absolute_path(part), options, tokenizer.absolute(), seed, attempt.absolute())
        try:
            card = _write_splits(job)
        except CorpusError:
            remove(attempts, inside)  # the user will change the source or the recipe, so finished tasks are of no use
            raise
        write_json(attempt / CARD, card.model_dump(mode="json"))
        remove(folder, inside)
        attempt.rename(folder)  # each task has already synced its files to disk
    for temporary in (attempts, folder / "census", *folder.glob("*/log"), *folder.glob("*/shingles")):
        remove(temporary, inside)
    remedy = f"remove {folder}, then run again: only this source is tokenised again"
    return read_json(folder / CARD, SourceCard, "the card of a source", remedy)


def write_tokenizer(target: Tokenizer, destination: Path, bos: int | None, eos: int) -> None:
    """Write a copy of the target's tokenizer that puts `bos` (unless None) before and `eos` after each document."""
    tokenizer = Tokenizer.from_str(target.to_str())
    # Not the target's token names: a template is split at spaces and colons, which they may contain.
    special_tokens = [("EOS", eos)] if bos is None else [("BOS", bos), ("EOS", eos)]
    template = ["$A", "EOS"] if bos is None else ["BOS", "$A", "EOS"]
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special_tokens)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    destination.write_text(tokenizer.to_str(), encoding="utf-8")  # Tokenizer.save drops the errno of a failed write


def _write_splits(job: Job) -> SourceCard:
    census_folder, shingle_folder = job.attempt / "census", job.attempt / "train" / "shingles"
    for folder in (census_folder, shingle_folder):
        folder.mkdir(parents=True, exist_ok=True)
    count = partial(count_portion, job.part, census_folder)
    run_tasks(count, label=f"{job.name}: census", options=job.options, folder=census_folder)
    census = merge_portions(job.part, census_folder, job.options.tasks)
    candidates = census.held_out
    if job.part.held_out_list is not None:
        allowed = allowed_keys(job.part.held_out_list)
        candidates = [document for document in candidates if document.key in allowed]

    np.save(census_folder / "held_out.npy", np.array(sorted(all_shingles(candidates)), np.uint64))
    train = _write_split("train", partial(_train_portion, job.part, census_folder, shingle_folder), job)
    train_shingles = {int(shingle) for file in shingle_folder.glob("*.npy") for shingle in np.load(file)}
    dropped = near_duplicates(candidates, train_shingles)
    kept = [document for i, document in enumerate(candidates) if i not in dropped]
    held_out = _write_split("held_out", partial(_whole_list, kept), job._replace(options=TokenizePart()))

    where = f"the source `{job.name}` ({job.part.path or job.part.source})"
    if train.tokens == 0:
        raise CorpusError(f"{where} gives no document to train on; {census}\n  do: {_remedy(job.part, census)}")
    if held_out.tokens == 0 and job.part.held_out_fraction > 0:
        unlisted = len(census.held_out) - len(candidates)
        found = f"{census}; {len(dropped)} near-duplicates of training documents" if dropped else f"{census}"
        found += f"; {unlisted} held-out documents not in `held_out_list`" if unlisted else ""
        raise CorpusError(
            f"{where} gives no document to measure a draft on; {found}\n"
            f"  do: give more documents, raise `held_out_fraction` (now {job.part.held_out_fraction}), or set it to 0 "
            f"to hold out nothing"
        )
    return SourceCard(
        train=train,
        held_out=held_out,
        rejected=census.rejected.counts | census.rejected.filtered,
        near_duplicates_dropped=len(dropped),
        duplicates_dropped=census.counts[DUPLICATE],
        held_out_keys=tuple(sorted({document.key for document in kept})),
    )


def _remedy(part: SourcePart, census: Census) -> str:
    """What to do about a source without a training document."""
    if census.counts[SAMPLED_OUT]:
        return f"raise `sample_fraction` (now {part.sample_fraction}), or give more documents"
    if census.counts[HELD_OUT]:
        return f"give more documents, or lower `held_out_fraction` (now {part.held_out_fraction})"
    return "correct `path` and `field`, or give a file with texts"


def _write_split(name: str, read: partial[Iterator[PipelineDocument]], job: Job) -> SplitCard:
    folder = job.attempt / name
    shards = folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    tokenize = DocumentTokenizer(
        str(shards), str(job.tokenizer), seed=job.seed, batch_size=256, save_final_metadata=False
    )
    steps = (read, tokenize, partial(_sync_shards, shards))
    run_tasks(*steps, label=f"{job.name}: {name}", options=job.options, folder=folder)
    return describe_shards(shards, tokenize.token_size)


# Steps of a datatrove pipeline: called with the documents of the step before, the task's rank and the number of tasks.


def _train_portion(
    part: SourcePart, census: Path, shingle_folder: Path, _data: Any, rank: int, world_size: int
) -> Iterator[PipelineDocument]:
    """The training documents of a task; writes RANK.npy, the shingles that they share with held-out documents."""
    held_out, shared = set(np.load(census / "held_out.npy").tolist()), set[int]()
    for document in train_documents(part, census, Portion(rank, world_size)):
        if held_out:
            shared |= held_out & shingles(document.text)
        yield PipelineDocument(text=document.text, id=document.origin)
    with atomic_write(shingle_folder / f"{rank:05d}.npy") as path, path.open("wb") as file:
        np.save(file, np.array(sorted(shared), np.uint64))


def _whole_list(documents: list[Document], _data: Any, rank: int, world_size: int) -> Iterator[PipelineDocument]:
    for document in documents:
        yield PipelineDocument(text=document.text, id=document.origin)


def _sync_shards(shards: Path, _data: Iterable[PipelineDocument] | None, rank: int, world_size: int) -> None:
    """The last step of a task: its shards are on disk before datatrove marks the task as finished."""
    for path in shards.glob(f"{rank:05d}_*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
