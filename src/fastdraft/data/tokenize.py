"""From one source to two folders of token shards, with datatrove: `train` and `held_out`.

A document becomes what the target would see: its tokens, the end-of-text token behind it, and the begin-of-text
token in front where the target's tokenizer puts one.

The source is read twice, each time in as many tasks as the recipe says: a census of its documents (census.py), then the
tokens of those to train on. A killed run goes on with the tasks that are not finished (attempts.py).
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
from fastdraft.data.census import Census, conclude, count_portion, train_documents
from fastdraft.data.document import Document, Portion
from fastdraft.data.executors import run_tasks
from fastdraft.data.shards import SideCard, SourceCard, survey
from fastdraft.data.sources import anywhere
from fastdraft.data.split import allowed_keys, leaked, shingles, shingles_of
from fastdraft.system.errors import CorpusError
from fastdraft.system.files import atomic_write, remove, write_json

CARD = "source.json"


class Work(NamedTuple):
    """A source to be tokenised, in an attempt's folder."""

    name: str
    part: SourcePart
    how: TokenizePart
    tokenizer: Path
    seed: int
    attempt: Path


def write_source(
    name: str, part: SourcePart, how: TokenizePart, tokenizer: Path, folder: Path, seed: int
) -> SourceCard:
    """Tokenise both sides of a source into `folder`; CorpusError where a side that is wanted stays empty.

    A source that was finished before is not read again.
    """
    attempts = folder.with_name(f"{folder.name}.attempts")
    if not (folder / CARD).is_file():
        attempt = new_attempt(attempts)
        try:
            card = _write_sides(Work(name, anywhere(part), how, tokenizer.absolute(), seed, attempt.absolute()))
        except CorpusError:
            remove(attempts)  # the source is to be fixed: what was read of it is worth nothing
            raise
        write_json(attempt / CARD, card.model_dump(mode="json"))
        remove(folder)
        attempt.rename(folder)  # its files are on the disk: each task saw to its own
    for left in (attempts, folder / "census", *folder.glob("*/log"), *folder.glob("*/found")):
        remove(left)
    return SourceCard.model_validate_json((folder / CARD).read_text(encoding="utf-8"))


def write_tokenizer(target: Tokenizer, destination: Path, bos: int | None, eos: int) -> None:
    """A copy of the target's tokenizer that frames each document with `bos` (where given) and `eos`."""
    tokenizer = Tokenizer.from_str(target.to_str())
    # Names of our own: a template is split at spaces and colons, which a target's token may contain.
    frame = [("BOS", bos)] if bos is not None else []
    tokenizer.post_processor = TemplateProcessing(
        single=[*(name for name, _ in frame), "$A", "EOS"], special_tokens=[*frame, ("EOS", eos)]
    )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    destination.write_text(tokenizer.to_str(), encoding="utf-8")  # its own `save` hides the number of an error


def _write_sides(work: Work) -> SourceCard:
    census = _census(work)
    candidates = _allowed(work.part, census.held_out)
    train, found = _write_train(work, candidates)
    gone = leaked(candidates, found) if candidates else set()
    kept = [document for i, document in enumerate(candidates) if i not in gone]
    held_out = _write_side("held_out", partial(_as_they_are, kept), work._replace(how=TokenizePart()))
    card = SourceCard(
        train=train,
        held_out=held_out,
        rejected=census.rejected.counts | census.rejected.refused,
        near_duplicates_dropped=len(gone),
        duplicates_dropped=census.duplicates,
        held_out_keys=tuple(sorted({d.key for d in kept})),
    )
    _check_sides(work, card, len(candidates))
    return card


def _census(work: Work) -> Census:
    folder = work.attempt / "census"
    folder.mkdir(exist_ok=True)
    run_tasks(partial(count_portion, work.part, folder), what=f"{work.name}: census", how=work.how, folder=folder)
    return conclude(work.part, folder, work.how.tasks)


def _allowed(part: SourcePart, held_out: list[Document]) -> list[Document]:
    """The documents that may measure a draft, if they do not stand in the training side."""
    if part.held_out_list is None:
        return held_out
    allowed = allowed_keys(part.held_out_list)
    return [document for document in held_out if document.key in allowed]


def _write_train(work: Work, held_out: list[Document]) -> tuple[SideCard, set[int]]:
    """The training side, and those shingles of the held-out documents that stand in it."""
    census, found = work.attempt / "census", work.attempt / "train" / "found"
    found.mkdir(parents=True, exist_ok=True)
    np.save(census / "held_out.npy", np.array(sorted(shingles_of(held_out)), np.uint64))
    card = _write_side("train", partial(_train_portion, work.part, census, found), work)
    return card, {int(one) for file in found.glob("*.npy") for one in np.load(file)}


def _train_portion(
    part: SourcePart, census: Path, found_folder: Path, _data: Any, rank: int, of: int
) -> Iterator[PipelineDocument]:
    """A task's documents to train on; leaves RANK.npy, the held-out documents' shingles that stand in them."""
    wanted, found = set(np.load(census / "held_out.npy").tolist()), set[int]()
    for document in train_documents(part, census, Portion(rank, of)):
        if wanted:
            found |= wanted & shingles(document.text)
        yield PipelineDocument(text=document.text, id=document.origin)
    with atomic_write(found_folder / f"{rank:05d}.npy") as path, path.open("wb") as file:
        np.save(file, np.array(sorted(found), np.uint64))


def _as_they_are(documents: list[Document], _data: Any, rank: int, of: int) -> Iterator[PipelineDocument]:
    for document in documents:
        yield PipelineDocument(text=document.text, id=document.origin)


def _write_side(side: str, read: partial[Iterator[PipelineDocument]], work: Work) -> SideCard:
    folder = work.attempt / side
    shards = folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    step = DocumentTokenizer(
        str(shards), str(work.tokenizer), seed=work.seed, batch_size=256, save_final_metadata=False
    )
    run_tasks(read, step, partial(_settle, shards), what=f"{work.name}: {side}", how=work.how, folder=folder)
    return survey(shards, step.token_size)


def _settle(shards: Path, _data: Iterable[PipelineDocument] | None, rank: int, of: int) -> None:
    """The last step of a task: its shards are on the disk before datatrove marks it as finished."""
    for path in shards.glob(f"{rank:05d}_*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _check_sides(work: Work, card: SourceCard, candidates: int) -> None:
    part, where = work.part, f"the source `{work.name}` ({work.part.path or work.part.source})"
    if card.train.tokens == 0:
        raise CorpusError(
            f"{where} holds no document to train on\n"
            f"  do: check `path` and `field`, or raise `sample_fraction` (now {part.sample_fraction})"
        )
    if card.held_out.tokens == 0 and part.held_out_fraction > 0:
        raise CorpusError(
            f"{where} holds no document to measure a draft on: {candidates} were held out, "
            f"{card.near_duplicates_dropped} of them stand in the training side too\n"
            f"  do: raise `held_out_fraction` (now {part.held_out_fraction}), or set it to 0 to go without"
        )
