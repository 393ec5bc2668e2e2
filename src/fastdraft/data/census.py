"""The first of two passes over a source: count its documents and decide what happens to each.

Each task reads its portion and stores a hash of every usable document. The hashes of all tasks show which texts
repeat. The second pass reads the source again, follows the decisions, and stops with an error if it does not meet the
same documents in the same order.
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
from fastdraft.data.sources import check_rejected, read
from fastdraft.data.split import split_of
from fastdraft.data.web_filters import FilteredOut, QualityFilters, rewriting_filters
from fastdraft.system.errors import CorpusError
from fastdraft.system.files import atomic_write, write_json

# The decision about a document; FILTERED: dropped by a quality filter.
SAMPLED_OUT, TRAIN, HELD_OUT, FILTERED, DUPLICATE = range(5)
DECISION_OF_SPLIT = {None: SAMPLED_OUT, "train": TRAIN, "held_out": HELD_OUT}

Hashes = npt.NDArray[np.uint64]
Decisions = npt.NDArray[np.uint8]


class Census(NamedTuple):
    """The held-out documents, each text once; the rejected records; the number of documents for each decision."""

    held_out: list[Document]
    rejected: Rejected
    counts: dict[int, int]

    def __str__(self) -> str:
        """What became of the records, for an error message."""
        counts = {
            "unusable": sum(self.rejected.counts.values()),
            "dropped by quality filters": self.counts[FILTERED],
            "duplicates": self.counts[DUPLICATE],
            "held out": self.counts[HELD_OUT],
            "left out by `sample_fraction`": self.counts[SAMPLED_OUT],
            "to train on": self.counts[TRAIN],
        }
        parts = [f"{count:,} {name}" for name, count in counts.items() if count]
        return f"{self.rejected.records:,} rows or files were read: {', '.join(parts) or 'none has a text'}"


def count_portion(part: SourcePart, folder: Path, _data: Any, rank: int, world_size: int) -> Iterator[None]:
    """The task of the first pass: writes RANK.npz (hashes and decisions) and RANK.json (held out and rejected)."""
    rejected, filters = Rejected(), QualityFilters(part.quality)
    hashes, decisions, held_out = array("Q"), bytearray(), []
    for number, document in enumerate(read(part, rejected, Portion(rank, world_size))):
        kept = filters(document)
        if isinstance(kept, FilteredOut):
            rejected.add_filtered(kept.reason)
            kept, decision = document, FILTERED
        else:
            decision = DECISION_OF_SPLIT[split_of(part, kept.key)]
        hashes.append(content_hash(kept.text))
        decisions.append(decision)
        if decision == HELD_OUT:
            held_out.append([number, *kept])
    with atomic_write(folder / f"{rank:05d}.npz") as path, path.open("wb") as file:
        np.savez(file, hashes=np.frombuffer(hashes, np.uint64), decisions=np.frombuffer(decisions, np.uint8))
    write_json(folder / f"{rank:05d}.json", {"rejected": asdict(rejected), "held_out": held_out})
    yield from ()


def merge_portions(part: SourcePart, folder: Path, tasks: int) -> Census:
    """The census of all portions; writes RANK.decisions.npy, in which repeated texts are `DUPLICATE`.

    CorpusError if too many records are unusable. Needs about 80 bytes per document: 0.8 GB for 10B tokens.
    """
    portions = [json.loads((folder / f"{rank:05d}.json").read_text(encoding="utf-8")) for rank in range(tasks)]
    rejected = Rejected()
    for portion in portions:
        rejected.merge(Rejected(**portion["rejected"]))
    check_rejected(part, rejected)
    decisions = _mark_duplicates([_read_portion(folder, rank) for rank in range(tasks)])
    for rank, of_portion in enumerate(decisions):
        with atomic_write(folder / f"{rank:05d}.decisions.npy") as path, path.open("wb") as file:
            np.save(file, of_portion)
    held_out = [
        Document(*document)
        for of_portion, portion in zip(decisions, portions, strict=True)
        for number, *document in portion["held_out"]
        if of_portion[number] == HELD_OUT
    ]
    counts = np.bincount(np.concatenate(decisions), minlength=DUPLICATE + 1)
    return Census(held_out, rejected, dict(enumerate(counts.tolist())))


def train_documents(part: SourcePart, folder: Path, portion: Portion) -> Iterator[Document]:
    """The second pass: the training documents of a portion; CorpusError if the source differs from the first pass."""
    hashes = _read_portion(folder, portion.rank)[0]
    decisions: Decisions = np.load(folder / f"{portion.rank:05d}.decisions.npy")
    filters, count = QualityFilters(rewriting_filters(part.quality)), 0
    for count, document in enumerate(read(part, Rejected(), portion), 1):
        if count > len(decisions):
            raise _changed(part, document.origin)
        if decisions[count - 1] == TRAIN:
            kept = filters(document)
            if isinstance(kept, FilteredOut) or content_hash(kept.text) != hashes[count - 1]:
                raise _changed(part, document.origin)
            yield kept
    if count != len(decisions):
        raise _changed(part, "its end")


def _read_portion(folder: Path, rank: int) -> tuple[Hashes, Decisions]:
    with np.load(folder / f"{rank:05d}.npz") as portion:
        return portion["hashes"], portion["decisions"]


def _mark_duplicates(portions: list[tuple[Hashes, Decisions]]) -> list[Decisions]:
    """The decisions per portion, with all but the first of equal texts `DUPLICATE`; filtered texts do not count."""
    hashes, decisions = (np.concatenate(column) for column in zip(*portions, strict=True))
    duplicate = decisions != FILTERED
    unfiltered = np.flatnonzero(duplicate)
    first = unfiltered[np.unique(hashes[unfiltered], return_index=True)[1]]
    duplicate[first] = False
    decisions[duplicate] = DUPLICATE
    return np.split(decisions, np.cumsum([len(own) for own, _ in portions])[:-1])


def _changed(part: SourcePart, where: str) -> CorpusError:
    return CorpusError(
        f"{part.path or part.source} changed while it was read: at {where} the second pass differs from the first\n"
        f"  do: run again when the source no longer changes; for a data set on the hub set `revision`"
    )
