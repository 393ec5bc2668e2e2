"""The order of an epoch: every sequence once, determined by seed and epoch, evenly spread, and never changed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdraft.data.permutation import MAX_STORED_SEQUENCES, FeistelPermutation, permutation


def numbers(permuted: FeistelPermutation, count: int) -> list[int]:
    return [permuted[index] for index in range(count)]


@given(count=st.integers(1, 1500), key=st.lists(st.integers(0, 2**40), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_every_number_once(count, key):
    assert sorted(numbers(FeistelPermutation(count, key), count)) == list(range(count))


def test_short_permutations_are_numpys_and_long_ones_computed():
    """Neither may change: a resumed run continues in the order in which it began."""
    assert permutation(11, [7, 0, 3])[:].tolist() == np.random.default_rng([7, 0, 3]).permutation(11).tolist()
    assert isinstance(permutation(MAX_STORED_SEQUENCES, [7]), np.ndarray)
    long = permutation(MAX_STORED_SEQUENCES + 1, [7, 0, 3])
    assert isinstance(long, FeistelPermutation)
    assert numbers(long, 5) == [830610, 2161457, 263670, 1935308, 925968]


@pytest.mark.parametrize("key", [[8, 0, 0], [7, 1, 0], [7, 0, 1]])
def test_seed_source_and_epoch_change_the_order(key):
    first, second = (numbers(FeistelPermutation(1009, seeds), 1009) for seeds in ([7, 0, 0], key))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10  # about one by chance
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


def test_numbers_are_spread_evenly():
    """Chi-squared of the joint distribution of (tenth of the indices, tenth of the numbers): 81 degrees of freedom."""
    count = 100_003
    order = np.array(numbers(FeistelPermutation(count, [7, 0, 0]), count))
    counts = np.histogram2d(np.arange(count), order, bins=10)[0]
    chi_squared = ((counts - count / 100) ** 2 / (count / 100)).sum()
    assert 40 < chi_squared < 135
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.02
    assert (np.abs(np.diff(order)) == 1).sum() < 12  # two neighbours by chance


def test_an_index_out_of_range():
    with pytest.raises(AssertionError):
        FeistelPermutation(7, [1])[7]
