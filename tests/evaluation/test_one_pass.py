"""One pass against brute force: greedy speculative decoding, block by block, with maths.verify.

Dimensions: B completions, G drafted tokens of a block, N tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from fastdraft.evaluation.one_pass import acceptances, evaluate
from fastdraft.maths import acceptance
from fastdraft.maths.sampling import warp
from fastdraft.maths.verification import accept_greedy
from fastdraft.synthesize.completions import Completion, SamplingParams

PROMPTS = [np.arange(length) * 7 % 131 for length in (3, 11, 5, 7, 2, 13, 17, 19, 23, 6, 4)]
DRAFT = {"stage": "align", "task": "story", "c": 0.1}
Models = tuple[LlamaForCausalLM, LlamaForCausalLM]


@pytest.fixture(scope="module")
def pair(tiny_llama: Callable[..., LlamaForCausalLM], perturbed: Callable[..., LlamaForCausalLM]) -> Models:
    target = tiny_llama(7)
    return target, perturbed(target, 0.1, 3)


def most_likely(model: LlamaForCausalLM, ids: list[int]) -> list[int]:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].argmax(-1).tolist()


def speculate(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, row: Completion, gamma: int
) -> tuple[list[int], int, list[int]]:
    """Tokens, target forwards, and accepted tokens by position in the block, up to the recorded length."""
    prompt, text, forwards, accepted_G = row.prompt.tolist(), [], 0, [0] * gamma
    while len(text) < len(row.tokens):
        context = prompt + text
        for _ in range(gamma):
            context = [*context, most_likely(draft, context)[-1]]
        target_G1 = most_likely(target, context)[-gamma - 1 :]
        block = accept_greedy(torch.tensor(target_G1), torch.tensor(context[-gamma:]))
        for j in range(min(block.accepted, len(row.tokens) - len(text))):
            accepted_G[j] += 1
        text += block.emitted.tolist()
        forwards += 1
    return text[: len(row.tokens)], forwards, accepted_G


@pytest.mark.parametrize("gamma", [1, 3, 5])
def test_one_pass_equals_greedy_speculative_decoding(pair: Models, completed: Callable, gamma: int) -> None:
    target, draft = pair
    # Two tokens that the target likes end some of the texts early.
    completions = completed(target, PROMPTS, SamplingParams(0), 23, frozenset({118, 30}))
    assert len({len(row.tokens) for row in completions}) > 2
    counts = acceptance.chain(*acceptances(draft, completions), gamma)
    assert 0 < counts.accepted_B.sum() < counts.tokens_B.sum() - counts.forwards_B.sum() / 2
    for i, row in enumerate(completions):
        text, forwards, accepted_G = speculate(target, draft, row, gamma)
        assert text == row.tokens.tolist()
        assert forwards == counts.forwards_B[i]
        assert accepted_G == counts.position_accepted_BG[i].tolist()


@pytest.mark.parametrize("sampling", [SamplingParams(1.0), SamplingParams(0.6, 17, 0.9)])
def test_sampled_acceptance_is_the_ratio_of_both_warped_distributions(
    pair: Models, completed: Callable, sampling: SamplingParams
) -> None:
    target, draft = pair
    completions = completed(target, PROMPTS, sampling, 11)
    accept_BN, lengths_B = acceptances(draft, completions)
    assert lengths_B.tolist() == [11] * len(PROMPTS)
    for accept_N, row in zip(accept_BN, completions, strict=True):
        text, start = torch.from_numpy(np.concatenate([row.prompt, row.tokens])), len(row.prompt)
        with torch.no_grad():
            p_N, q_N = (
                warp(model(text[None]).logits[0, start - 1 : -1], *sampling).exp().gather(1, text[start:, None])[:, 0]
                for model in pair
            )
        torch.testing.assert_close(accept_N.float(), (q_N / p_N).clamp(max=1), atol=1e-4, rtol=1e-3)


def test_the_target_is_a_perfect_draft_for_itself(pair: Models, completed: Callable) -> None:
    target, _ = pair
    for sampling in (SamplingParams(0), SamplingParams(0.8)):
        result = evaluate(target, completed(target, PROMPTS, sampling, 12), [2, 3], **DRAFT, resamples=17, seed=7)
        assert result.alpha.value == pytest.approx(1, abs=1e-4)
        assert [at.block_efficiency.value for at in result.gammas] == pytest.approx([3, 4], abs=1e-3)
        assert [at.mbsu.value for at in result.gammas] == pytest.approx([3 / 1.2, 4 / 1.3], abs=1e-3)
        assert result.best_gamma == 3


def test_a_result_names_draft_task_and_sampling(pair: Models, completed: Callable) -> None:
    target, draft = pair
    completions = completed(target, PROMPTS, SamplingParams(0.8, 50, 0.95), 12)
    result = evaluate(draft, completions, [1, 2, 5], **DRAFT, resamples=100, seed=7)
    assert (result.stage, result.task, result.c) == ("align", "story", 0.1)
    assert (result.temperature, result.top_k, result.top_p) == (0.8, 50, 0.95)
    assert (result.prompts, result.tokens) == (11, 132)
    assert [at.gamma for at in result.gammas] == [1, 2, 5]
    for at in result.gammas:
        for estimate in (at.acceptance_rate, at.block_efficiency, at.mbsu, result.alpha):
            assert estimate.low < estimate.value < estimate.high
        assert at.mbsu.high == pytest.approx(at.block_efficiency.high / (1 + 0.1 * at.gamma))
        assert len(at.position_acceptance) == at.gamma
        assert np.mean(at.position_acceptance) == pytest.approx(at.acceptance_rate.value)
        for fraction, (low, high) in zip(at.position_acceptance, at.position_intervals, strict=True):
            assert low <= fraction <= high
    first = result.gammas[0]
    assert first.position_intervals == ((first.acceptance_rate.low, first.acceptance_rate.high),), "blocks of one token"
    assert evaluate(draft, completions, [1, 2, 5], **DRAFT, resamples=100, seed=7) == result


def test_values_do_not_depend_on_the_order_of_completions(pair: Models, completed: Callable) -> None:
    target, draft = pair
    completions = completed(target, PROMPTS, SamplingParams(0.8), 12)
    result, reversed_result = (
        evaluate(draft, rows, [3], **DRAFT, resamples=5, seed=7) for rows in (completions, completions[::-1])
    )
    assert result.alpha.value == pytest.approx(reversed_result.alpha.value, abs=1e-5)
    assert result.gammas[0].block_efficiency.value == pytest.approx(
        reversed_result.gammas[0].block_efficiency.value, abs=1e-5
    )


def test_rates_without_loops_leave_looping_completions_out(pair: Models, completed: Callable) -> None:
    target, draft = pair
    completions = completed(target, PROMPTS, SamplingParams(1.0), 23)
    loop = replace(completions[0], tokens=np.full(23, 5), logp=np.full(23, -20, np.float32))
    with_loop = evaluate(draft, [*completions[1:], loop], [3], **DRAFT, resamples=5, seed=7)
    without = evaluate(draft, completions[1:], [3], **DRAFT, resamples=5, seed=7)
    assert with_loop.looping_fraction == pytest.approx(1 / 11)
    assert with_loop.repeated_8grams == pytest.approx(15 / (11 * 16))
    assert (without.looping_fraction, without.repeated_8grams) == (0, 0)
    assert with_loop.alpha_without_loops == pytest.approx(without.alpha.value, abs=1e-5)
    assert with_loop.alpha.value > without.alpha.value
    assert with_loop.gammas[0].block_efficiency_without_loops == pytest.approx(
        without.gammas[0].block_efficiency.value, abs=1e-5
    )
    only = evaluate(draft, [loop], [3], **DRAFT, resamples=5, seed=7)
    assert only.alpha_without_loops is None
    assert only.gammas[0].block_efficiency_without_loops is None


def test_completions_with_different_sampling_are_refused(pair: Models, completed: Callable) -> None:
    target, draft = pair
    mixed = completed(target, PROMPTS[:1], SamplingParams(0), 5) + completed(
        target, PROMPTS[1:2], SamplingParams(1.0), 5
    )
    with pytest.raises(ValueError, match="completions with 2 different sampling parameters"):
        evaluate(draft, mixed, [3], **DRAFT, resamples=5, seed=7)
