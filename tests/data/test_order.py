"""Every token is a label once per epoch, the weights hold at every moment, and the position is the whole state."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdraft.data.document import Portion
from fastdraft.data.order import IGNORED, Batch, Mixture, ShardSequences
from fastdraft.data.permutation import MAX_STORED_SEQUENCES
from fastdraft.system.errors import ShardError


class Numbered:
    """Sequences that contain their source and index."""

    def __init__(self, source: int, count: int) -> None:
        self.labels = count
        self._source = source

    def __len__(self) -> int:
        return self.labels

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([self._source, index]), torch.tensor([index, IGNORED])


def drawn(mixture: Mixture, count: int) -> list[tuple[int, ...]]:
    """(source, index) of the next sequences."""
    return [tuple(sequence) for sequence in mixture.next_batch(count).inputs_BT.tolist()]


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("length", [1, 5, 7, 53, 54])
def test_every_token_but_the_first_is_a_label_once_and_follows_its_input(make_shards, width, length):
    shards = make_shards([11, 2, 13, 1, 27], width)
    sequences = ShardSequences(shards, length)
    pairs = [sequences[i] for i in range(len(sequences))]
    labels = torch.cat([labels for _, labels in pairs])
    inputs = torch.cat([inputs for inputs, _ in pairs])
    trained = labels != IGNORED
    assert labels[trained].tolist() == list(range(1, 54))
    assert (inputs[trained] == labels[trained] - 1).all()
    assert {len(tensor) for pair in pairs for tensor in pair} == {length}


@pytest.mark.parametrize("sizes", [[], [1]])
def test_a_source_of_one_token_has_no_sequence(make_shards, sizes):
    mixture = Mixture({"tales": ShardSequences(make_shards(sizes), 5)}, {"tales": 1.0}, seed=7)
    with pytest.raises(ShardError, match=r"`tales` has no training sequence[^\n]*\n  do: "):
        mixture.next_batch(1)


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
    counts=st.lists(st.sampled_from([1, 2, 3, 5, 7, 11]), min_size=5, max_size=5),
)
@settings(max_examples=50, deadline=None)
def test_weights_hold_at_every_prefix(weights, counts):
    names = "abcde"[: len(weights)]
    mixture = Mixture(
        {name: Numbered(i, counts[i]) for i, name in enumerate(names)}, dict(zip(names, weights, strict=True)), seed=3
    )
    for count in range(1, 60):
        mixture.next_batch(1)
        for position, weight in zip(mixture.position, weights, strict=True):
            expected = count * weight / sum(weights)
            assert expected - max(len(weights) - 1, 1) - 1e-9 < position < expected + 1 + 1e-9


def test_an_epoch_has_every_sequence_once_and_the_next_epoch_another_order():
    mixture = Mixture({"a": Numbered(0, 31)}, {"a": 2.0}, seed=7)
    first, second = drawn(mixture, 31), drawn(mixture, 31)
    assert sorted(first) == sorted(second) == [(0, i) for i in range(31)]
    assert first != second


def test_order_depends_only_on_seed_source_and_epoch():
    def stream(seed: int, weights: dict[str, float]) -> list[tuple[int, ...]]:
        return drawn(Mixture({"a": Numbered(0, 23), "b": Numbered(1, 23)}, weights, seed), 92)

    def of_source(source: int, sequences: list[tuple[int, ...]]) -> list[int]:
        return [index for own, index in sequences if own == source]

    even, uneven = stream(7, {"a": 1, "b": 1}), stream(7, {"b": 3, "a": 1})
    assert even == stream(7, {"b": 1, "a": 1})
    assert of_source(0, uneven) == of_source(0, even)[: len(of_source(0, uneven))]
    assert of_source(0, even) != of_source(0, stream(8, {"a": 1, "b": 1}))
    assert of_source(0, even) != of_source(1, even)


@given(before=st.integers(0, 70), batch=st.sampled_from([1, 2, 3, 5]))
@settings(max_examples=25, deadline=None)
def test_position_is_the_whole_state(before, batch):
    def fresh() -> Mixture:
        return Mixture({"a": Numbered(0, 13), "b": Numbered(1, 5)}, {"a": 0.7, "b": 0.3}, seed=7)

    whole = fresh()
    if before:
        whole.next_batch(before)
    resumed = fresh()
    resumed.position = list(whole.position)
    for _ in range(3):
        assert drawn(resumed, batch) == drawn(whole, batch)


def test_the_stream_does_not_depend_on_batch_sizes():
    def fresh() -> Mixture:
        return Mixture({"a": Numbered(0, 13), "b": Numbered(1, 5)}, {"a": 2, "b": 1}, seed=7)

    whole, pieces = fresh(), fresh()
    cuts = [0, 1, 4, 9, 20, 31]
    assert drawn(whole, 31) == [sequence for low, high in pairwise(cuts) for sequence in drawn(pieces, high - low)]


@given(processes=st.sampled_from([1, 2, 3, 5]), batch=st.sampled_from([1, 2, 5, 6, 7]), weight=st.floats(0.05, 20))
@settings(max_examples=50, deadline=None)
def test_the_sequences_of_all_processes_are_those_of_one(processes, batch, weight):
    """In the order of one process, without the filler sequences, which have no labels."""

    def fresh() -> Mixture:
        return Mixture({"a": Numbered(0, 13), "b": Numbered(1, 5)}, {"a": weight, "b": 1}, seed=7)

    alone, together = fresh(), [fresh() for _ in range(processes)]
    for _ in range(4):
        whole = alone.next_batch(batch)
        portions = [mixture.next_batch(batch, Portion(i, processes)) for i, mixture in enumerate(together)]
        assert {portion.inputs_BT.shape for portion in portions} == {portions[0].inputs_BT.shape}
        by_rank = zip(*(trained(portion) for portion in portions), strict=True)
        assert [sequence for sequences in by_rank for sequence in sequences if sequence] == trained(whole)
        assert {portion.places for portion in portions} == {whole.places}
    assert all(mixture.position == alone.position for mixture in together)


def trained(batch: Batch) -> list[tuple[int, ...] | None]:
    """The sequences of a batch; None for one without labels."""
    labelled = (batch.labels_BT != IGNORED).any(1).tolist()
    sequences = batch.inputs_BT.tolist()
    return [tuple(ids) if has_label else None for ids, has_label in zip(sequences, labelled, strict=True)]


def test_a_large_source_has_a_computed_order_and_is_resumed_in_it():
    """Above `MAX_STORED_SEQUENCES` no permutation is stored; test_permutation.py checks a whole epoch."""
    count = MAX_STORED_SEQUENCES + 7

    def fresh() -> Mixture:
        return Mixture({"web": Numbered(0, count)}, {"web": 1.0}, seed=7)

    whole, resumed = fresh(), fresh()
    first = drawn(whole, 997)
    assert len(set(first)) == 997
    assert max(first)[1] > count * 0.99
    resumed.position = [500]
    assert drawn(resumed, 497) == first[500:]
    whole.position = [count - 1]
    last, next_epoch = drawn(whole, 2)
    assert last not in first
    assert next_epoch != first[0], "the next epoch has another order"
