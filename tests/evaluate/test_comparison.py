"""Two drafts compared: the difference of their results, with the interval that pairing gives."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from fastdraft.evaluate.comparison import Side, compare
from fastdraft.evaluate.one_pass import Subject, acceptances, pooled, resampled_prompts, scored
from fastdraft.maths import acceptance
from fastdraft.results.evaluation import Gap
from fastdraft.synthesize.completions import Completion, SamplingParams

GAMMAS, RESAMPLES, SEED = (1, 2, 5), 300, 7


@pytest.fixture(scope="module")
def target(tiny_llama: Callable[..., LlamaForCausalLM]) -> LlamaForCausalLM:
    return tiny_llama(7)


@pytest.fixture(scope="module", params=[SamplingParams(0), SamplingParams(0.7)], ids=["greedy", "sampled"])
def rows(target: LlamaForCausalLM, completed: Callable, request: pytest.FixtureRequest) -> list[Completion]:
    return completed(target, [(np.arange(3 + i % 5) * 7 + i) % 131 for i in range(23)], request.param, 19)


@pytest.fixture(scope="module")
def side(target: LlamaForCausalLM, rows: list[Completion], perturbed: Callable) -> Callable[..., Side]:
    def build(noise: float, c: float) -> Side:
        found = acceptances(perturbed(target, noise, 3), rows)
        return Side(found, scored(found, rows, GAMMAS, Subject(f"{noise}", "task", c), RESAMPLES, SEED))

    return build


def test_a_draft_is_as_good_as_itself(side: Callable[..., Side]) -> None:
    ours = side(0.1, 0.03)
    found = compare(ours, ours, RESAMPLES, SEED)
    gaps = [
        found.alpha,
        found.best_mbsu,
        *(at.mbsu for at in found.gammas),
        *(at.acceptance_rate for at in found.gammas),
    ]
    assert {(gap.value, gap.low, gap.high, gap.more_than_noise) for gap in gaps} == {(0, 0, 0, False)}


def test_one_prompt_reports_nothing_of_others() -> None:
    assert not Gap(value=0.3, low=0.3, high=0.3).more_than_noise
    assert Gap(value=0.3, low=0.1, high=0.4).more_than_noise
    assert Gap(value=-0.3, low=-0.4, high=-0.1).more_than_noise


def test_differences_are_those_of_the_results(side: Callable[..., Side]) -> None:
    ours, theirs = side(0.1, 0.03), side(0.3, 0.01)
    found = compare(ours, theirs, RESAMPLES, SEED)
    left, right = ours.result, theirs.result
    assert found.other == "0.3"
    assert found.alpha.value == pytest.approx(left.alpha.value - right.alpha.value)
    assert [at.gamma for at in found.gammas] == [*GAMMAS]
    for at, one, two in zip(found.gammas, left.gammas, right.gammas, strict=True):
        for rate in ("acceptance_rate", "block_efficiency", "mbsu"):
            gap = getattr(at, rate)
            assert gap.value == pytest.approx(getattr(one, rate).value - getattr(two, rate).value)
            assert gap.low <= gap.value <= gap.high
    assert found.alpha.more_than_noise, "a draft with three times the noise is worse"
    assert found.best_gammas == (left.best_gamma, right.best_gamma)
    assert found.alpha.low > 0


def test_pairs_are_resampled_together(side: Callable[..., Side]) -> None:
    """Against brute force, one resample after another; unpaired, the interval is wider."""
    ours, theirs = side(0.1, 0.03), side(0.13, 0.03)
    sums = [acceptance.accept_sums(*each.found) for each in (ours, theirs)]
    lengths_B = ours.found.lengths_B
    gaps = []
    for picks in resampled_prompts(23, RESAMPLES, SEED).tolist():
        tokens = sum(float(lengths_B[i]) for i in picks)
        gaps.append(sum(float(sums[0][i] - sums[1][i]) for i in picks) / tokens)
    low, high = np.quantile(gaps, [0.025, 0.975])
    found = compare(ours, theirs, RESAMPLES, SEED).alpha
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    alone = [pooled(each, lengths_B, resampled_prompts(23, RESAMPLES, SEED)) for each in sums]
    assert found.high - found.low < np.hypot(*(each.high - each.low for each in alone))


def test_other_completions_are_refused(side: Callable[..., Side]) -> None:
    ours = side(0.1, 0.03)
    shorter = replace_lengths(ours)
    with pytest.raises(ValueError, match="wanted the same"):
        compare(ours, shorter, RESAMPLES, SEED)


def replace_lengths(side: Side) -> Side:
    found = side.found._replace(lengths_B=torch.full_like(side.found.lengths_B, 5))
    return side._replace(found=found)


def test_scoring_counts_its_texts(target: LlamaForCausalLM, rows: list[Completion]) -> None:
    counted: list[int] = []
    acceptances(target, [replace(row) for row in rows], counted.append)
    assert sum(counted) == len(rows)
