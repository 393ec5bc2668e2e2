"""Comparison of two drafts: the difference of their results, with a paired bootstrap interval."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from fastdraft.evaluation.comparison import ScoredDraft, compare
from fastdraft.evaluation.one_pass import acceptances, pooled, resampled_prompts, task_result
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
def scored(target: LlamaForCausalLM, rows: list[Completion], perturbed: Callable) -> Callable[..., ScoredDraft]:
    def build(noise: float, c: float) -> ScoredDraft:
        accepted = acceptances(perturbed(target, noise, 3), rows)
        options = {"task": "task", "c": c, "resamples": RESAMPLES, "seed": SEED}
        return ScoredDraft(accepted, task_result(accepted, rows, GAMMAS, stage=f"{noise}", **options))

    return build


def test_a_draft_does_not_differ_from_itself(scored: Callable[..., ScoredDraft]) -> None:
    draft = scored(0.1, 0.03)
    comparison = compare(draft, draft, RESAMPLES, SEED)
    gaps = [
        comparison.alpha,
        comparison.best_mbsu,
        *(at.mbsu for at in comparison.gammas),
        *(at.acceptance_rate for at in comparison.gammas),
    ]
    assert {(gap.value, gap.low, gap.high, gap.more_than_noise) for gap in gaps} == {(0, 0, 0, False)}


def test_the_interval_of_a_single_prompt_is_no_evidence() -> None:
    assert not Gap(value=0.3, low=0.3, high=0.3).more_than_noise
    assert Gap(value=0.3, low=0.1, high=0.4).more_than_noise
    assert Gap(value=-0.3, low=-0.4, high=-0.1).more_than_noise


def test_differences_equal_the_differences_of_the_results(scored: Callable[..., ScoredDraft]) -> None:
    draft, baseline = scored(0.1, 0.03), scored(0.3, 0.01)
    comparison = compare(draft, baseline, RESAMPLES, SEED)
    left, right = draft.result, baseline.result
    assert comparison.other == "0.3"
    assert comparison.alpha.value == pytest.approx(left.alpha.value - right.alpha.value)
    assert [at.gamma for at in comparison.gammas] == [*GAMMAS]
    for at, one, two in zip(comparison.gammas, left.gammas, right.gammas, strict=True):
        for rate in ("acceptance_rate", "block_efficiency", "mbsu"):
            gap = getattr(at, rate)
            assert gap.value == pytest.approx(getattr(one, rate).value - getattr(two, rate).value)
            assert gap.low <= gap.value <= gap.high
    assert comparison.alpha.more_than_noise, "a draft with three times the noise is worse"
    assert comparison.best_gammas == (left.best_gamma, right.best_gamma)
    assert comparison.alpha.low > 0


def test_prompts_are_resampled_in_pairs(scored: Callable[..., ScoredDraft]) -> None:
    """Compared with brute force, one resample at a time; the unpaired interval is wider."""
    draft, baseline = scored(0.1, 0.03), scored(0.13, 0.03)
    sums = [acceptance.accept_sums(*each.acceptances) for each in (draft, baseline)]
    lengths_B = draft.acceptances.lengths_B
    gaps = []
    for picks in resampled_prompts(23, RESAMPLES, SEED).tolist():
        tokens = sum(float(lengths_B[i]) for i in picks)
        gaps.append(sum(float(sums[0][i] - sums[1][i]) for i in picks) / tokens)
    low, high = acceptance.interval(torch.tensor(gaps, dtype=torch.float64), 23)
    gap = compare(draft, baseline, RESAMPLES, SEED).alpha
    assert (gap.low, gap.high) == (pytest.approx(low), pytest.approx(high))
    unpaired = [pooled(each, lengths_B, resampled_prompts(23, RESAMPLES, SEED)) for each in sums]
    assert gap.high - gap.low < np.hypot(*(each.high - each.low for each in unpaired))


def test_different_completions_are_refused(scored: Callable[..., ScoredDraft]) -> None:
    draft = scored(0.1, 0.03)
    lengths_B = torch.full_like(draft.acceptances.lengths_B, 5)
    shorter = draft._replace(acceptances=draft.acceptances._replace(lengths_B=lengths_B))
    with pytest.raises(ValueError, match="different completions"):
        compare(draft, shorter, RESAMPLES, SEED)


def test_progress_advances_once_per_completion(target: LlamaForCausalLM, rows: list[Completion]) -> None:
    counted: list[int] = []
    acceptances(target, [replace(row) for row in rows], counted.append)
    assert sum(counted) == len(rows)
