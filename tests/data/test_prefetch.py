"""One batch ahead: the same batches, the same position after each, whatever is asked for and whenever it is resumed."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdraft.data.document import WHOLE, Portion
from fastdraft.data.order import Mixture
from fastdraft.data.prefetch import Ahead
from fastdraft.system.errors import ShardError


class Numbered:
    """Rows that say which they are."""

    def __init__(self, rows: int) -> None:
        self.rows, self.labels = rows, rows
        self.threads: list[str] = []

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        self.threads.append(threading.current_thread().name)
        return torch.tensor([index]), torch.tensor([index])


def mixture() -> Mixture:
    return Mixture({"a": Numbered(13), "b": Numbered(5)}, {"a": 0.7, "b": 0.3}, seed=7)


@given(
    asked=st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([WHOLE, Portion(0, 2), Portion(1, 2)]), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=50, deadline=None)
def test_the_same_batches_and_positions(asked):
    plain, ahead = mixture(), Ahead(mixture())
    assert (ahead.names, ahead.labels_per_row, ahead.position) == (plain.names, plain.labels_per_row, plain.position)
    for sequences, portion, resumed in asked:
        if resumed:  # as from a checkpoint: another object, or the same one set back
            position = ahead.position
            ahead.next_batch(sequences, portion)
            ahead.position = position
        wanted, found = plain.next_batch(sequences, portion), ahead.next_batch(sequences, portion)
        assert torch.equal(found.inputs_BT, wanted.inputs_BT)
        assert torch.equal(found.labels_BT, wanted.labels_BT)
        assert (found.places, ahead.position) == (wanted.places, plain.position)


def test_the_next_batch_is_under_way_before_it_is_asked_for():
    rows = Numbered(31)
    ahead = Ahead(Mixture({"a": rows}, {"a": 1.0}, seed=7))
    ahead.next_batch(5)
    ahead._forget()  # waits for it
    assert len(rows.threads) == 10
    assert threading.current_thread().name not in rows.threads
    assert sum(ahead.position) == 5


def test_an_error_comes_with_the_batch_that_it_is_of():
    class Short(Numbered):
        def row(self, index: int) -> tuple[Tensor, Tensor]:
            if len(self.threads) == 7:
                raise ShardError("gone")
            return super().row(index)

    ahead = Ahead(Mixture({"a": Short(31)}, {"a": 1.0}, seed=7))
    ahead.next_batch(5)
    with pytest.raises(ShardError, match="gone"):
        ahead.next_batch(5)
    assert ahead.position == [5]
