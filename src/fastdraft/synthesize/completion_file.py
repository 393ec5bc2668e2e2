"""Completions in a temporary file, for random access by row.

A parquet file is read shard by shard, while a batch of training takes rows from everywhere. The file has no name: it
disappears with the process, however that ends. Each process of a command has one. Memory holds an index of 32 bytes
per row.
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

from fastdraft.synthesize.completions import Completion, LogProbabilities, TopTokens

Index = npt.NDArray[Any]


class IndexEntry(NamedTuple):
    """The byte at which a row starts; the numbers of its tokens, log-probabilities, and top tokens per position."""

    start: int
    prompt_tokens: int
    tokens: int
    logprobs: int
    top_logprobs: int
    temperature: float


INDEX = np.dtype(list(zip(IndexEntry._fields, ("i8", "i4", "i4", "i4", "i4", "f8"), strict=True)))


class CompletionFile:
    """Completions sorted by key; of several with one key the last one is kept. Log-probabilities only if requested."""

    def __init__(self, shards: Iterable[Sequence[Completion]], folder: Path, with_logprobs: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            self.index = _write(shards, file, with_logprobs)
            file.flush()
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)

    def entry(self, row: int) -> IndexEntry:
        return IndexEntry(*self.index[row].item())

    def text(self, row: int) -> npt.NDArray[np.int32]:
        """The tokens of prompt and completion."""
        entry = self.entry(row)
        return self._read(np.int32, entry.prompt_tokens + entry.tokens, entry.start)

    def logprobs(self, row: int) -> tuple[LogProbabilities, TopTokens]:
        """log p of each token of the completion, and the top tokens of each position; empty if not stored."""
        entry = self.entry(row)
        start = entry.start + 4 * (entry.prompt_tokens + entry.tokens)
        logp = self._read(np.float32, entry.logprobs, start)
        start += logp.nbytes
        ids = self._read(np.uint32, entry.tokens * entry.top_logprobs, start).reshape(-1, entry.top_logprobs or 1)
        top_logp = self._read(np.float16, ids.size, start + ids.nbytes).reshape(ids.shape)
        return logp, TopTokens(ids, top_logp)

    def _read(self, dtype: Any, count: int, start: int) -> npt.NDArray[Any]:
        content = os.pread(self._file, count * np.dtype(dtype).itemsize, start)
        values: npt.NDArray[Any] = np.frombuffer(content, dtype)
        return values


def _write(shards: Iterable[Sequence[Completion]], file: BinaryIO, with_logprobs: bool) -> Index:
    """Write the rows shard by shard, and return their index."""
    keys, entries, start = [np.empty(0, "S16")], [np.empty(0, INDEX)], 0
    for shard in shards:
        rows = [b"".join(_parts(row, with_logprobs)) for row in shard]
        starts = start + np.cumsum([0, *map(len, rows)])
        file.writelines(rows)
        keys.append(np.array([row.key for row in shard], "S"))
        entries.append(
            np.array([_entry(row, at, with_logprobs) for at, row in zip(starts[:-1], shard, strict=True)], INDEX)
        )
        start = int(starts[-1])
    all_keys = np.concatenate(keys)
    order = np.argsort(all_keys, kind="stable")
    is_last = np.append(all_keys[order][1:] != all_keys[order][:-1], True)[: len(order)]
    index: Index = np.concatenate(entries)[order[is_last]]
    return index


def _entry(row: Completion, start: int, with_logprobs: bool) -> IndexEntry:
    return IndexEntry(
        start=start,
        prompt_tokens=len(row.prompt),
        tokens=len(row.tokens),
        logprobs=len(row.logp) if with_logprobs else 0,
        top_logprobs=row.top.ids.shape[1] if with_logprobs and row.top is not None else 0,
        temperature=row.sampling.temperature,
    )


def _parts(row: Completion, with_logprobs: bool) -> Iterator[bytes]:
    yield row.prompt.astype(np.int32).tobytes()
    yield row.tokens.astype(np.int32).tobytes()
    if with_logprobs:
        yield row.logp.astype(np.float32).tobytes()
        if row.top is not None:
            yield row.top.ids.astype(np.uint32).tobytes()
            yield row.top.logp.astype(np.float16).tobytes()
