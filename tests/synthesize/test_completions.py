"""The store: rows by key, shards whole or absent, nothing unsound read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastdraft.synthesize.completions import Completion, CompletionStore, Request, SamplingParams, Top, row_key
from fastdraft.system.errors import ShardError

PROMPT = np.array([3, 5, 7])
SAMPLING = SamplingParams(0.6, 11, 0.9)


def completion(key: str, tokens: int = 5, **changed: object) -> Completion:
    logp = -np.arange(tokens, dtype=np.float32) / 7
    return replace(Completion(key, PROMPT, np.arange(tokens) + 2, logp, SAMPLING, 4), **changed)


@pytest.fixture
def store(tmp_path: Path) -> CompletionStore:
    return CompletionStore(tmp_path)


def test_a_key_changes_with_all_that_decides_a_completion_and_nothing_else() -> None:
    base = row_key(Request(PROMPT, SAMPLING), 13, 7, "r")
    assert base == row_key(Request(PROMPT.astype(np.int32), SamplingParams(0.6, 11, 0.9), 0), 13, 7, "r")
    assert row_key(Request(PROMPT, SamplingParams(1)), 13, 7, "r") == row_key(
        Request(PROMPT, SamplingParams(1.0)), 13, 7, "r"
    )
    others = [
        row_key(Request(PROMPT[:2], SAMPLING), 13, 7, "r"),
        row_key(Request(PROMPT, SamplingParams(0.8, 11, 0.9)), 13, 7, "r"),
        row_key(Request(PROMPT, SamplingParams(0.6, 12, 0.9)), 13, 7, "r"),
        row_key(Request(PROMPT, SamplingParams(0.6, 11, 1.0)), 13, 7, "r"),
        row_key(Request(PROMPT, SAMPLING, 1), 13, 7, "r"),
        row_key(Request(PROMPT, SAMPLING), 17, 7, "r"),
        row_key(Request(PROMPT, SAMPLING), 13, 8, "r"),
        row_key(Request(PROMPT, SAMPLING), 13, 7, "s"),
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
    assert (read.sampling, read.index) == (SAMPLING, 4)
    for name in ("prompt", "tokens", "logp"):
        assert getattr(read, name).dtype == getattr(rows[1], name).dtype
        np.testing.assert_array_equal(getattr(read, name), getattr(rows[1], name))


def test_a_log_probability_to_train_on_takes_two_bytes_and_comes_back_as_the_nearest(tmp_path: Path) -> None:
    """Both kinds stand side by side; what is no log-probability is no less a fault."""
    store, draw = CompletionStore(tmp_path, logp="float16"), np.random.default_rng(3)
    logp = np.concatenate([np.log(draw.random(997)), [0.0, -1e5]]).astype(np.float32)
    row, as_before = completion("a", len(logp), logp=logp), completion("b")
    store.write([row])
    (shard,) = tmp_path.glob("*.parquet")
    assert pq.read_schema(shard).field("logp").type.value_type.byte_width == 2
    CompletionStore(tmp_path).write([as_before])
    read, other = store.read(["a", "b"])
    assert read.logp.dtype == np.float32
    np.testing.assert_allclose(read.logp[:-1], logp[:-1], rtol=2**-11, atol=2**-25)
    np.testing.assert_allclose(np.exp(read.logp[:-1]), np.exp(logp[:-1]), rtol=5e-3)
    assert read.logp[-1] == np.float16(-6e4)
    np.testing.assert_array_equal(other.logp, as_before.logp)
    for wrong in (0.1, np.nan, -np.inf):
        broken = CompletionStore(tmp_path / str(wrong), logp="float16")
        broken.write([completion("a", logp=np.array([-1, wrong, -1, -1, -1], np.float32))])
        with pytest.raises(ShardError, match="has the log-probability"):
            broken.read()


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


def top(tokens: int, known: int = 3, first: int = 0) -> Top:
    ids = np.arange(tokens * known, dtype=np.uint32).reshape(tokens, known) + first
    return Top(ids, -(ids - first).astype(np.float16) / 8)


@pytest.mark.parametrize(("first", "kind"), [(0, np.uint16), (65_521, np.uint16), (65_522, np.uint32)])
def test_likeliest_tokens_come_back_as_they_were_in_the_bytes_they_need(store, first, kind) -> None:
    rows = [completion("a", 5, top=top(5, first=first)), completion("b", 2, top=top(2, first=first))]
    store.write(rows)
    store.write([completion("c", 3)])  # as a store of before has them
    for read, row in zip(store.read(["a", "b"]), rows, strict=True):
        assert (read.top.ids.dtype, read.top.logp.dtype) == (kind, np.float16)
        np.testing.assert_array_equal(read.top.ids, row.top.ids)
        np.testing.assert_array_equal(read.top.logp, row.top.logp)
    assert store.read(["c"])[0].top is None
    assert store.keys() == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (Top(np.arange(7, dtype=np.uint32)[None], -np.ones((1, 7), np.float16)), "7 most likely tokens"),
        (top(5)._replace(logp=-np.ones((5, 2), np.float16)), "15 most likely tokens and 10 log-probabilities"),
        (top(5)._replace(logp=np.ones((5, 3), np.float16)), "the log-probability 1.0"),
        (top(5)._replace(logp=np.full((5, 3), np.nan, np.float16)), "the log-probability nan"),
    ],
)
def test_likeliest_tokens_that_cannot_be_are_refused(store, broken, fault) -> None:
    store.write([completion("a", top=broken)])
    with pytest.raises(ShardError, match=rf"row a has {fault}[^\0]*\n  do: remove it"):
        store.read()


def test_a_shard_has_them_for_all_rows_or_none(store) -> None:
    with pytest.raises(ValueError, match="1 of 2 rows have their most likely tokens"):
        store.write([completion("a", top=top(5)), completion("b")])
