"""Prefetching changes neither the batches nor the position after each, for any sizes and after any resumption."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdraft.data.document import WHOLE, Portion
from fastdraft.data.order import Mixture
from fastdraft.data.prefetch import PrefetchedMixture
from fastdraft.system.errors import ShardError


class Numbered:
    """Sequences that contain their own index."""

    def __init__(self, count: int) -> None:
        self.labels = count
        self.threads: list[str] = []

    def __len__(self) -> int:
        return self.labels

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.threads.append(threading.current_thread().name)
        return torch.tensor([index]), torch.tensor([index])


def mixture() -> Mixture:
    return Mixture({"a": Numbered(13), "b": Numbered(5)}, {"a": 0.7, "b": 0.3}, seed=7)


@given(
    calls=st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([WHOLE, Portion(0, 2), Portion(1, 2)]), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=50, deadline=None)
def test_the_same_batches_and_positions(calls):
    plain, prefetched = mixture(), PrefetchedMixture(mixture())
    assert (prefetched.names, prefetched.labels_per_sequence, prefetched.position) == (
        plain.names,
        plain.labels_per_sequence,
        plain.position,
    )
    for sequences, portion, resumed in calls:
        if resumed:  # as from a checkpoint
            position = prefetched.position
            prefetched.next_batch(sequences, portion)
            prefetched.position = position
        expected, batch = plain.next_batch(sequences, portion), prefetched.next_batch(sequences, portion)
        assert torch.equal(batch.inputs_BT, expected.inputs_BT)
        assert torch.equal(batch.labels_BT, expected.labels_BT)
        assert (batch.places, prefetched.position) == (expected.places, plain.position)


def test_the_next_batch_is_read_in_advance_in_another_thread():
    sequences = Numbered(31)
    prefetched = PrefetchedMixture(Mixture({"a": sequences}, {"a": 1.0}, seed=7))
    prefetched.next_batch(5)
    prefetched._drop_pending()  # waits for the batch that is being read
    assert len(sequences.threads) == 10
    assert threading.current_thread().name not in sequences.threads
    assert sum(prefetched.position) == 5


def test_an_error_is_raised_with_the_batch_that_has_it():
    class Short(Numbered):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            if len(self.threads) == 7:
                raise ShardError("gone")
            return super().__getitem__(index)

    prefetched = PrefetchedMixture(Mixture({"a": Short(31)}, {"a": 1.0}, seed=7))
    prefetched.next_batch(5)
    with pytest.raises(ShardError, match="gone"):
        prefetched.next_batch(5)
    assert prefetched.position == [5]
