"""Loops: repeated n-grams are those that occurred earlier in the same text."""

import numpy as np

from fastdraft.synthesize.repetition import loops, pooled_repeats, repeated_ngrams


def test_a_text_without_repetition_has_none() -> None:
    assert repeated_ngrams(np.arange(100)) == 0
    assert not loops(np.arange(100))


def test_the_first_occurrence_is_not_repeated() -> None:
    # 1 2 1 2 1: bigrams 12 21 12 21, of which the last two occurred earlier.
    assert repeated_ngrams(np.array([1, 2, 1, 2, 1]), n=2) == 0.5


def test_one_token_for_ever_loops() -> None:
    assert repeated_ngrams(np.full(20, 3)) == 12 / 13
    assert loops(np.full(20, 3))


def test_the_rule_is_more_than_a_quarter() -> None:
    # 27 tokens have 20 8-grams; one phrase of 12 or 13 tokens, said again, repeats 5 or 6 of them.
    said_again = [np.concatenate([np.arange(27 - n), np.arange(n)]) for n in (12, 13)]
    assert [repeated_ngrams(text) for text in said_again] == [5 / 20, 6 / 20]
    assert [loops(text) for text in said_again] == [False, True]


def test_a_text_shorter_than_an_ngram_does_not_loop() -> None:
    assert repeated_ngrams(np.zeros(7)) == 0
    assert not loops(np.zeros(0))


def test_several_texts_are_pooled_and_not_compared_with_each_other() -> None:
    texts = [np.full(9, 3), np.arange(17), np.arange(17)]
    assert pooled_repeats(texts) == 1 / (2 + 10 + 10)
    assert pooled_repeats([]) == 0
