"""Token shards on disk, memory-mapped: datatrove's `.ds` files (tokens) and `.ds.index` files (document ends)."""

from __future__ import annotations

import json
import mmap
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import BaseModel, ConfigDict

from fastdraft.system.errors import ShardError

Tokens = npt.NDArray[np.int64]

# Looked at in every shard each time it is opened: enough to see another file of the same size, a stretch of a sixteenth
# that changed, or an end that a power cut lost; cheap enough for a thousand shards (64 KiB each, docs/corpus.md).
SAMPLES, SAMPLE_BYTES = 16, 4096
# A map keeps its file open, and a process may often open no more than 1 024. A new map takes 20 us.
MAX_OPEN_MAPS = 64


class ShardFile(BaseModel):
    """One shard: its name, its size in tokens, and the digest of a sample of it (none in older cards)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    tokens: int
    sample_digest: str | None = None


class SideCard(BaseModel):
    """One side of a source."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    files: tuple[ShardFile, ...]
    bytes_per_token: int
    documents: int
    tokens: int

    @property
    def digest(self) -> str:
        """16 hex digits that are others where any shard is: what a run that is resumed can compare."""
        shards = [[self.bytes_per_token], *([file.name, file.tokens, file.sample_digest] for file in self.files)]
        return str(xxhash.xxh3_64_hexdigest(json.dumps(shards).encode()))


class SourceCard(BaseModel):
    """Both sides of a source, and what was left out of them: by reason, near-duplicates, texts that came again."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    train: SideCard
    held_out: SideCard
    rejected: dict[str, int]
    near_duplicates_dropped: int
    duplicates_dropped: int = 0
    held_out_keys: tuple[str, ...]


def survey(folder: Path, bytes_per_token: int) -> SideCard:
    """The card of the shards in a folder; a file without a token is none."""
    files = [file for file in sorted(folder.glob("*.ds")) if file.stat().st_size]
    shards = tuple(
        ShardFile(name=file.name, tokens=file.stat().st_size // bytes_per_token, sample_digest=sample_digest(file))
        for file in files
    )
    return SideCard(
        files=shards,
        bytes_per_token=bytes_per_token,
        documents=sum(index_of(file).stat().st_size // 8 for file in files),
        tokens=sum(shard.tokens for shard in shards),
    )


def sample_digest(path: Path) -> str:
    """16 hex digits of a file's size, its head, its tail and 14 places between (all of a file up to 64 KiB)."""
    size = path.stat().st_size
    hashed = xxhash.xxh3_64(size.to_bytes(8, "little"))
    whole = size <= SAMPLES * SAMPLE_BYTES
    starts = [0] if whole else [i * (size - SAMPLE_BYTES) // (SAMPLES - 1) for i in range(SAMPLES)]
    with path.open("rb", buffering=0) as file:
        for start in starts:
            file.seek(start)
            hashed.update(file.read(size if whole else SAMPLE_BYTES))
    return str(hashed.hexdigest())


def index_of(shard: Path) -> Path:
    """The file beside a shard that holds its documents' ends."""
    return shard.with_name(shard.name + ".index")


def _mapped(path: Path, dtype: np.dtype[np.unsignedinteger]) -> npt.NDArray[np.unsignedinteger]:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # np.memmap takes 120 us
    # Rows are drawn from all over: read ahead, each brought 8 MiB, and a batch took 36 to 70 ms; now 2 to 7 ms.
    mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype)


class Shards:
    """The tokens of one side of a source as one long row, read from disk when asked for.

    ShardError where a file is missing, or its size or sample is not what the card says.
    """

    def __init__(self, folder: Path, card: SideCard) -> None:
        self.folder = folder
        self.tokens = card.tokens
        self.documents = card.documents
        self._files = [folder / file.name for file in card.files]
        self._starts = np.cumsum([0, *(file.tokens for file in card.files)])
        self._dtype = np.dtype("<u4" if card.bytes_per_token == 4 else "<u2")
        self._map = lru_cache(MAX_OPEN_MAPS)(partial(_mapped, dtype=self._dtype))
        for path, file in zip(self._files, card.files, strict=True):
            self._check(path, file)

    def __getitem__(self, place: slice) -> Tokens:
        """tokens[start:stop], across shard borders."""
        start, stop, _ = place.indices(self.tokens)
        found = np.empty(max(stop - start, 0), np.int64)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            first = int(self._starts[shard])
            piece = self._map(self._files[shard])[start - first : stop - first]
            found[len(found) - (stop - start) :][: len(piece)] = piece
            start, shard = start + len(piece), shard + 1
        return found

    def document_starts(self) -> Tokens:
        """(documents + 1) the first token of each document, and the end of the last."""
        starts = [np.zeros(1, np.int64)]
        for path, first, after in zip(self._files, self._starts, self._starts[1:], strict=False):
            file = index_of(path)
            if not file.is_file():
                raise self._damage(f"{file} is missing, and each shard has one")
            ends = np.fromfile(file, "<u8").astype(np.int64)
            if not len(ends) or ends[-1] != after - first or (np.diff(ends, prepend=0) <= 0).any():
                raise self._damage(f"the document ends in {file} do not rise to its shard's {after - first} tokens")
            starts.append(ends + first)
        found = np.concatenate(starts)
        if len(found) != self.documents + 1:
            raise self._damage(f"{self.folder} holds {len(found) - 1} documents, its card says {self.documents}")
        return found

    def _check(self, path: Path, card: ShardFile) -> None:
        found, wanted = path.stat().st_size if path.is_file() else None, card.tokens * self._dtype.itemsize
        if found != wanted:
            state = "missing" if found is None else f"{found} bytes"
            raise self._damage(f"{path} is {state}, its card says {wanted} bytes")
        if card.sample_digest is not None and sample_digest(path) != card.sample_digest:
            raise self._damage(f"{path} is as long as its card says, but its content is not the one it had")

    def _damage(self, what: str) -> ShardError:
        # The card of all sources lies three folders up: STAGE/SOURCE/SIDE/shards.
        stage = self.folder.parents[2]
        return ShardError(f"{what}\n  do: remove {stage} and run again: all its sources are tokenised anew")
