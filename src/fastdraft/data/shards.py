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

# The sample of a shard that is hashed whenever it is opened. It detects a different file of the same size, a changed
# stretch of a sixteenth of the file, and an end lost in a power cut. 64 KiB per shard are cheap enough for a thousand
# shards (docs/corpus.md).
SAMPLES, SAMPLE_BYTES = 16, 4096
# A memory map keeps its file open, and the limit is often 1,024 open files per process. A new map takes 20 us.
MAX_OPEN_MAPS = 64


class ShardFile(BaseModel):
    """One shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    tokens: int
    sample_digest: str


class SplitCard(BaseModel):
    """The shards of one split of a source."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    files: tuple[ShardFile, ...]
    bytes_per_token: int
    documents: int
    tokens: int

    @property
    def digest(self) -> str:
        """16 hex digits that change if any shard changes; a resumed run compares them."""
        shards = [[self.bytes_per_token], *([file.name, file.tokens, file.sample_digest] for file in self.files)]
        return str(xxhash.xxh3_64_hexdigest(json.dumps(shards).encode()))


class SourceCard(BaseModel):
    """Both splits of a source, and the counts of what was left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    train: SplitCard
    held_out: SplitCard
    rejected: dict[str, int]
    near_duplicates_dropped: int
    duplicates_dropped: int = 0
    held_out_keys: tuple[str, ...]


def describe_shards(folder: Path, bytes_per_token: int) -> SplitCard:
    """The card of the shards in a folder, without empty files."""
    files = [file for file in sorted(folder.glob("*.ds")) if file.stat().st_size]
    shards = tuple(
        ShardFile(name=file.name, tokens=file.stat().st_size // bytes_per_token, sample_digest=sample_digest(file))
        for file in files
    )
    return SplitCard(
        files=shards,
        bytes_per_token=bytes_per_token,
        documents=sum(index_path(file).stat().st_size // 8 for file in files),
        tokens=sum(shard.tokens for shard in shards),
    )


def sample_digest(path: Path) -> str:
    """16 hex digits: hash of a file's size and of 16 samples from head to tail (of all bytes up to 64 KiB)."""
    size = path.stat().st_size
    hashed = xxhash.xxh3_64(size.to_bytes(8, "little"))
    whole = size <= SAMPLES * SAMPLE_BYTES
    starts = [0] if whole else [i * (size - SAMPLE_BYTES) // (SAMPLES - 1) for i in range(SAMPLES)]
    with path.open("rb", buffering=0) as file:
        for start in starts:
            file.seek(start)
            hashed.update(file.read(size if whole else SAMPLE_BYTES))
    return str(hashed.hexdigest())


def index_path(shard: Path) -> Path:
    """The file next to a shard that holds the ends of its documents."""
    return shard.with_name(shard.name + ".index")


def _mapped(path: Path, dtype: np.dtype[np.unsignedinteger]) -> npt.NDArray[np.unsignedinteger]:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # np.memmap takes 120 us
    # Sequences come from everywhere in the file. With read-ahead each one loaded 8 MiB, and a batch took 36 to 70 ms;
    # without it 2 to 7 ms.
    mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype)


class Shards:
    """The tokens of one split of a source as one long array that is read from disk on access.

    ShardError if a file is missing, or if its size or sample differs from the card.
    """

    def __init__(self, folder: Path, card: SplitCard) -> None:
        self.folder = folder
        self.tokens = card.tokens
        self.documents = card.documents
        self._files = [folder / file.name for file in card.files]
        self._starts = np.cumsum([0, *(file.tokens for file in card.files)])
        self._dtype = np.dtype("<u4" if card.bytes_per_token == 4 else "<u2")
        self._map = lru_cache(MAX_OPEN_MAPS)(partial(_mapped, dtype=self._dtype))
        for path, file in zip(self._files, card.files, strict=True):
            self._check(path, file)

    def __getitem__(self, span: slice) -> Tokens:
        """tokens[start:stop], across shard borders."""
        start, stop, _ = span.indices(self.tokens)
        tokens = np.empty(max(stop - start, 0), np.int64)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            first = int(self._starts[shard])
            piece = self._map(self._files[shard])[start - first : stop - first]
            tokens[len(tokens) - (stop - start) :][: len(piece)] = piece
            start, shard = start + len(piece), shard + 1
        return tokens

    def document_starts(self) -> Tokens:
        """(documents + 1) the index of the first token of each document, and the end of the last."""
        ends = [np.zeros(1, np.int64)]
        for path, first, after in zip(self._files, self._starts, self._starts[1:], strict=False):
            file = index_path(path)
            if not file.is_file():
                raise self._damage(f"{file} is missing, and each shard has one")
            own = np.fromfile(file, "<u8").astype(np.int64)
            if not len(own) or own[-1] != after - first or (np.diff(own, prepend=0) <= 0).any():
                raise self._damage(f"the document ends in {file} do not rise to its shard's {after - first} tokens")
            ends.append(own + first)
        starts = np.concatenate(ends)
        if len(starts) != self.documents + 1:
            raise self._damage(f"{self.folder} holds {len(starts) - 1} documents, its card says {self.documents}")
        return starts

    def _check(self, path: Path, card: ShardFile) -> None:
        size, expected = path.stat().st_size if path.is_file() else None, card.tokens * self._dtype.itemsize
        if size != expected:
            state = "missing" if size is None else f"{size} bytes"
            raise self._damage(f"{path} is {state}, its card says {expected} bytes")
        if sample_digest(path) != card.sample_digest:
            raise self._damage(f"{path} has the size in its card, but its content has changed")

    def _damage(self, what: str) -> ShardError:
        stage = self.folder.parents[2]  # STAGE/SOURCE/SPLIT/shards
        return ShardError(f"{what}\n  do: remove {stage} and run again; all its sources are tokenised again")
