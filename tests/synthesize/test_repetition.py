"""Loops: repeated n-grams are those that occurred earlier in the same text."""

import numpy as np

from fastdraft.synthesize.repetition import loops, pooled_repeats, repeats


def test_a_text_without_repetition_has_none() -> None:
    assert repeats(np.arange(100)).fraction == 0
    assert not loops(np.arange(100))


def test_the_first_occurrence_is_not_repeated() -> None:
    # 1 2 1 2 1: bigrams 12 21 12 21; the last two occurred earlier.
    assert repeats(np.array([1, 2, 1, 2, 1]), n=2).fraction == 0.5


def test_one_repeated_token_loops() -> None:
    assert repeats(np.full(20, 3)).fraction == 12 / 13
    assert loops(np.full(20, 3))


def test_a_text_loops_above_a_quarter() -> None:
    # 27 tokens have 20 8-grams; a phrase of 12 or 13 tokens that comes twice repeats 5 or 6 of them.
    texts = [np.concatenate([np.arange(27 - n), np.arange(n)]) for n in (12, 13)]
    assert [repeats(text).fraction for text in texts] == [5 / 20, 6 / 20]
    assert [loops(text) for text in texts] == [False, True]


def test_a_text_shorter_than_an_ngram_does_not_loop() -> None:
    assert repeats(np.zeros(7)).fraction == 0
    assert not loops(np.zeros(0))


def test_texts_are_pooled_but_not_compared_with_each_other() -> None:
    texts = [np.full(9, 3), np.arange(17), np.arange(17)]
    assert pooled_repeats(texts) == 1 / (2 + 10 + 10)
    assert pooled_repeats([]) == 0
