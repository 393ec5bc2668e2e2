"""From one source to two folders of token shards, with datatrove: `train` and `held_out`.

A document becomes what the target would see: its tokens, the end-of-text token behind it, and the begin-of-text
token in front where the target's tokenizer puts one.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from datatrove.data import Document as PipelineDocument
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.utils.logging import logger
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from fastdraft.corpus.document import Document, Rejected
from fastdraft.corpus.shards import SideCard, SourceCard, survey
from fastdraft.corpus.sources import documents
from fastdraft.corpus.split import allowed_keys, leaked, side
from fastdraft.errors import CorpusError
from fastdraft.recipe import SourcePart, TokenizePart

logger.remove()  # datatrove reports to standard error at debug level; problems still come through:
logger.add(sys.stderr, level="WARNING")


def write_source(
    name: str, part: SourcePart, how: TokenizePart, tokenizer: Path, folder: Path, seed: int
) -> SourceCard:
    """Tokenise both sides of a source below `folder`; CorpusError where a side stays empty."""
    rejected = Rejected()
    candidates = [d for d in documents(part, rejected) if side(part, d.key) == "held_out"]
    kept, dropped = _held_out(part, candidates)
    train = partial(_train_documents, part)
    cards = {
        "train": _write_side(train, how, tokenizer, folder / "train", seed),
        "held_out": _write_side(partial(iter, kept), TokenizePart(), tokenizer, folder / "held_out", seed),
    }
    if cards["train"].tokens == 0:
        raise CorpusError(
            f"the source `{name}` ({part.path or part.source}) holds no document to train on\n"
            f"  do: check `path` and `field`, or raise `sample_share` (now {part.sample_share})"
        )
    return SourceCard(
        train=cards["train"],
        held_out=cards["held_out"],
        rejected=rejected.counts,
        near_duplicates_dropped=dropped,
        held_out_keys=tuple(sorted({d.key for d in kept})),
    )


def write_tokenizer(target: Tokenizer, destination: Path, bos: int | None, eos: int) -> None:
    """A copy of the target's tokenizer that frames each document with `bos` (where given) and `eos`."""
    tokenizer = Tokenizer.from_str(target.to_str())
    frame = [(tokenizer.id_to_token(i), i) for i in (bos, eos) if i is not None]
    single = f"{frame[0][0]} $A {frame[-1][0]}" if bos is not None else f"$A {frame[-1][0]}"
    tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=list(dict.fromkeys(frame)))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(destination))


def _held_out(part: SourcePart, candidates: list[Document]) -> tuple[list[Document], int]:
    """The candidates that may judge a draft, and how many were near-duplicates of training documents."""
    if part.held_out_list is not None:
        allowed = allowed_keys(part.held_out_list)
        candidates = [document for document in candidates if document.key in allowed]
    gone = leaked(candidates, _train_documents(part)) if candidates else set()
    return [document for i, document in enumerate(candidates) if i not in gone], len(gone)


def _train_documents(part: SourcePart) -> Iterator[Document]:
    return (d for d in documents(part, Rejected()) if side(part, d.key) == "train")


def _write_side(
    read: partial[Iterator[Document]], how: TokenizePart, tokenizer: Path, folder: Path, seed: int
) -> SideCard:
    shutil.rmtree(folder / "shards", ignore_errors=True)  # what a killed run left: a task's file is whole or absent
    shutil.rmtree(folder / "log", ignore_errors=True)
    (folder / "shards").mkdir(parents=True)
    LocalPipelineExecutor(
        pipeline=[
            partial(_pipeline_documents, read),
            DocumentTokenizer(str(folder / "shards"), str(tokenizer), seed=seed, batch_size=256),
        ],
        tasks=how.tasks,
        workers=min(how.workers, how.tasks),
        logging_dir=str(folder / "log"),
    ).run()
    shutil.rmtree(folder / "log")
    return survey(folder / "shards", Tokenizer.from_file(str(tokenizer)).get_vocab_size())


def _pipeline_documents(
    read: partial[Iterator[Document]], _data: Iterable[PipelineDocument] | None, rank: int = 0, world_size: int = 1
) -> Iterator[PipelineDocument]:
    for i, document in enumerate(read()):
        if i % world_size == rank:
            yield PipelineDocument(text=document.text, id=document.origin)
