"""Completions as training rows."""

import numpy as np
import pytest
import torch

from fastdraft.corpus.order import IGNORED, Mixture
from fastdraft.errors import CorpusError
from fastdraft.synthesize.completions import Completion, Law
from fastdraft.synthesize.rows import CompletionRows


def completion(prompt: list[int], tokens: list[int]) -> Completion:
    return Completion("k", np.array(prompt), np.array(tokens), np.zeros(len(tokens), np.float32), Law(0))


def test_labels_are_the_completion_alone_one_further_on() -> None:
    rows = CompletionRows([completion([2, 3, 5], [7, 11])], 7)
    inputs_T, labels_T = rows.row(0)
    assert inputs_T.tolist() == [2, 3, 5, 7, 0, 0, 0]
    assert labels_T.tolist() == [IGNORED, IGNORED, 7, 11, IGNORED, IGNORED, IGNORED]
    assert (rows.rows, rows.cut) == (1, 0)


@pytest.mark.parametrize(("tokens", "cut"), [(4, 0), (5, 0), (6, 1)])
def test_what_does_not_fit_is_cut_and_counted(tokens: int, cut: int) -> None:
    rows = CompletionRows([completion([2, 3, 5], list(range(10, 10 + tokens)))], 7)
    _, labels_T = rows.row(0)
    assert labels_T[2:].tolist() == [*range(10, 10 + min(tokens, 5)), *[IGNORED] * (5 - min(tokens, 5))]
    assert rows.cut == cut


def test_a_prompt_that_leaves_no_label_is_refused() -> None:
    CompletionRows([completion([1] * 7, [2])], 7)
    with pytest.raises(CorpusError, match=r"a prompt of 8 tokens leaves no place .* of 7\n  do: raise"):
        CompletionRows([completion([1] * 8, [2])], 7)


def test_among_others_such_a_prompt_is_left_out_and_told() -> None:
    with pytest.warns(UserWarning, match=r"a prompt of 9 tokens .* of 7: 2 of 3 completions are left out"):
        rows = CompletionRows([completion([1] * 9, [2]), completion([2], [3, 5]), completion([1] * 8, [2])], 7)
    assert (rows.rows, rows.labels, rows.cut) == (1, 2, 0)
    assert rows.row(0)[0][:2].tolist() == [2, 3]


def test_rows_are_a_source_of_the_mixture() -> None:
    rows = CompletionRows([completion([1, 2], [3]), completion([4, 5], [6])], 3)
    batch = Mixture({"completions": rows}, {"completions": 1.0}, seed=7).next_batch(2)
    trained = batch.labels_BT[batch.labels_BT != IGNORED]
    assert torch.equal(trained.sort().values, torch.tensor([3, 6]))
