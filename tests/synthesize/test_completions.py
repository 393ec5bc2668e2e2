"""The store: rows by key, shards whole or absent, nothing unsound read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastdraft.errors import ShardError
from fastdraft.synthesize.completions import Completion, CompletionStore, Law, Request, row_key

PROMPT = np.array([3, 5, 7])
LAW = Law(0.6, 11, 0.9)


def completion(key: str, tokens: int = 5, **changed: object) -> Completion:
    logp = -np.arange(tokens, dtype=np.float32) / 7
    return replace(Completion(key, PROMPT, np.arange(tokens) + 2, logp, LAW, 4), **changed)


@pytest.fixture
def store(tmp_path: Path) -> CompletionStore:
    return CompletionStore(tmp_path)


def test_a_key_changes_with_all_that_decides_a_completion_and_nothing_else() -> None:
    base = row_key(Request(PROMPT, LAW), 13, 7, "r")
    assert base == row_key(Request(PROMPT.astype(np.int32), Law(0.6, 11, 0.9), 0), 13, 7, "r")
    assert row_key(Request(PROMPT, Law(1)), 13, 7, "r") == row_key(Request(PROMPT, Law(1.0)), 13, 7, "r")
    others = [
        row_key(Request(PROMPT[:2], LAW), 13, 7, "r"),
        row_key(Request(PROMPT, Law(0.8, 11, 0.9)), 13, 7, "r"),
        row_key(Request(PROMPT, Law(0.6, 12, 0.9)), 13, 7, "r"),
        row_key(Request(PROMPT, Law(0.6, 11, 1.0)), 13, 7, "r"),
        row_key(Request(PROMPT, LAW, 1), 13, 7, "r"),
        row_key(Request(PROMPT, LAW), 17, 7, "r"),
        row_key(Request(PROMPT, LAW), 13, 8, "r"),
        row_key(Request(PROMPT, LAW), 13, 7, "s"),
    ]
    assert len({base, *others}) == 9


def test_what_was_written_is_read_in_the_order_of_the_keys(store: CompletionStore) -> None:
    rows = [completion("c", 2), completion("a", 5), completion("b", 3)]
    store.write(rows[:2])
    store.write(rows[2:])
    assert store.keys() == {"a", "b", "c"}
    assert [row.key for row in store.read()] == ["a", "b", "c"]
    assert [row.key for row in store.read(["c", "a"])] == ["c", "a"]
    read = store.read(["a"])[0]
    assert (read.law, read.index) == (LAW, 4)
    for name in ("prompt", "tokens", "logp"):
        assert getattr(read, name).dtype == getattr(rows[1], name).dtype
        np.testing.assert_array_equal(getattr(read, name), getattr(rows[1], name))


def test_an_empty_store_has_no_rows(store: CompletionStore) -> None:
    assert store.keys() == set()
    assert store.read() == []


def test_a_row_that_is_missing_is_named(store: CompletionStore) -> None:
    store.write([completion("a")])
    with pytest.raises(
        ShardError, match=r"lacks 1 of 2 completions, the first is b\n  do: remove .*card.json and run again"
    ):
        store.read(["a", "b"])


def test_a_shard_that_was_not_finished_does_not_exist(store: CompletionStore) -> None:
    store.write([completion("a")])
    (store.folder / "0123.parquet.part").write_bytes(b"half")
    assert store.keys() == {"a"}


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
def test_a_row_that_cannot_be_is_refused(store: CompletionStore, row: Completion, fault: str) -> None:
    store.write([completion("b"), row, completion("c")])
    with pytest.raises(
        ShardError, match=rf"row a has .*{fault}[^\0]*\n  do: remove it and .*card.json, then run again"
    ):
        store.read()


def test_a_truncated_shard_is_refused(store: CompletionStore) -> None:
    store.write([completion("a")])
    (shard,) = store.folder.glob("*.parquet")
    shard.write_bytes(shard.read_bytes()[:-7])
    for read in (store.keys, store.read):
        with pytest.raises(ShardError, match=r"no sound shard of completions: [^\0]*\n  do: remove it and"):
            read()


def test_a_shard_with_other_columns_is_refused(store: CompletionStore) -> None:
    store.write([completion("a")])
    (shard,) = store.folder.glob("*.parquet")
    pq.write_table(pq.ParquetFile(shard).read().drop_columns(["logp"]), shard)
    with pytest.raises(ShardError, match="its columns are"):
        store.keys()
