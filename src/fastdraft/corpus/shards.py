"""Token shards on disk, memory-mapped: datatrove's `.ds` files (tokens) and `.ds.index` files (document ends)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from fastdraft.errors import ShardError

Tokens = npt.NDArray[np.int64]


class ShardFile(BaseModel):
    """One shard: its name and its size in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    tokens: int


class SideCard(BaseModel):
    """One side of a source."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    files: tuple[ShardFile, ...]
    bytes_per_token: int
    documents: int
    tokens: int


class SourceCard(BaseModel):
    """Both sides of a source, and what was left out of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    train: SideCard
    held_out: SideCard
    rejected: dict[str, int]
    near_duplicates_dropped: int
    held_out_keys: tuple[str, ...]


def survey(folder: Path, vocabulary: int) -> SideCard:
    """The card of the shards in a folder."""
    width = 4 if vocabulary > 2**16 else 2
    files = sorted(folder.glob("*.ds"))
    sizes = tuple(ShardFile(name=file.name, tokens=file.stat().st_size // width) for file in files)
    ends = sum(file.with_name(file.name + ".index").stat().st_size // 8 for file in files)
    return SideCard(files=sizes, bytes_per_token=width, documents=ends, tokens=sum(size.tokens for size in sizes))


class Shards:
    """The tokens of one side of a source as one long row, read from disk when asked for.

    ShardError where a file is missing or its size is not what the card says.
    """

    def __init__(self, folder: Path, card: SideCard) -> None:
        self.tokens = card.tokens
        self.documents = card.documents
        self._maps = [self._map(folder / file.name, file, card.bytes_per_token) for file in card.files]
        self._starts = np.cumsum([0, *(file.tokens for file in card.files)])
        self._index_files = [folder / f"{file.name}.index" for file in card.files]

    def __getitem__(self, place: slice) -> Tokens:
        """tokens[start:stop], across shard borders."""
        start, stop, _ = place.indices(self.tokens)
        pieces = []
        for shard, first in zip(self._maps, self._starts, strict=False):
            low, high = max(start - int(first), 0), min(stop - int(first), len(shard))
            if low < high:
                pieces.append(shard[low:high])
        return np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, np.int64)

    def document_starts(self) -> Tokens:
        """(documents + 1) the first token of each document, and the end of the last."""
        ends = [
            np.fromfile(file, "<u8").astype(np.int64) + first
            for file, first in zip(self._index_files, self._starts, strict=False)
        ]
        return np.concatenate([np.zeros(1, np.int64), *ends])

    @staticmethod
    def _map(path: Path, file: ShardFile, width: int) -> npt.NDArray[np.unsignedinteger]:
        found = path.stat().st_size if path.is_file() else None
        if found != file.tokens * width:
            state = "missing" if found is None else f"{found} bytes"
            raise ShardError(
                f"{path} is {state}, its card says {file.tokens * width} bytes\n"
                f"  do: remove {path.parents[3]} and run again: this source is tokenised anew"
            )
        return np.memmap(path, np.dtype("<u4" if width == 4 else "<u2"), "r")
