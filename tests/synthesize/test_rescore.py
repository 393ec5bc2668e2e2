"""Rescoring: log p under the stated distribution from one forward, and what it cannot score."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.synthesize.engine_transformers import generate
from fastdraft.synthesize.rescore import CONTEXT, OUTSIDE, rescored, rescorer

PROMPTS = [np.arange(length) * 7 % 131 for length in (3, 11, 5, 7, 2)]


def rows(target, sampling):
    coins = torch.from_numpy(np.random.default_rng(7).random((5, 13)))
    written = generate(target, PROMPTS, sampling, 13, frozenset({3}), coins)
    return [
        Completion(str(i), p, w.tokens, w.logp, sampling) for i, (p, w) in enumerate(zip(PROMPTS, written, strict=True))
    ]


@pytest.mark.parametrize("sampling", [SamplingParams(0), SamplingParams(1.0), SamplingParams(0.7, 13, 0.9)])
def test_rescored_rows_have_what_was_recorded_while_sampling(target, sampling):
    sampled = rows(target, sampling)
    shard = rescored(target, [replace(row, logp=np.empty(0, np.float32)) for row in sampled])
    assert not shard.refused
    for before, after in zip(sampled, shard.rows, strict=True):
        np.testing.assert_array_equal(after.tokens, before.tokens)
        np.testing.assert_allclose(after.logp, before.logp, atol=1e-4)
        assert after.logp.dtype == np.float32


def test_a_token_that_the_distribution_excludes_and_a_row_too_long_are_counted(target):
    sampled = rows(target, SamplingParams(0.7, 2))
    excluded = replace(sampled[0], tokens=np.arange(13))
    too_long = replace(sampled[1], tokens=np.ones(97, np.int64))
    shard = rescored(target, [excluded, sampled[2], too_long])
    assert [row.key for row in shard.rows] == ["2"]
    assert shard.refused == Counter({OUTSIDE: 1, CONTEXT: 1})


def test_raw_log_probabilities_stay_only_where_the_distribution_changes_nothing(target):
    plain, warped = rows(target, SamplingParams(1.0))[0], rows(target, SamplingParams(0.7))[1]

    def never():
        raise AssertionError("the target is not needed")

    assert list(rescorer("processed", True, never)([plain, warped]).rows) == [plain, warped]
    assert list(rescorer("raw", True, never)([plain]).rows) == [plain]
    kept, bare = rescorer("raw", False, never)([plain, warped]).rows
    assert (kept, len(bare.logp)) == (plain, 0)
    again = rescorer("raw", True, lambda: target)([replace(warped, logp=warped.logp - 1)]).rows[0]
    np.testing.assert_allclose(again.logp, warped.logp, atol=1e-4)
    no_number = replace(plain, logp=np.where(np.arange(len(plain.logp)) == 2, np.nan, plain.logp))
    assert len(rescorer("raw", False, never)([no_number]).rows[0].logp) == 0
    again = rescorer("raw", True, lambda: target)([no_number]).rows[0]
    np.testing.assert_allclose(again.logp, plain.logp, atol=1e-4)


def test_the_target_is_asked_for_likeliest_tokens_that_an_engine_did_not_give(target):
    coins = torch.from_numpy(np.random.default_rng(7).random((5, 13)))
    written = generate(target, PROMPTS, SamplingParams(0.7), 13, frozenset({3}), coins, top_logprobs=5)
    given = [
        Completion(str(i), p, w.tokens, w.logp, SamplingParams(0.7), top=w.top)
        for i, (p, w) in enumerate(zip(PROMPTS, written, strict=True))
    ]

    def never():
        raise AssertionError("the target is not needed")

    assert list(rescorer("processed", True, never, 5)(given).rows) == given
    bare = [replace(row, top=None) for row in given]
    for found, wanted in zip(rescorer("raw", True, lambda: target, 5)(bare).rows, given, strict=True):
        assert found.top.ids.shape == wanted.top.ids.shape
        np.testing.assert_allclose(found.top.logp.astype(float), wanted.top.logp.astype(float), atol=4e-3)
        np.testing.assert_allclose(found.logp, wanted.logp, atol=1e-4)


def test_greedy_rows_are_not_read_for_a_nought(target):
    greedy = rows(target, SamplingParams(0))[0]

    def never():
        raise AssertionError("the target is not needed")

    for logp, wanted in (("raw", True), ("raw", False), ("none", True)):
        (row,) = rescorer(logp, wanted, never)([replace(greedy, logp=greedy.logp - 1)]).rows
        assert row.logp.tolist() == [0.0] * len(row.tokens)


def test_likeliest_tokens_that_an_engine_gave_need_no_target_unless_log_p_does(target):
    coins = torch.from_numpy(np.random.default_rng(7).random((5, 13)))
    sampling_settings = [SamplingParams(0), SamplingParams(1.0), SamplingParams(0.7)]
    written = [
        generate(target, PROMPTS[:1], sampling, 13, frozenset({3}), coins, top_logprobs=5)[0]
        for sampling in sampling_settings
    ]
    given = [
        Completion(
            str(i), PROMPTS[0], w.tokens, w.logp - 1 if sampling.temperature != 1 else w.logp, sampling, top=w.top
        )
        for i, (w, sampling) in enumerate(zip(written, sampling_settings, strict=True))
    ]
    opened: list[int] = []

    def open_target():
        opened.append(1)
        return target

    greedy, plain, bare = rescorer("raw", False, open_target, 5)(given).rows
    assert (opened, plain, greedy.logp.any(), len(bare.logp)) == ([], given[1], False, 0)
    assert [row.top for row in (greedy, plain, bare)] == [row.top for row in given]
    assert list(rescorer("raw", True, open_target, 5)(given[1:2]).rows) == given[1:2]
    assert opened == []
    again = rescorer("raw", True, open_target, 5)(given).rows[-1]
    np.testing.assert_allclose(again.logp, written[2].logp, atol=1e-4)
    assert opened == [1]
