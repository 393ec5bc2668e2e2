"""Rows and their order: every token a label once an epoch, shares that hold at every moment, a state of one number."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdraft.data.document import Portion
from fastdraft.data.order import IGNORED, Batch, Mixture, ShardRows
from fastdraft.data.permutation import MAX_STORED_SEQUENCES
from fastdraft.system.errors import ShardError


class Numbered:
    """Rows that say which they are: source and number."""

    def __init__(self, source: int, rows: int) -> None:
        self.rows, self.labels = rows, rows
        self._source = source

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([self._source, index]), torch.tensor([index, IGNORED])


def drawn(mixture: Mixture, rows: int) -> list[tuple[int, ...]]:
    return [tuple(row) for row in mixture.next_batch(rows).inputs_BT.tolist()]


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("length", [1, 5, 7, 53, 54])
def test_every_token_but_the_first_is_a_label_once_and_follows_its_input(make_shards, width, length):
    shards = make_shards([11, 2, 13, 1, 27], width)
    rows = ShardRows(shards, length)
    pairs = [rows.row(i) for i in range(rows.rows)]
    labels = torch.cat([labels for _, labels in pairs])
    inputs = torch.cat([inputs for inputs, _ in pairs])
    trained = labels != IGNORED
    assert labels[trained].tolist() == list(range(1, 54))
    assert (inputs[trained] == labels[trained] - 1).all()
    assert {len(row) for pair in pairs for row in pair} == {length}


@pytest.mark.parametrize("sizes", [[], [1]])
def test_a_source_of_one_token_has_no_row_and_reports_so(make_shards, sizes):
    mixture = Mixture({"tales": ShardRows(make_shards(sizes), 5)}, {"tales": 1.0}, seed=7)
    with pytest.raises(ShardError, match=r"`tales` holds no row[^\n]*\n  do: "):
        mixture.next_batch(1)


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
    rows=st.lists(st.sampled_from([1, 2, 3, 5, 7, 11]), min_size=5, max_size=5),
)
@settings(max_examples=50, deadline=None)
def test_fractions_hold_at_every_prefix(weights, rows):
    names = "abcde"[: len(weights)]
    mixture = Mixture(
        {name: Numbered(i, rows[i]) for i, name in enumerate(names)}, dict(zip(names, weights, strict=True)), seed=3
    )
    for count in range(1, 60):
        mixture.next_batch(1)
        for place, weight in zip(mixture.position, weights, strict=True):
            due = count * weight / sum(weights)
            assert due - max(len(weights) - 1, 1) - 1e-9 < place < due + 1 + 1e-9


def test_an_epoch_draws_every_row_once_and_the_next_in_another_order():
    mixture = Mixture({"a": Numbered(0, 31)}, {"a": 2.0}, seed=7)
    first, second = drawn(mixture, 31), drawn(mixture, 31)
    assert sorted(first) == sorted(second) == [(0, i) for i in range(31)]
    assert first != second


def test_order_is_a_function_of_seed_source_and_epoch():
    def stream(seed: int, weights: dict[str, float]) -> list[tuple[int, ...]]:
        return drawn(Mixture({"a": Numbered(0, 23), "b": Numbered(1, 23)}, weights, seed), 92)

    def of_source(source: int, rows: list[tuple[int, ...]]) -> list[int]:
        return [row[1] for row in rows if row[0] == source]

    even, uneven = stream(7, {"a": 1, "b": 1}), stream(7, {"b": 3, "a": 1})
    assert even == stream(7, {"b": 1, "a": 1})
    assert of_source(0, uneven) == of_source(0, even)[: len(of_source(0, uneven))]
    assert of_source(0, even) != of_source(0, stream(8, {"a": 1, "b": 1}))
    assert of_source(0, even) != of_source(1, even)


@given(before=st.integers(0, 70), batch=st.sampled_from([1, 2, 3, 5]))
@settings(max_examples=25, deadline=None)
def test_position_is_all_the_state(before, batch):
    def fresh() -> Mixture:
        return Mixture({"a": Numbered(0, 13), "b": Numbered(1, 5)}, {"a": 0.7, "b": 0.3}, seed=7)

    whole = fresh()
    if before:
        whole.next_batch(before)
    resumed = fresh()
    resumed.position = list(whole.position)
    for _ in range(3):
        assert drawn(resumed, batch) == drawn(whole, batch)


def test_the_stream_does_not_depend_on_how_it_is_batched():
    def fresh() -> Mixture:
        return Mixture({"a": Numbered(0, 13), "b": Numbered(1, 5)}, {"a": 2, "b": 1}, seed=7)

    whole, pieces = fresh(), fresh()
    cuts = [0, 1, 4, 9, 20, 31]
    assert drawn(whole, 31) == [row for low, high in pairwise(cuts) for row in drawn(pieces, high - low)]


@given(processes=st.sampled_from([1, 2, 3, 5]), batch=st.sampled_from([1, 2, 5, 6, 7]), weight=st.floats(0.05, 20))
@settings(max_examples=50, deadline=None)
def test_the_rows_of_all_processes_are_those_of_one(processes, batch, weight):
    """In the order of one process, once rows without labels (which make all portions as long) are left out."""

    def fresh() -> Mixture:
        return Mixture({"a": Numbered(0, 13), "b": Numbered(1, 5)}, {"a": weight, "b": 1}, seed=7)

    alone, together = fresh(), [fresh() for _ in range(processes)]
    for _ in range(4):
        whole = alone.next_batch(batch)
        portions = [mixture.next_batch(batch, Portion(i, processes)) for i, mixture in enumerate(together)]
        assert {portion.inputs_BT.shape for portion in portions} == {portions[0].inputs_BT.shape}
        rows = [row for rows in zip(*(trained(portion) for portion in portions), strict=True) for row in rows if row]
        assert rows == trained(whole)
        assert {portion.places for portion in portions} == {whole.places}
    assert all(mixture.position == alone.position for mixture in together)


def trained(batch: Batch) -> list[tuple[int, ...] | None]:
    """The rows of a batch; None for one without labels."""
    labelled = (batch.labels_BT != IGNORED).any(1).tolist()
    return [tuple(row) if some else None for row, some in zip(batch.inputs_BT.tolist(), labelled, strict=True)]


def test_a_source_of_many_rows_is_drawn_in_a_computed_order_and_resumed_in_it():
    """Above `MAX_STORED_SEQUENCES` nothing is kept: the whole epoch is checked in test_permutation.py."""
    rows = MAX_STORED_SEQUENCES + 7

    def fresh() -> Mixture:
        return Mixture({"web": Numbered(0, rows)}, {"web": 1.0}, seed=7)

    whole, resumed = fresh(), fresh()
    found = drawn(whole, 997)
    assert len(set(found)) == 997
    assert max(found)[1] > rows * 0.99
    resumed.position = [500]
    assert drawn(resumed, 497) == found[500:]
    whole.position = [rows - 1]
    last, first_again = drawn(whole, 2)
    assert last not in found
    assert first_again != found[0], "the next epoch has an order of its own"
