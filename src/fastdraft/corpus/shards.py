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


def survey(folder: Path, bytes_per_token: int) -> SideCard:
    """The card of the shards in a folder; a file without a token is none."""
    files = [file for file in sorted(folder.glob("*.ds")) if file.stat().st_size]
    sizes = tuple(ShardFile(name=file.name, tokens=file.stat().st_size // bytes_per_token) for file in files)
    return SideCard(
        files=sizes,
        bytes_per_token=bytes_per_token,
        documents=sum(index_of(file).stat().st_size // 8 for file in files),
        tokens=sum(size.tokens for size in sizes),
    )


def index_of(shard: Path) -> Path:
    """The file beside a shard that holds its documents' ends."""
    return shard.with_name(shard.name + ".index")


class Shards:
    """The tokens of one side of a source as one long row, read from disk when asked for.

    ShardError where a file is missing or its size is not what the card says.
    """

    def __init__(self, folder: Path, card: SideCard) -> None:
        self.folder = folder
        self.tokens = card.tokens
        self.documents = card.documents
        self._folder = folder
        self._maps = [self._map(folder / file.name, file.tokens, card.bytes_per_token) for file in card.files]
        self._starts = np.cumsum([0, *(file.tokens for file in card.files)])
        self._index_files = [index_of(folder / file.name) for file in card.files]

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
        starts = np.zeros(1, np.int64)
        for file, shard in zip(self._index_files, self._maps, strict=True):
            if not file.is_file():
                raise self._damage(f"{file} is missing, and each shard has one")
            ends = np.fromfile(file, "<u8").astype(np.int64)
            if not len(ends) or ends[-1] != len(shard) or (np.diff(ends, prepend=0) <= 0).any():
                raise self._damage(f"the document ends in {file} do not rise to its shard's {len(shard)} tokens")
            starts = np.append(starts, ends + starts[-1])
        if len(starts) != self.documents + 1:
            raise self._damage(f"{self._folder} holds {len(starts) - 1} documents, its card says {self.documents}")
        return starts

    def _map(self, path: Path, tokens: int, width: int) -> npt.NDArray[np.unsignedinteger]:
        found = path.stat().st_size if path.is_file() else None
        if found != tokens * width:
            state = "missing" if found is None else f"{found} bytes"
            raise self._damage(f"{path} is {state}, its card says {tokens * width} bytes")
        return np.memmap(path, np.dtype("<u4" if width == 4 else "<u2"), "r")

    def _damage(self, what: str) -> ShardError:
        # The card of all sources lies three folders up: STAGE/SOURCE/SIDE/shards.
        stage = self._folder.parents[2]
        return ShardError(f"{what}\n  do: remove {stage} and run again: all its sources are tokenised anew")
