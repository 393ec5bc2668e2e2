"""Completions in a file of their own, one behind the other, read a row at a time in any order.

Parquet gives a shard at a time, and a batch of training takes its rows from all over. The file has no name: it ends
with the process, however that ends, and each process of a command has one. In memory is an index of 32 bytes a row.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from fastdraft.synthesize.completions import Completion, LogProbabilities, Top

Index = npt.NDArray[Any]


class Place(NamedTuple):
    """The byte at which a row begins; tokens of prompt and answer; log-probabilities; most likely tokens of a place."""

    start: int
    prompt: int
    tokens: int
    logp: int
    known: int
    temperature: float


INDEX = np.dtype(list(zip(Place._fields, ("i8", "i4", "i4", "i4", "i4", "f8"), strict=True)))


class Said(NamedTuple):
    """What the target said of a row: log p of each token, the most likely tokens; empty where it did not."""

    logp: LogProbabilities
    top: Top


class OnDisk:
    """Completions in the order of their keys, of equal ones the last; with what was said of them where `said`."""

    def __init__(self, shards: Iterable[Sequence[Completion]], folder: Path, said: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            self.index = _written(shards, file, said)
            file.flush()
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)

    def place(self, row: int) -> Place:
        """What the index says of a row."""
        return Place(*self.index[row].item())

    def text(self, row: int) -> npt.NDArray[np.int32]:
        """Prompt and answer."""
        place = self.place(row)
        return self._read(np.int32, place.prompt + place.tokens, place.start)

    def said(self, row: int) -> Said:
        """What the target said of the answer."""
        place = self.place(row)
        start = place.start + 4 * (place.prompt + place.tokens)
        logp = self._read(np.float32, place.logp, start)
        start += logp.nbytes
        ids = self._read(np.uint32, place.tokens * place.known, start).reshape(-1, place.known or 1)
        top_logp = self._read(np.float16, ids.size, start + ids.nbytes).reshape(ids.shape)
        return Said(logp, Top(ids, top_logp))

    def _read(self, kind: Any, count: int, start: int) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = np.frombuffer(os.pread(self._file, count * np.dtype(kind).itemsize, start), kind)
        return found


def _written(shards: Iterable[Sequence[Completion]], file: BinaryIO, said: bool) -> Index:
    """The index of the rows, which are put into the file shard by shard."""
    keys, parts, start = [np.empty(0, "S16")], [np.empty(0, INDEX)], 0
    for shard in shards:
        rows = [b"".join(_bytes(row, said)) for row in shard]
        starts = start + np.cumsum([0, *map(len, rows)])
        file.writelines(rows)
        start = int(starts[-1])
        keys.append(np.array([row.key for row in shard], "S"))
        parts.append(np.array([(at, *_sizes(row, said)) for at, row in zip(starts, shard, strict=False)], INDEX))
    every = np.concatenate(keys)
    order = np.argsort(every, kind="stable")
    last = np.append(every[order][1:] != every[order][:-1], True)[: len(order)]
    index: Index = np.concatenate(parts)[order[last]]
    return index


def _sizes(row: Completion, said: bool) -> tuple[int, int, int, int, float]:
    """All of an index row but its start."""
    known = row.top.known_tokens if said and row.top is not None else 0
    return len(row.prompt), len(row.tokens), len(row.logp) if said else 0, known, row.sampling.temperature


def _bytes(row: Completion, said: bool) -> Iterator[bytes]:
    yield row.prompt.astype(np.int32).tobytes()
    yield row.tokens.astype(np.int32).tobytes()
    if said:
        yield row.logp.astype(np.float32).tobytes()
    if said and row.top is not None:
        yield row.top.ids.astype(np.uint32).tobytes()
        yield row.top.logp.astype(np.float16).tobytes()
