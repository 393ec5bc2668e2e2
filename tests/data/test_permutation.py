"""An epoch's order: every row once, by seed and epoch, spread evenly, and fixed for good."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdraft.data.permutation import MAX_STORED_SEQUENCES, Computed, permutation


def places(order: Computed, rows: int) -> list[int]:
    return [order[place] for place in range(rows)]


@given(rows=st.integers(1, 1500), key=st.lists(st.integers(0, 2**40), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_every_row_once(rows, key):
    assert sorted(places(Computed(rows, key), rows)) == list(range(rows))


def test_few_rows_are_in_numpys_order_and_many_in_a_computed_one():
    """Neither may change: a run that is resumed goes on in the order in which it began."""
    assert permutation(11, [7, 0, 3])[:].tolist() == np.random.default_rng([7, 0, 3]).permutation(11).tolist()
    assert isinstance(permutation(MAX_STORED_SEQUENCES, [7]), np.ndarray)
    many = permutation(MAX_STORED_SEQUENCES + 1, [7, 0, 3])
    assert isinstance(many, Computed)
    assert [many[place] for place in range(5)] == [830610, 2161457, 263670, 1935308, 925968]


@pytest.mark.parametrize("other", [[8, 0, 0], [7, 1, 0], [7, 0, 1]])
def test_seed_source_and_epoch_make_another_order(other):
    rows = 1009
    here, there = (places(Computed(rows, key), rows) for key in ([7, 0, 0], other))
    assert sum(a == b for a, b in zip(here, there, strict=True)) < 10  # about one by chance
    assert abs(np.corrcoef(here, there)[0, 1]) < 0.15


def test_rows_are_spread_evenly():
    """Chi-squared of the joint distribution of (tenth of the places, tenth of the rows): 81 degrees of freedom."""
    rows = 100_003
    order = np.array(places(Computed(rows, [7, 0, 0]), rows))
    counts = np.histogram2d(np.arange(rows), order, bins=10)[0]
    chi_squared = ((counts - rows / 100) ** 2 / (rows / 100)).sum()
    assert 40 < chi_squared < 135
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.02
    assert (np.abs(np.diff(order)) == 1).sum() < 12  # two neighbours by chance


def test_a_place_is_within_the_rows():
    with pytest.raises(AssertionError):
        Computed(7, [1])[7]
