"""From one source to two folders of token shards, with datatrove: `train` and `held_out`.

A document becomes what the target would see: its tokens, the end-of-text token behind it, and the begin-of-text
token in front where the target's tokenizer puts one.
"""

from __future__ import annotations

import os
import shutil
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
from fastdraft.run import finished_last

# datatrove tells standard error about each task; what goes wrong in one is raised again in any case.
logger.disable("datatrove")


def write_source(
    name: str, part: SourcePart, how: TokenizePart, tokenizer: Path, folder: Path, seed: int
) -> SourceCard:
    """Tokenise both sides of a source below `folder`; CorpusError where a side that is wanted stays empty."""
    rejected = Rejected()
    candidates = [d for d in documents(part, rejected) if side(part, d.key) == "held_out"]
    kept, dropped = _held_out(part, candidates)
    train = _write_side(partial(_train_documents, part), how, tokenizer, folder / "train", seed)
    held_out = _write_side(partial(iter, kept), TokenizePart(), tokenizer, folder / "held_out", seed)
    if train.tokens == 0:
        raise CorpusError(
            f"the source `{name}` ({part.path or part.source}) holds no document to train on\n"
            f"  do: check `path` and `field`, or raise `sample_share` (now {part.sample_share})"
        )
    if held_out.tokens == 0 and part.held_out_share > 0:
        raise CorpusError(
            f"the source `{name}` ({part.path or part.source}) holds no document to judge a draft by: "
            f"{len(candidates)} were held out, {dropped} of them stand in the training side too\n"
            f"  do: raise `held_out_share` (now {part.held_out_share}), or set it to 0 to go without"
        )
    return SourceCard(
        train=train,
        held_out=held_out,
        rejected=rejected.counts,
        near_duplicates_dropped=dropped,
        held_out_keys=tuple(sorted({d.key for d in kept})),
    )


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
    for left in folder.glob("attempt-*"):
        shutil.rmtree(left)
    # A folder for each process: the workers of a killed one may go on for a while, and would write into ours.
    attempt = folder / f"attempt-{os.getpid()}"
    (attempt / "shards").mkdir(parents=True)
    step = DocumentTokenizer(str(attempt / "shards"), str(tokenizer), seed=seed, batch_size=256)
    LocalPipelineExecutor(
        pipeline=[partial(_pipeline_documents, read), step],
        tasks=how.tasks,
        workers=min(how.workers, how.tasks),
        logging_dir=str(attempt / "log"),
    ).run()
    with finished_last(folder / "shards") as part:
        (attempt / "shards").rename(part)
    shutil.rmtree(attempt)
    return survey(folder / "shards", step.token_size)


def _pipeline_documents(
    read: partial[Iterator[Document]], _data: Iterable[PipelineDocument] | None, rank: int = 0, world_size: int = 1
) -> Iterator[PipelineDocument]:
    for i, document in enumerate(read()):
        if i % world_size == rank:
            yield PipelineDocument(text=document.text, id=document.origin)
