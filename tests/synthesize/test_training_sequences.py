"""Completions as training sequences."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdraft.data.order import IGNORED, Mixture, TeacherLogprobs, unknown_logprobs
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion, SamplingParams, TopTokens
from fastdraft.synthesize.training_sequences import CompletionSequences, TeacherCompletionSequences
from fastdraft.system.errors import CorpusError


def completion(prompt: list[int], tokens: list[int], key: str = "k") -> Completion:
    return Completion(key, np.array(prompt), np.array(tokens), np.zeros(len(tokens), np.float32), SamplingParams(0))


def test_labels_are_the_completion_shifted_by_one(tmp_path: Path) -> None:
    rows = CompletionSequences([[completion([2, 3, 5], [7, 11])]], 7, tmp_path)
    inputs_T, labels_T = rows[0]
    assert inputs_T.tolist() == [2, 3, 5, 7, 0, 0, 0]
    assert labels_T.tolist() == [IGNORED, IGNORED, 7, 11, IGNORED, IGNORED, IGNORED]
    assert (len(rows), rows.truncated) == (1, 0)


@pytest.mark.parametrize(("tokens", "truncated"), [(4, 0), (5, 0), (6, 1)])
def test_what_does_not_fit_is_truncated_and_counted(tokens: int, truncated: int, tmp_path: Path) -> None:
    rows = CompletionSequences([[completion([2, 3, 5], list(range(10, 10 + tokens)))]], 7, tmp_path)
    _, labels_T = rows[0]
    assert labels_T[2:].tolist() == [*range(10, 10 + min(tokens, 5)), *[IGNORED] * (5 - min(tokens, 5))]
    assert rows.truncated == truncated


def test_a_prompt_that_leaves_no_label_is_an_error(tmp_path: Path) -> None:
    CompletionSequences([[completion([1] * 7, [2])]], 7, tmp_path)
    with pytest.raises(CorpusError, match=r"a prompt of 8 tokens .* of 7\n  do: "):
        CompletionSequences([[completion([1] * 8, [2])]], 7, tmp_path)


def test_among_others_such_a_prompt_is_left_out_with_a_warning(tmp_path: Path) -> None:
    shards = [[completion([1] * 9, [2], "a"), completion([2], [3, 5], "b")], [completion([1] * 8, [2], "c")]]
    with pytest.warns(UserWarning, match=r"a prompt of 9 tokens .* of 7: 2 of 3 completions"):
        rows = CompletionSequences(shards, 7, tmp_path)
    assert (len(rows), rows.labels, rows.truncated) == (1, 2, 0)
    assert rows[0][0][:2].tolist() == [2, 3]


def test_completions_are_a_source_of_a_mixture(tmp_path: Path) -> None:
    rows = CompletionSequences([[completion([1, 2], [3], "a")], [completion([4, 5], [6], "b")]], 3, tmp_path)
    batch = Mixture({"completions": rows}, {"completions": 1.0}, seed=7).next_batch(2)
    trained = batch.labels_BT[batch.labels_BT != IGNORED]
    assert torch.equal(trained.sort().values, torch.tensor([3, 6]))


def various(count: int) -> list[Completion]:
    """Completions of many lengths with random keys, with or without log p and top tokens."""
    rng, completions = np.random.default_rng(7), []
    for number in range(count):
        prompt, tokens, sampling = (
            rng.integers(131, size=1 + number % 5),
            1 + number % 11,
            SamplingParams((0.0, 0.6, 1.0)[number % 3]),
        )
        logp = np.empty(0, np.float32) if number % 7 == 3 else -rng.random(tokens).astype(np.float32)
        k = 5 if number % 4 else 3
        ids = rng.integers(1 << 17, size=(tokens, k)).astype(np.uint32)
        top = TopTokens(ids, -rng.random((tokens, k)).astype(np.float16)) if number // 13 % 2 else None
        key = f"{rng.integers(1 << 62):016x}"
        completions.append(Completion(key, prompt, rng.integers(1 << 17, size=tokens), logp, sampling, number, top))
    return completions


def expected_logprobs(row: Completion, tokens: int, k: int) -> TeacherLogprobs:
    """By the definition, label by label."""
    expected = unknown_logprobs(tokens, k)
    for place in range(len(row.prompt) - 1, min(len(row.prompt) - 1 + len(row.tokens), tokens)):
        i = place - len(row.prompt) + 1
        expected.temperature_BT[place] = row.sampling.temperature
        if len(row.logp):
            expected.logp_BT[place] = float(row.logp[i])
        if row.top is not None and row.top.ids.shape[1] == k:
            expected.top_ids_BTK[place] = torch.tensor(row.top.ids[i].astype(np.int64))
            expected.top_logp_BTK[place] = torch.tensor(row.top.logp[i].astype(np.float32))
    return expected


def test_sequences_read_from_disk_are_the_completions_in_the_order_of_keys(tmp_path: Path) -> None:
    store, written = CompletionStore(tmp_path), various(97)
    for bare in (True, False):
        selected = [row for row in written if (row.top is None) == bare]
        for start in range(0, len(selected), 13):
            store.write(selected[start : start + 13])
    rows, plain = (kind(store.shards(), 11, tmp_path) for kind in (TeacherCompletionSequences, CompletionSequences))
    by_key = sorted(written, key=lambda row: row.key)
    assert (len(rows), rows.known_tokens, rows.with_logp) == (97, 5, sum(len(row.logp) > 0 for row in written))
    for number, row in enumerate(by_key):
        text = [*row.prompt, *row.tokens]
        inputs, labels = text[:-1][:11], [*[IGNORED] * (len(row.prompt) - 1), *row.tokens][:11]
        for actual_T, expected in zip(rows[number], (inputs, labels), strict=True):
            assert actual_T[: len(expected)].tolist() == expected
        assert (rows[number][1][len(labels) :] == IGNORED).all()
        assert all(map(torch.equal, rows[number], plain[number]))
        for actual, expected in zip(rows.teacher_logprobs(number), expected_logprobs(row, 11, 5), strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_of_completions_with_one_key_the_last_is_kept(tmp_path: Path) -> None:
    first, last = completion([2, 3], [5, 7]), completion([2, 3], [11])
    rows = CompletionSequences([[first, replace(first, key="j")], [last]], 7, tmp_path)
    assert [rows[number][1].tolist()[1:3] for number in range(len(rows))] == [[5, 7], [11, IGNORED]]


def test_an_empty_store_gives_no_sequences(tmp_path: Path) -> None:
    rows = TeacherCompletionSequences(CompletionStore(tmp_path / "absent").shards(), 7, tmp_path / "absent")
    assert (len(rows), rows.labels, rows.with_logp, rows.known_tokens) == (0, 0, 0, 0)


def test_one_shard_is_in_memory_and_no_file_remains(tmp_path: Path) -> None:
    alive: list[int] = []

    class Counted(list):
        def __init__(self, rows: list[Completion]) -> None:
            super().__init__(rows)
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    most_alive = []

    def shards():
        for row in various(29):
            most_alive.append(len(alive))
            yield Counted([row])

    rows = TeacherCompletionSequences(shards(), 7, tmp_path)
    assert (len(rows), max(most_alive), len(alive)) == (29, 1, 0), "a shard is freed before the next is read"
    assert list(tmp_path.iterdir()) == []
    descriptor = rows._completions._file
    os.fstat(descriptor)
    del rows
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
