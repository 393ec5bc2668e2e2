"""Rescoring: log p under the distribution from one forward; rows that cannot be scored are counted."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.synthesize.generate import generate
from fastdraft.synthesize.rescore import EXCLUDED_TOKEN, TOO_LONG, rescore_rows, rescorer

PROMPTS = [np.arange(length) * 7 % 131 for length in (3, 11, 5, 7, 2)]


def never():
    raise AssertionError("the target is not needed")


def rows(target, sampling):
    coins = torch.from_numpy(np.random.default_rng(7).random((5, 13)))
    written = generate(target, PROMPTS, sampling, 13, frozenset({3}), coins)
    return [
        Completion(str(i), p, w.tokens, w.logp, sampling) for i, (p, w) in enumerate(zip(PROMPTS, written, strict=True))
    ]


@pytest.mark.parametrize("sampling", [SamplingParams(0), SamplingParams(1.0), SamplingParams(0.7, 13, 0.9)])
def test_rescored_log_probabilities_equal_those_recorded_while_sampling(target, sampling):
    sampled = rows(target, sampling)
    shard = rescore_rows(target, [replace(row, logp=np.empty(0, np.float32)) for row in sampled])
    assert not shard.refused
    for before, after in zip(sampled, shard.rows, strict=True):
        np.testing.assert_array_equal(after.tokens, before.tokens)
        np.testing.assert_allclose(after.logp, before.logp, atol=1e-4)
        assert after.logp.dtype == np.float32


def test_rows_with_an_excluded_token_or_beyond_the_context_are_counted(target):
    sampled = rows(target, SamplingParams(0.7, 2))
    excluded = replace(sampled[0], tokens=np.arange(13))
    too_long = replace(sampled[1], tokens=np.ones(97, np.int64))
    shard = rescore_rows(target, [excluded, sampled[2], too_long])
    assert [row.key for row in shard.rows] == ["2"]
    assert shard.refused == Counter({EXCLUDED_TOKEN: 1, TOO_LONG: 1})


def test_raw_log_probabilities_are_kept_only_if_equal_to_processed_ones(target):
    plain, warped = rows(target, SamplingParams(1.0))[0], rows(target, SamplingParams(0.7))[1]

    assert list(rescorer("processed", True, never)([plain, warped]).rows) == [plain, warped]
    assert list(rescorer("raw", True, never)([plain]).rows) == [plain]
    kept, without_logp = rescorer("raw", False, never)([plain, warped]).rows
    assert (kept, len(without_logp.logp)) == (plain, 0)
    rescored = rescorer("raw", True, lambda: target)([replace(warped, logp=warped.logp - 1)]).rows[0]
    np.testing.assert_allclose(rescored.logp, warped.logp, atol=1e-4)
    with_nan = replace(plain, logp=np.where(np.arange(len(plain.logp)) == 2, np.nan, plain.logp))
    assert len(rescorer("raw", False, never)([with_nan]).rows[0].logp) == 0
    rescored = rescorer("raw", True, lambda: target)([with_nan]).rows[0]
    np.testing.assert_allclose(rescored.logp, plain.logp, atol=1e-4)


def test_the_target_adds_missing_top_tokens(target):
    coins = torch.from_numpy(np.random.default_rng(7).random((5, 13)))
    written = generate(target, PROMPTS, SamplingParams(0.7), 13, frozenset({3}), coins, top_logprobs=5)
    complete = [
        Completion(str(i), p, w.tokens, w.logp, SamplingParams(0.7), top=w.top)
        for i, (p, w) in enumerate(zip(PROMPTS, written, strict=True))
    ]

    assert list(rescorer("processed", True, never, 5)(complete).rows) == complete
    without_top = [replace(row, top=None) for row in complete]
    for actual, expected in zip(rescorer("raw", True, lambda: target, 5)(without_top).rows, complete, strict=True):
        assert actual.top.ids.shape == expected.top.ids.shape
        np.testing.assert_allclose(actual.top.logp.astype(float), expected.top.logp.astype(float), atol=4e-3)
        np.testing.assert_allclose(actual.logp, expected.logp, atol=1e-4)


def test_greedy_rows_get_log_p_0_without_the_target(target):
    greedy = rows(target, SamplingParams(0))[0]

    for mode, rescore_logp in (("raw", True), ("raw", False), ("none", True)):
        (row,) = rescorer(mode, rescore_logp, never)([replace(greedy, logp=greedy.logp - 1)]).rows
        assert row.logp.tolist() == [0.0] * len(row.tokens)


def test_rows_with_top_tokens_need_the_target_only_for_log_p(target):
    coins = torch.from_numpy(np.random.default_rng(7).random((5, 13)))
    sampling_settings = [SamplingParams(0), SamplingParams(1.0), SamplingParams(0.7)]
    written = [
        generate(target, PROMPTS[:1], sampling, 13, frozenset({3}), coins, top_logprobs=5)[0]
        for sampling in sampling_settings
    ]
    complete = [
        Completion(
            str(i), PROMPTS[0], w.tokens, w.logp - 1 if sampling.temperature != 1 else w.logp, sampling, top=w.top
        )
        for i, (w, sampling) in enumerate(zip(written, sampling_settings, strict=True))
    ]
    opened: list[int] = []

    def open_target():
        opened.append(1)
        return target

    greedy, plain, warped = rescorer("raw", False, open_target, 5)(complete).rows
    assert (opened, plain, greedy.logp.any(), len(warped.logp)) == ([], complete[1], False, 0)
    assert [row.top for row in (greedy, plain, warped)] == [row.top for row in complete]
    assert list(rescorer("raw", True, open_target, 5)(complete[1:2]).rows) == complete[1:2]
    assert opened == []
    rescored = rescorer("raw", True, open_target, 5)(complete).rows[-1]
    np.testing.assert_allclose(rescored.logp, written[2].logp, atol=1e-4)
    assert opened == [1]
