"""The first of the two readings of a source: which documents it holds, and what is to become of each.

Each task reads its portion and leaves a hash of every sound document; together they say which texts come twice. The
second reading follows the verdict, and stops where it does not meet the same documents in the same order.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastdraft.config import SourcePart
from fastdraft.data.document import Document, Portion, Rejected, content_hash
from fastdraft.data.sources import check, read
from fastdraft.data.split import side
from fastdraft.data.web_filters import Dropped, Sieve, rewriting
from fastdraft.system.errors import CorpusError
from fastdraft.system.files import atomic_write, write_json

# What is to become of a document: sampled away, trained on, held out, refused by a quality filter, there already.
AWAY, TRAIN, HELD_OUT, REFUSED, TWICE = range(5)
FATES = {None: AWAY, "train": TRAIN, "held_out": HELD_OUT}

Fates = npt.NDArray[np.uint8]


class Census(NamedTuple):
    """The held-out documents, each text once; what was left out and why; texts that came again."""

    held_out: list[Document]
    rejected: Rejected
    duplicates: int


def count_portion(part: SourcePart, folder: Path, _data: Any, rank: int, of: int) -> Iterator[None]:
    """A task: RANK.npz has hash and fate of each sound document, RANK.json what is held out and what is rejected."""
    rejected, sieve = Rejected(), Sieve(part.quality)
    hashes, fates, held_out = array("Q"), bytearray(), []
    for number, document in enumerate(read(part, rejected, Portion(rank, of))):
        decided = sieve(document)
        if isinstance(decided, Dropped):
            rejected.refuse(decided.reason)
        kept = document if isinstance(decided, Dropped) else decided
        fate = REFUSED if isinstance(decided, Dropped) else FATES[side(part, kept.key)]
        hashes.append(content_hash(kept.text))
        fates.append(fate)
        if fate == HELD_OUT:
            held_out.append([number, *kept])
    with atomic_write(folder / f"{rank:05d}.npz") as path, path.open("wb") as file:
        np.savez(file, hashes=np.frombuffer(hashes, np.uint64), fates=np.frombuffer(fates, np.uint8))
    write_json(folder / f"{rank:05d}.json", {"rejected": asdict(rejected), "held_out": held_out})
    yield from ()


def conclude(part: SourcePart, folder: Path, tasks: int) -> Census:
    """The census of all portions; leaves RANK.verdict.npy, the fates in which a text that came before is `TWICE`.

    CorpusError where too many rows are unsound. Needs some 80 bytes a document, 0.8 GB for 10B tokens.
    """
    told = [json.loads((folder / f"{rank:05d}.json").read_text(encoding="utf-8")) for rank in range(tasks)]
    rejected = Rejected()
    for portion in told:
        rejected.merge(Rejected(**portion["rejected"]))
    check(part, rejected)
    verdicts = _without_duplicates([_portion(folder, rank) for rank in range(tasks)])
    for rank, verdict in enumerate(verdicts):
        with atomic_write(folder / f"{rank:05d}.verdict.npy") as path, path.open("wb") as file:
            np.save(file, verdict)
    held_out = [
        Document(*document)
        for verdict, portion in zip(verdicts, told, strict=True)
        for number, *document in portion["held_out"]
        if verdict[number] == HELD_OUT
    ]
    return Census(held_out, rejected, sum(int((verdict == TWICE).sum()) for verdict in verdicts))


def train_documents(part: SourcePart, folder: Path, portion: Portion) -> Iterator[Document]:
    """The second reading: a portion's documents to train on. CorpusError where they are not those of the first."""
    hashes = _portion(folder, portion.rank)[0]
    verdict: Fates = np.load(folder / f"{portion.rank:05d}.verdict.npy")
    sieve, count = Sieve(rewriting(part.quality)), 0
    for count, document in enumerate(read(part, Rejected(), portion), 1):
        if count > len(verdict):
            raise _changed(part, document.origin)
        if verdict[count - 1] == TRAIN:
            kept = sieve(document)
            if isinstance(kept, Dropped) or content_hash(kept.text) != hashes[count - 1]:
                raise _changed(part, document.origin)
            yield kept
    if count != len(verdict):
        raise _changed(part, "its end")


def _portion(folder: Path, rank: int) -> tuple[npt.NDArray[np.uint64], Fates]:
    with np.load(folder / f"{rank:05d}.npz") as kept:
        return kept["hashes"], kept["fates"]


def _without_duplicates(portions: list[tuple[npt.NDArray[np.uint64], Fates]]) -> list[Fates]:
    """The fates, portion by portion; of equal texts that no filter refused the first decides, the rest are `TWICE`."""
    hashes, fates = (np.concatenate(column) for column in zip(*portions, strict=True))
    asked = np.flatnonzero(fates != REFUSED)
    first = asked[np.unique(hashes[asked], return_index=True)[1]]
    again = fates != REFUSED
    again[first] = False
    fates[again] = TWICE
    return np.split(fates, np.cumsum([len(own) for own, _ in portions])[:-1])


def _changed(part: SourcePart, where: str) -> CorpusError:
    return CorpusError(
        f"{part.path or part.source} changed while it was read: at {where} its second reading differs from the first\n"
        f"  do: run again when it stays as it is; for a data set on the hub set `revision`"
    )
