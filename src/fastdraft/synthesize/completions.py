"""What the target wrote: completions, and the folder of parquet shards that keeps them.

A row is known by its key, the hash of all that decides it. What is missing is found by key, never by count: shards may
be written in any order, by runs that were killed, with any batch size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from fastdraft.data.shards import Tokens
from fastdraft.system.cards import FILE as CARD
from fastdraft.system.errors import ShardError
from fastdraft.system.files import atomic_write

LogProbabilities = npt.NDArray[np.float32]

COLUMNS = {
    "key": pa.string(),
    "index": pa.int32(),
    "temperature": pa.float64(),
    "top_k": pa.int32(),
    "top_p": pa.float64(),
    "prompt": pa.list_(pa.int32()),
    "tokens": pa.list_(pa.int32()),
}
# By the type of a log-probability.
SCHEMAS = {kind: pa.schema(COLUMNS | {"logp": pa.list_(pa.from_numpy_dtype(kind))}) for kind in ("float32", "float16")}
# Ids of a vocabulary of up to so many rows take two bytes; those of a larger one four.
SHORT_IDS = 1 << 16


def with_top(schema: Any, ids: Any) -> Any:
    """The schema of rows with the most likely tokens of each place, one place after the other."""
    return schema.append(pa.field("top_ids", pa.list_(ids))).append(pa.field("top_logp", pa.list_(pa.float16())))


# Of rows without, and with ids of two bytes or of four.
KNOWN = [
    known
    for schema in SCHEMAS.values()
    for known in (schema, with_top(schema, pa.uint16()), with_top(schema, pa.uint32()))
]


class SamplingParams(NamedTuple):
    """How the next token is chosen. Temperature 0 is greedy decoding, a distribution of its own; top_k 0 keeps all
    tokens.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt to complete under a distribution; `index` tells repeated samples of one prompt apart."""

    prompt: Tokens
    sampling: SamplingParams
    index: int = 0


class Top(NamedTuple):
    """(n,k) the most likely tokens at each place, and their log-probabilities at T = 1, before top-k and top-p."""

    ids: npt.NDArray[np.uint32]
    logp: npt.NDArray[np.float16]

    @property
    def known_tokens(self) -> int:
        """k"""
        return int(self.ids.shape[1])


# The least log-probability that is kept, above float16's own -65504: a token that the target excludes has -inf.
LEAST_LOGP = -6e4


@dataclass(frozen=True, eq=False)
class Completion:
    """One completion: (n) tokens and (n) log p of each under the distribution that it was sampled from, 0.0 where
    greedy.

    `logp` is empty where nobody knows it: rows that were recorded elsewhere. `top` is there where it was asked for.
    """

    key: str
    prompt: Tokens
    tokens: Tokens
    logp: LogProbabilities
    sampling: SamplingParams
    index: int = 0
    top: Top | None = None


def row_key(request: Request, max_new_tokens: int, seed: int, target_revision: str) -> str:
    """16 hex digits that stand for all that decides a completion."""
    sampling = float(request.sampling.temperature), request.sampling.top_k, float(request.sampling.top_p)
    content = [request.prompt.tolist(), sampling, max_new_tokens, request.index, seed, target_revision]
    return xxhash.xxh3_64_hexdigest(json.dumps(content).encode())


class Hashes:
    """A set of numbers of 64 bits, at 8 bytes each: the sorted ones in an array, the newest ones apart.

    One thread may add while others look: numbers move from the newest to the sorted ones, and are looked for so.
    """

    NEWEST = 1 << 16

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._newest: set[int] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._newest)

    def __contains__(self, number: int) -> bool:
        return bool(self.known(np.array([number], np.uint64))[0])

    def known(self, numbers_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """(N) which of the numbers are in the set."""
        newest_N = np.fromiter((number in self._newest for number in numbers_N.tolist()), np.bool_, len(numbers_N))
        older = self._sorted
        if not len(older):
            return newest_N
        place_N = np.searchsorted(older, numbers_N).clip(max=len(older) - 1)
        known_N: npt.NDArray[np.bool_] = newest_N | (older[place_N] == numbers_N)
        return known_N

    def add(self, numbers: Iterable[int]) -> None:
        """Some more."""
        more = np.fromiter(numbers, np.uint64)
        self._newest.update(more[~self.known(more)].tolist())
        if len(self._newest) >= self.NEWEST:
            newest = np.fromiter(self._newest, np.uint64, len(self._newest))
            self._sorted = np.sort(np.concatenate([self._sorted, newest]))
            self._newest = set()


class Keys:
    """A set of row keys, at 8 bytes each; threads as in `Hashes`."""

    def __init__(self) -> None:
        self._hashes = Hashes()

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, key: str) -> bool:
        return int(key, 16) in self._hashes

    def add(self, keys: Iterable[str]) -> None:
        """Some more keys."""
        self._hashes.add(int(key, 16) for key in keys)


class CompletionStore:
    """A folder of completions; a batch is one shard, there whole or not at all.

    Log-probabilities take 4 bytes, or 2 where they are only trained on (`float16`: p to about a thousandth of itself
    where it is a tenth, to a hundredth where it is 1e-9). They are read back as float32 either way.
    """

    def __init__(self, folder: Path, logp: Literal["float32", "float16"] = "float32") -> None:
        self.folder, self._logp = folder, logp

    def stored(self) -> Keys:
        """The keys of all completions that are stored; ShardError where a row is there twice."""
        found = Keys()
        for path in self._shards():
            keys = _read(path, ["key"])["key"].to_pylist()
            if twice := [key for key in keys if key in found]:
                raise _broken(path, f"{len(twice)} of its rows stand in other shards too, the first is {twice[0]}")
            found.add(keys)
        return found

    def keys(self) -> set[str]:
        """The keys of all completions that are stored."""
        return {key for path in self._shards() for key in _read(path, ["key"])["key"].to_pylist()}

    def shards(self) -> Iterator[list[Completion]]:
        """All completions, a shard at a time, the shards in the order of their names."""
        for path in self._shards():
            yield list(_rows(_read(path), path))

    def write(self, completions: Sequence[Completion]) -> None:
        """Add one shard."""
        name = xxhash.xxh3_64_hexdigest("".join(completion.key for completion in completions).encode())
        with atomic_write(self.folder / f"{name}.parquet") as part:
            pq.write_table(_table(completions, self._logp), part)

    def read(self, keys: Sequence[str] | None = None) -> list[Completion]:
        """The completions of these keys, in their order; otherwise all of them, in the order of their keys."""
        stored = {row.key: row for path in self._shards() for row in _rows(_read(path), path)}
        wanted = sorted(stored) if keys is None else keys
        missing = [key for key in wanted if key not in stored]
        if missing:
            raise ShardError(
                f"{self.folder} lacks {len(missing)} of {len(wanted)} completions, the first is {missing[0]}\n"
                f"  do: remove {_card(self.folder)} and run again: only what is missing is written"
            )
        return [stored[key] for key in wanted]

    def _shards(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))


def _table(completions: Sequence[Completion], logp: str) -> Any:
    """A shard; its rows have the most likely tokens, all or none."""
    kept = [row.top for row in completions if row.top is not None]
    if kept and len(kept) < len(completions):
        raise ValueError(f"{len(kept)} of {len(completions)} rows have their most likely tokens, wanted all or none")
    rows = [
        {"key": row.key, "index": row.index, "prompt": row.prompt, "tokens": row.tokens, "logp": _kept(row.logp, logp)}
        | row.sampling._asdict()
        for row in completions
    ]
    table = pa.Table.from_pylist(rows, SCHEMAS[logp])
    if not kept:
        return table
    ids = [top.ids.ravel() for top in kept]
    kind = np.uint16 if max(int(row.max()) for row in ids) < SHORT_IDS else np.uint32
    for name, values in (
        ("top_ids", [row.astype(kind) for row in ids]),
        ("top_logp", [top.logp.ravel() for top in kept]),
    ):
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
        table = table.append_column(name, pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(values))))
    return table


def _kept(logp: LogProbabilities, kind: str) -> npt.NDArray[Any]:
    """As they are stored: those of tokens that a target all but excludes no lower than float16 reaches."""
    return np.where(np.isfinite(logp), np.maximum(logp, LEAST_LOGP), logp).astype(kind)


def _read(path: Path, columns: list[str] | None = None) -> Any:
    """A shard's columns; all of them unless named."""
    try:
        with pq.ParquetFile(path) as file:
            if not any(file.schema_arrow.equals(schema) for schema in KNOWN):
                raise _broken(path, f"its columns are {file.schema_arrow.names}, wanted {KNOWN[0].names}")
            return file.read(columns)
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, str(error)) from error


def _rows(table: Any, path: Path) -> Iterator[Completion]:
    """The completions of a shard; ShardError at the first that cannot be."""
    scalars = [table[name].to_pylist() for name in ("key", "index", "temperature", "top_k", "top_p")]
    lists = [_arrays(table[name]) for name in ("prompt", "tokens", "logp")]
    tops = _tops(table, lists[1])
    for key, index, temperature, top_k, top_p, prompt, tokens, logp, top in zip(*scalars, *lists, tops, strict=True):
        fault = _fault(len(prompt), len(tokens), logp) or _top_fault(len(tokens), top)
        if fault:
            raise _broken(path, f"row {key} has {fault}")
        sampling = SamplingParams(temperature, top_k, top_p)
        ids = prompt.astype(np.int64), tokens.astype(np.int64)
        yield Completion(key, *ids, logp.astype(np.float32), sampling, index, top)


def _tops(table: Any, tokens: Sequence[npt.NDArray[Any]]) -> list[Top | None]:
    """The most likely tokens of each row, where the shard has them."""
    if "top_ids" not in table.column_names:
        return [None] * len(tokens)
    pairs = zip(_arrays(table["top_ids"]), _arrays(table["top_logp"]), tokens, strict=True)
    return [_top(ids, logp, max(len(row), 1)) for ids, logp, row in pairs]


def _top(ids: npt.NDArray[Any], logp: npt.NDArray[np.float16], tokens: int) -> Top:
    """One line for each token; all in one where they do not come out even, which is a fault."""
    lines = tokens if len(ids) == len(logp) and len(ids) % tokens == 0 else 1
    return Top(ids.reshape(lines, -1), logp.reshape(lines, -1))


def _top_fault(tokens: int, top: Top | None) -> str | None:
    """What is wrong with a row's most likely tokens, if anything is."""
    if top is None:
        return None
    if top.ids.shape != top.logp.shape or len(top.ids) != tokens:
        return f"{top.ids.size} most likely tokens and {top.logp.size} log-probabilities for {tokens} tokens"
    wrong = top.logp[~(np.isfinite(top.logp) & (top.logp <= 0))]
    return f"the log-probability {wrong[0]}, wanted a finite one, at most 0" if len(wrong) else None


def _arrays(column: Any) -> list[npt.NDArray[Any]]:
    """A column of lists as one array per row."""
    lists = column.combine_chunks()
    return np.split(np.array(lists.values), lists.offsets.to_numpy()[1:-1])  # a copy: torch warns of read-only arrays


def _fault(prompt_tokens: int, tokens: int, logp: LogProbabilities) -> str | None:
    """What is wrong with a row, if anything is."""
    if not prompt_tokens or not tokens:
        return f"a prompt of {prompt_tokens} and a completion of {tokens} tokens, wanted at least 1 of each"
    if len(logp) not in (0, tokens):
        return f"{len(logp)} log-probabilities for {tokens} tokens"
    wrong = logp[~(np.isfinite(logp) & (logp <= 0))]
    return f"the log-probability {wrong[0]}, wanted a finite one, at most 0" if len(wrong) else None


def _broken(path: Path, what: str) -> ShardError:
    return ShardError(
        f"{path} is no sound shard of completions: {what}\n"
        f"  do: remove it and {_card(path.parent)}, then run again: only its completions are written anew"
    )


def _card(folder: Path) -> Path:
    """The card of the stage that keeps this store: without it, the stage is not done."""
    return folder.parent / CARD
