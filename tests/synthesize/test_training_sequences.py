"""Completions as training rows."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdraft.data.order import IGNORED, Mixture, Record, unknown
from fastdraft.synthesize.completions import Completion, CompletionStore, SamplingParams, Top
from fastdraft.synthesize.training_sequences import CompletionRows, RecordedCompletions
from fastdraft.system.errors import CorpusError


def completion(prompt: list[int], tokens: list[int], key: str = "k") -> Completion:
    return Completion(key, np.array(prompt), np.array(tokens), np.zeros(len(tokens), np.float32), SamplingParams(0))


def test_labels_are_the_completion_alone_one_further_on(tmp_path: Path) -> None:
    rows = CompletionRows([[completion([2, 3, 5], [7, 11])]], 7, tmp_path)
    inputs_T, labels_T = rows.row(0)
    assert inputs_T.tolist() == [2, 3, 5, 7, 0, 0, 0]
    assert labels_T.tolist() == [IGNORED, IGNORED, 7, 11, IGNORED, IGNORED, IGNORED]
    assert (rows.rows, rows.cut) == (1, 0)


@pytest.mark.parametrize(("tokens", "cut"), [(4, 0), (5, 0), (6, 1)])
def test_what_does_not_fit_is_cut_and_counted(tokens: int, cut: int, tmp_path: Path) -> None:
    rows = CompletionRows([[completion([2, 3, 5], list(range(10, 10 + tokens)))]], 7, tmp_path)
    _, labels_T = rows.row(0)
    assert labels_T[2:].tolist() == [*range(10, 10 + min(tokens, 5)), *[IGNORED] * (5 - min(tokens, 5))]
    assert rows.cut == cut


def test_a_prompt_that_leaves_no_label_is_refused(tmp_path: Path) -> None:
    CompletionRows([[completion([1] * 7, [2])]], 7, tmp_path)
    with pytest.raises(CorpusError, match=r"a prompt of 8 tokens leaves no place .* of 7\n  do: raise"):
        CompletionRows([[completion([1] * 8, [2])]], 7, tmp_path)


def test_among_others_such_a_prompt_is_left_out_and_reported(tmp_path: Path) -> None:
    shards = [[completion([1] * 9, [2], "a"), completion([2], [3, 5], "b")], [completion([1] * 8, [2], "c")]]
    with pytest.warns(UserWarning, match=r"a prompt of 9 tokens .* of 7: 2 of 3 completions are left out"):
        rows = CompletionRows(shards, 7, tmp_path)
    assert (rows.rows, rows.labels, rows.cut) == (1, 2, 0)
    assert rows.row(0)[0][:2].tolist() == [2, 3]


def test_rows_are_a_source_of_the_mixture(tmp_path: Path) -> None:
    rows = CompletionRows([[completion([1, 2], [3], "a")], [completion([4, 5], [6], "b")]], 3, tmp_path)
    batch = Mixture({"completions": rows}, {"completions": 1.0}, seed=7).next_batch(2)
    trained = batch.labels_BT[batch.labels_BT != IGNORED]
    assert torch.equal(trained.sort().values, torch.tensor([3, 6]))


def various(count: int) -> list[Completion]:
    """Completions of all lengths, with or without log p and most likely tokens, their keys in no order."""
    draw, found = np.random.default_rng(7), []
    for number in range(count):
        prompt, tokens, sampling = (
            draw.integers(131, size=1 + number % 5),
            1 + number % 11,
            SamplingParams((0.0, 0.6, 1.0)[number % 3]),
        )
        logp = np.empty(0, np.float32) if number % 7 == 3 else -draw.random(tokens).astype(np.float32)
        known = 5 if number % 4 else 3
        ids = draw.integers(1 << 17, size=(tokens, known)).astype(np.uint32)
        top = Top(ids, -draw.random((tokens, known)).astype(np.float16)) if number // 13 % 2 else None
        key = f"{draw.integers(1 << 62):016x}"
        found.append(Completion(key, prompt, draw.integers(1 << 17, size=tokens), logp, sampling, number, top))
    return found


def as_record(row: Completion, tokens: int, known_tokens: int) -> Record:
    """From the definition, label by label."""
    found = unknown(tokens, known_tokens)
    for place in range(len(row.prompt) - 1, min(len(row.prompt) - 1 + len(row.tokens), tokens)):
        of_answer = place - len(row.prompt) + 1
        found.temperature_BT[place] = row.sampling.temperature
        if len(row.logp):
            found.logp_BT[place] = float(row.logp[of_answer])
        if row.top is not None and row.top.known_tokens == known_tokens:
            found.top_ids_BTK[place] = torch.tensor(row.top.ids[of_answer].astype(np.int64))
            found.top_logp_BTK[place] = torch.tensor(row.top.logp[of_answer].astype(np.float32))
    return found


def test_rows_read_from_disk_are_those_that_were_written_in_the_order_of_their_keys(tmp_path: Path) -> None:
    store, written = CompletionStore(tmp_path), various(97)
    for bare in (True, False):
        of_kind = [row for row in written if (row.top is None) == bare]
        for start in range(0, len(of_kind), 13):
            store.write(of_kind[start : start + 13])
    rows, plain = (kind(store.shards(), 11, tmp_path) for kind in (RecordedCompletions, CompletionRows))
    wanted = sorted(written, key=lambda row: row.key)
    assert (rows.rows, rows.known_tokens, rows.known) == (97, 5, sum(len(row.logp) > 0 for row in written))
    for number, row in enumerate(wanted):
        text = [*row.prompt, *row.tokens]
        inputs, labels = text[:-1][:11], [*[IGNORED] * (len(row.prompt) - 1), *row.tokens][:11]
        for found_T, true in zip(rows.row(number), (inputs, labels), strict=True):
            assert found_T[: len(true)].tolist() == true
        assert (rows.row(number)[1][len(labels) :] == IGNORED).all()
        assert all(map(torch.equal, rows.row(number), plain.row(number)))
        for found, true in zip(rows.record(number), as_record(row, 11, 5), strict=True):
            torch.testing.assert_close(found, true, rtol=0, atol=0, equal_nan=True)


def test_of_rows_with_one_key_the_last_stands(tmp_path: Path) -> None:
    first, last = completion([2, 3], [5, 7]), completion([2, 3], [11])
    rows = CompletionRows([[first, replace(first, key="j")], [last]], 7, tmp_path)
    assert [rows.row(number)[1].tolist()[1:3] for number in range(rows.rows)] == [[5, 7], [11, IGNORED]]


def test_a_store_without_rows_gives_none(tmp_path: Path) -> None:
    rows = RecordedCompletions(CompletionStore(tmp_path / "absent").shards(), 7, tmp_path / "absent")
    assert (rows.rows, rows.labels, rows.known, rows.known_tokens) == (0, 0, 0, 0)


def test_rows_leave_nothing_after_and_one_shard_in_memory(tmp_path: Path) -> None:
    alive: list[int] = []

    class Counted(list):
        def __init__(self, rows: list[Completion]) -> None:
            super().__init__(rows)
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    most = []

    def shards():
        for row in various(29):
            most.append(len(alive))
            yield Counted([row])

    rows = RecordedCompletions(shards(), 7, tmp_path)
    assert (rows.rows, max(most), len(alive)) == (29, 1, 0), "the last shard goes as the next is asked for"
    assert list(tmp_path.iterdir()) == []
    descriptor = rows._completions._file
    os.fstat(descriptor)
    del rows
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
