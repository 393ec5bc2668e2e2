"""The completion store: rows by key, shards whole or absent, invalid rows refused; and the keys of requests."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdraft.synthesize.completion_store import COLUMNS, KNOWN_SCHEMAS, CompletionStore, list_column, row_arrays
from fastdraft.synthesize.completions import Completion, Request, SamplingParams, TopTokens, request_key
from fastdraft.system.errors import ShardError

PROMPT = np.array([3, 5, 7])
SAMPLING = SamplingParams(0.6, 11, 0.9)


def completion(key: str, tokens: int = 5, **changed: object) -> Completion:
    logp = -np.arange(tokens, dtype=np.float32) / 7
    return replace(Completion(key, PROMPT, np.arange(tokens) + 2, logp, SAMPLING, 4), **changed)


def stored_keys(store: CompletionStore) -> set[str]:
    return {row.key for row in store.read()}


@pytest.fixture
def store(tmp_path: Path) -> CompletionStore:
    return CompletionStore(tmp_path)


def test_a_key_changes_with_everything_that_decides_a_completion_and_nothing_else() -> None:
    base = request_key(Request(PROMPT, SAMPLING), 13, 7, "r")
    assert base == request_key(Request(PROMPT.astype(np.int32), SamplingParams(0.6, 11, 0.9), 0), 13, 7, "r")
    assert request_key(Request(PROMPT, SamplingParams(1)), 13, 7, "r") == request_key(
        Request(PROMPT, SamplingParams(1.0)), 13, 7, "r"
    )
    changed = [
        request_key(Request(PROMPT[:2], SAMPLING), 13, 7, "r"),
        request_key(Request(PROMPT, SamplingParams(0.8, 11, 0.9)), 13, 7, "r"),
        request_key(Request(PROMPT, SamplingParams(0.6, 12, 0.9)), 13, 7, "r"),
        request_key(Request(PROMPT, SamplingParams(0.6, 11, 1.0)), 13, 7, "r"),
        request_key(Request(PROMPT, SAMPLING, 1), 13, 7, "r"),
        request_key(Request(PROMPT, SAMPLING), 17, 7, "r"),
        request_key(Request(PROMPT, SAMPLING), 13, 8, "r"),
        request_key(Request(PROMPT, SAMPLING), 13, 7, "s"),
    ]
    assert len({base, *changed}) == 9


def test_completions_are_read_in_the_order_of_keys(store: CompletionStore) -> None:
    rows = [completion("c", 2), completion("a", 5), completion("b", 3)]
    store.write(rows[:2])
    store.write(rows[2:])
    assert stored_keys(store) == {"a", "b", "c"}
    assert [row.key for row in store.read()] == ["a", "b", "c"]
    assert [row.key for row in store.read(["c", "a"])] == ["c", "a"]
    read = store.read(["a"])[0]
    assert (read.sampling, read.index) == (SAMPLING, 4)
    for name in ("prompt", "tokens", "logp"):
        assert getattr(read, name).dtype == getattr(rows[1], name).dtype
        np.testing.assert_array_equal(getattr(read, name), getattr(rows[1], name))


def test_float16_log_probabilities_are_rounded_to_the_nearest(tmp_path: Path) -> None:
    """A store may have shards of both types; invalid values are refused in either."""
    store, rng = CompletionStore(tmp_path, logp="float16"), np.random.default_rng(3)
    logp = np.concatenate([np.log(rng.random(997)), [0.0, -1e5]]).astype(np.float32)
    row, in_float32 = completion("a", len(logp), logp=logp), completion("b")
    store.write([row])
    (shard,) = tmp_path.glob("*.parquet")
    assert pq.read_schema(shard).field("logp").type.value_type.byte_width == 2
    CompletionStore(tmp_path).write([in_float32])
    read, read_float32 = store.read(["a", "b"])
    assert read.logp.dtype == np.float32
    np.testing.assert_allclose(read.logp[:-1], logp[:-1], rtol=2**-11, atol=2**-25)
    np.testing.assert_allclose(np.exp(read.logp[:-1]), np.exp(logp[:-1]), rtol=5e-3)
    assert read.logp[-1] == np.float16(-6e4)
    np.testing.assert_array_equal(read_float32.logp, in_float32.logp)
    for invalid in (0.1, np.nan, -np.inf):
        broken = CompletionStore(tmp_path / str(invalid), logp="float16")
        broken.write([completion("a", logp=np.array([-1, invalid, -1, -1, -1], np.float32))])
        with pytest.raises(ShardError, match="has the log-probability"):
            broken.read()


def test_an_empty_store_has_no_rows(store: CompletionStore) -> None:
    assert len(store.stored_keys()) == 0
    assert store.read() == []


def test_a_missing_row_is_named(store: CompletionStore) -> None:
    store.write([completion("a")])
    with pytest.raises(ShardError, match=r"1 of 2 completions, the first is b\n  do: .*card.json"):
        store.read(["a", "b"])


def test_an_unfinished_shard_is_ignored(store: CompletionStore) -> None:
    store.write([completion("a")])
    (store.folder / "0123.parquet.fastdraft-part").write_bytes(b"half")
    assert stored_keys(store) == {"a"}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (completion("a", logp=np.array([-1, -1, 0.1, -1, -1], np.float32)), "the log-probability 0.1"),
        (completion("a", logp=np.array([-1, np.nan, -1, -1, -1], np.float32)), "the log-probability nan"),
        (completion("a", logp=np.array([-1, -np.inf, -1, -1, -1], np.float32)), "the log-probability -inf"),
        (completion("a", logp=np.zeros(3, np.float32)), "3 log-probabilities for 5 tokens"),
        (completion("a", 0), "a completion of 0 tokens"),
        (completion("a", prompt=PROMPT[:0]), "a prompt of 0"),
    ],
)
def test_an_invalid_row_is_refused(store: CompletionStore, row: Completion, fault: str) -> None:
    store.write([completion("b"), row, completion("c")])
    with pytest.raises(ShardError, match=rf"row a has .*{fault}[^\0]*\n  do: .*card.json"):
        store.read()


def test_a_truncated_shard_is_refused(store: CompletionStore) -> None:
    store.write([completion("a")])
    (shard,) = store.folder.glob("*.parquet")
    shard.write_bytes(shard.read_bytes()[:-7])
    for read in (store.stored_keys, store.read):
        with pytest.raises(ShardError, match=r"\.parquet is not a valid shard[^\0]*\n  do: "):
            read()


def test_a_shard_with_other_columns_is_refused(store: CompletionStore) -> None:
    store.write([completion("a")])
    (shard,) = store.folder.glob("*.parquet")
    pq.write_table(pq.ParquetFile(shard).read().drop_columns(["logp"]), shard)
    with pytest.raises(ShardError, match="its columns are"):
        store.stored_keys()


def top(tokens: int, k: int = 3, first: int = 0) -> TopTokens:
    ids = np.arange(tokens * k, dtype=np.uint32).reshape(tokens, k) + first
    return TopTokens(ids, -(ids - first).astype(np.float16) / 8)


@pytest.mark.parametrize(("first", "dtype"), [(0, np.uint16), (65_521, np.uint16), (65_522, np.uint32)])
def test_top_tokens_are_stored_in_the_smallest_type_that_holds_their_ids(store, first, dtype) -> None:
    rows = [completion("a", 5, top=top(5, first=first)), completion("b", 2, top=top(2, first=first))]
    store.write(rows)
    store.write([completion("c", 3)])  # shards without top tokens are allowed too
    for read, row in zip(store.read(["a", "b"]), rows, strict=True):
        assert (read.top.ids.dtype, read.top.logp.dtype) == (dtype, np.float16)
        np.testing.assert_array_equal(read.top.ids, row.top.ids)
        np.testing.assert_array_equal(read.top.logp, row.top.logp)
    assert store.read(["c"])[0].top is None
    assert stored_keys(store) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (TopTokens(np.arange(7, dtype=np.uint32)[None], -np.ones((1, 7), np.float16)), "7 top tokens"),
        (top(5)._replace(logp=-np.ones((5, 2), np.float16)), "15 top tokens and 10 log-probabilities"),
        (top(5)._replace(logp=np.ones((5, 3), np.float16)), "the log-probability 1.0"),
        (top(5)._replace(logp=np.full((5, 3), np.nan, np.float16)), "the log-probability nan"),
    ],
)
def test_invalid_top_tokens_are_refused(store, broken, fault) -> None:
    store.write([completion("a", top=broken)])
    with pytest.raises(ShardError, match=rf"row a has {fault}[^\0]*\n  do: "):
        store.read()


def test_offsets_of_lists_pass_2_to_the_31() -> None:
    """The values are pages of zeros that nothing reads, so they take no memory."""
    lengths = [3, 2**31, 7]
    column = list_column(lengths, np.zeros(sum(lengths), np.uint8))
    assert [len(row) for row in row_arrays(pa.chunked_array([column]))] == lengths
    schemas = [field.type for schema in KNOWN_SCHEMAS for field in schema if field.name in ("top_ids", "logp")]
    assert len(schemas) >= 8
    assert all(pa.types.is_large_list(list_type) for list_type in schemas)


SOUND = [completion(f"{i:02x}", 5 + i, top=top(5 + i)) for i in range(17)]


def refused_or_read(store: CompletionStore) -> list[Completion] | None:
    """The rows; None if both readers, or the one of rows, refuse the shard with a ShardError."""
    try:
        store.stored_keys()
        return store.read()
    except ShardError:
        return None


@settings(max_examples=80, derandomize=True, deadline=None, database=None)
@given(st.integers(0, 10**9), st.integers(1, 64), st.integers(1, 255))
def test_flipped_bytes_are_refused_or_change_no_row(tmp_path_factory, place, length, flip) -> None:
    store = CompletionStore(tmp_path_factory.mktemp("store"))
    store.write(SOUND)
    (shard,) = store.folder.glob("*.parquet")
    content = bytearray(shard.read_bytes())
    place %= len(content)
    content[place : place + length] = bytes(byte ^ flip for byte in content[place : place + length])
    shard.write_bytes(content)
    for read, row in zip(refused_or_read(store) or [], SOUND, strict=False):
        assert (read.key, read.sampling, read.index) == (row.key, row.sampling, row.index)
        for name in ("prompt", "tokens", "logp"):
            np.testing.assert_array_equal(getattr(read, name), getattr(row, name))
        np.testing.assert_array_equal(read.top.ids, row.top.ids)
        np.testing.assert_array_equal(read.top.logp, row.top.logp)


@pytest.mark.parametrize("name", [*COLUMNS, "logp", "top_ids", "top_logp"])
def test_rows_without_a_value_are_refused(store, name) -> None:
    store.write(SOUND)
    (shard,) = store.folder.glob("*.parquet")
    table = pq.read_table(shard)
    column, kind = table[name].to_pylist(), table.schema.field(name).type
    for hole in [None] if isinstance(column[3], int | float | str) else [None, [None, *column[3][1:]]]:
        place = table.schema.get_field_index(name)
        pq.write_table(table.set_column(place, name, pa.array([*column[:3], hole, *column[4:]], kind)), shard)
        assert refused_or_read(store) is None


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (completion("not hex"), "the key 'not hex'"),
        (completion("1" * 17), "the key '1+'"),
        (replace(completion("a"), tokens=np.array([1, 2, -3, 4, 5])), "`tokens` that is no token id"),
        (completion("a", prompt=np.array([-1])), "`prompt` that is no token id"),
    ],
)
def test_keys_and_ids_are_checked(store, row, fault) -> None:
    store.write([row])
    with pytest.raises(ShardError, match=rf"{fault}[^\0]*\n  do: "):
        store.read()


def test_a_shard_has_top_tokens_for_all_rows_or_none(store) -> None:
    with pytest.raises(ValueError, match="1 of 2 completions"):
        store.write([completion("a", top=top(5)), completion("b")])
