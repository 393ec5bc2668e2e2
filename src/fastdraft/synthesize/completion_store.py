"""The store of completions: a folder of parquet shards.

Missing completions are found by key, not by count: shards may be written in any order, by interrupted runs, with any
batch size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from fastdraft.synthesize.completions import MIN_LOGP, Completion, SamplingParams, TopTokens
from fastdraft.synthesize.key_set import KeySet
from fastdraft.system.cards import FILE as CARD
from fastdraft.system.errors import ShardError
from fastdraft.system.files import atomic_write

# Lists have offsets of 8 bytes: with those of 4 a shard of 2^31 top tokens (8,192 rows of 1,024 tokens with 256 each)
# would wrap around.
COLUMNS = {
    "key": pa.string(),
    "index": pa.int32(),
    "temperature": pa.float64(),
    "top_k": pa.int32(),
    "top_p": pa.float64(),
    "prompt": pa.large_list(pa.int32()),
    "tokens": pa.large_list(pa.int32()),
}
KEY = re.compile("[0-9a-f]{1,16}")
# By the type of a log-probability.
SCHEMAS = {
    kind: pa.schema(COLUMNS | {"logp": pa.large_list(pa.from_numpy_dtype(kind))}) for kind in ("float32", "float16")
}
# A shard without top tokens, or with ids of two bytes or of four; the lists are flat, position after position.
KNOWN_SCHEMAS = list(SCHEMAS.values())
KNOWN_SCHEMAS += [
    schema.append(pa.field("top_ids", pa.large_list(ids))).append(pa.field("top_logp", pa.large_list(pa.float16())))
    for schema in SCHEMAS.values()
    for ids in (pa.uint16(), pa.uint32())
]


class CompletionStore:
    """A folder of completions. Each `write` adds one shard, written whole or not at all.

    Log-probabilities take 4 bytes, or 2 with `logp="float16"`: enough to train on, as the relative error of p is about
    1e-3 at p = 0.1 and 1e-2 at p = 1e-9. They are read as float32 either way.
    """

    def __init__(self, folder: Path, logp: Literal["float32", "float16"] = "float32") -> None:
        self.folder, self._logp = folder, logp

    def stored_keys(self) -> KeySet:
        """The keys of all stored completions; ShardError if one is stored twice."""
        stored = KeySet()
        for path in self._paths():
            keys = _keys(_read(path, ["key"]), path)
            if repeated := [key for key in keys if key in stored]:
                raise _broken(path, f"{len(repeated)} of its rows are in other shards too, the first is {repeated[0]}")
            stored.add(keys)
        return stored

    def shards(self) -> Iterator[list[Completion]]:
        """All completions, one shard at a time, in the order of the files' names."""
        for path in self._paths():
            yield list(_completions(_read(path), path))

    def write(self, completions: Sequence[Completion]) -> None:
        """Add one shard; all of its completions have top tokens, or none has."""
        name = xxhash.xxh3_64_hexdigest("".join(completion.key for completion in completions).encode())
        with atomic_write(self.folder / f"{name}.parquet") as part:
            pq.write_table(_table(completions, self._logp), part, write_page_checksum=True)

    def read(self, keys: Sequence[str] | None = None) -> list[Completion]:
        """The completions with these keys, in this order; by default all, by key. ShardError if any is missing."""
        stored = {row.key: row for shard in self.shards() for row in shard}
        wanted = sorted(stored) if keys is None else keys
        if missing := [key for key in wanted if key not in stored]:
            raise ShardError(
                f"{self.folder} lacks {len(missing)} of {len(wanted)} completions, the first is {missing[0]}\n"
                f"  do: remove {_card(self.folder)} and run again: only missing completions are generated"
            )
        return [stored[key] for key in wanted]

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))


def _table(completions: Sequence[Completion], logp: str) -> Any:
    tops = [row.top for row in completions if row.top is not None]
    if tops and len(tops) < len(completions):
        raise ValueError(f"{len(tops)} of {len(completions)} completions have top tokens, wanted all or none")
    rows = [
        {"key": row.key, "index": row.index, "prompt": row.prompt, "tokens": row.tokens}
        | {"logp": np.where(np.isfinite(row.logp), np.maximum(row.logp, MIN_LOGP), row.logp).astype(logp)}
        | row.sampling._asdict()
        for row in completions
    ]
    table = pa.Table.from_pylist(rows, SCHEMAS[logp])
    if not tops:
        return table
    id_type = np.uint16 if max(int(top.ids.max()) for top in tops) < 1 << 16 else np.uint32
    ids = np.concatenate([top.ids.ravel().astype(id_type) for top in tops])
    top_logp = np.concatenate([top.logp.ravel() for top in tops])
    table = table.append_column("top_ids", list_column([top.ids.size for top in tops], ids))
    return table.append_column("top_logp", list_column([top.logp.size for top in tops], top_logp))


def list_column(lengths: Sequence[int], values: npt.NDArray[Any]) -> Any:
    """A column with one list of values per row, of these lengths."""
    return pa.LargeListArray.from_arrays(np.cumsum([0, *lengths], dtype=np.int64), pa.array(values))


def _read(path: Path, columns: list[str] | None = None) -> Any:
    """The named columns of a shard, by default all."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if not any(file.schema_arrow.equals(schema) for schema in KNOWN_SCHEMAS):
                found, wanted = (
                    ", ".join(f"{field.name}: {field.type}" for field in schema)
                    for schema in (file.schema_arrow, KNOWN_SCHEMAS[0])
                )
                raise _broken(path, f"its columns are {found}; wanted {wanted}")
            table = file.read(columns)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _broken(path, str(error)) from error
    if missing := [name for name in table.column_names if table[name].null_count]:
        raise _broken(path, f"some of its rows have no {missing[0]}")
    return table


def _keys(table: Any, path: Path) -> list[str]:
    """The keys of a shard's rows; ShardError if one is not a hash."""
    keys: list[str] = table["key"].to_pylist()
    if invalid := [key for key in keys if not KEY.fullmatch(key)]:
        raise _broken(path, f"the key {invalid[0][:40]!r}, wanted hex digits")
    return keys


def _completions(table: Any, path: Path) -> Iterator[Completion]:
    """The completions of a shard; ShardError at the first invalid one."""
    scalars = [table[name].to_pylist() for name in ("index", "temperature", "top_k", "top_p")]
    lists = [row_arrays(table[name]) for name in ("prompt", "tokens", "logp")]
    has_top = "top_ids" in table.column_names
    tops = [row_arrays(table[name]) if has_top else [np.empty(0)] * len(table) for name in ("top_ids", "top_logp")]
    rows = zip(_keys(table, path), *scalars, *lists, *tops, strict=True)
    for key, index, *sampling, prompt, tokens, logp, top_ids, top_logp in rows:
        if fault := _fault(prompt, tokens, logp, top_ids, top_logp):
            raise _broken(path, f"row {key} has {fault}")
        shape = len(tokens), -1
        yield Completion(
            key=key,
            prompt=prompt.astype(np.int64),
            tokens=tokens.astype(np.int64),
            logp=logp.astype(np.float32),
            sampling=SamplingParams(*sampling),
            index=index,
            # Copies, because torch warns of arrays that are read-only.
            top=TopTokens(top_ids.reshape(shape).copy(), top_logp.reshape(shape).copy()) if has_top else None,
        )


def row_arrays(column: Any) -> list[npt.NDArray[Any]]:
    """A column of lists as one array per row, which are read-only views of the column."""
    arrays: list[npt.NDArray[Any]] = []
    for lists in column.chunks:
        values = lists.values.to_numpy(zero_copy_only=False)  # float64 with NaN if a value is null
        arrays += [values[start:stop] for start, stop in pairwise(lists.offsets.to_numpy())]
    return arrays


def _fault(
    prompt: npt.NDArray[Any],
    tokens: npt.NDArray[Any],
    logp: npt.NDArray[Any],
    top_ids: npt.NDArray[Any],
    top_logp: npt.NDArray[Any],
) -> str | None:
    """Why a row is invalid; None if it is valid."""
    if not len(prompt) or not len(tokens):
        return f"a prompt of {len(prompt)} and a completion of {len(tokens)} tokens, wanted at least 1 of each"
    if len(logp) not in (0, len(tokens)):
        return f"{len(logp)} log-probabilities for {len(tokens)} tokens"
    if len(top_ids) != len(top_logp) or len(top_ids) % len(tokens):
        return f"{len(top_ids)} top tokens and {len(top_logp)} log-probabilities for {len(tokens)} tokens"
    for name, ids in (("prompt", prompt), ("tokens", tokens), ("top_ids", top_ids)):
        # A null makes numpy convert the ids to float.
        if len(ids) and (ids.dtype.kind not in "iu" or ids.min() < 0):
            return f"a value in `{name}` that is no token id"
    for values in (logp, top_logp):
        invalid = values[~(np.isfinite(values) & (values <= 0))]
        if len(invalid):
            return f"the log-probability {invalid[0]}, wanted a finite one, at most 0"
    return None


def _broken(path: Path, fault: str) -> ShardError:
    return ShardError(
        f"{path} is not a valid shard of completions: {fault}\n"
        f"  do: remove it and {_card(path.parent)}, then run again: only its completions are generated again"
    )


def _card(folder: Path) -> Path:
    """The card of the stage that owns this store; without it, the stage counts as not done."""
    return folder.parent / CARD
