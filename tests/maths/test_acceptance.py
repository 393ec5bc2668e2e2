"""One pass over recorded texts gives the counts of speculative decoding for every gamma.

Dimensions: B texts, N positions, V vocabulary, G drafted tokens (gamma), R resamples.
"""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdraft.maths.acceptance import (
    Chain,
    accept_sums,
    acceptance_greedy,
    acceptance_rate,
    acceptance_sampled,
    alpha,
    alpha_of_block_efficiency,
    best_gamma,
    block_efficiency,
    bootstrap_interval,
    chain,
    expected_block_efficiency,
    forwards_variance,
    mbsu,
    position_acceptance,
    speedup,
    t_quantile,
)
from fastdraft.maths.divergence import total_variation
from fastdraft.maths.verification import accept_greedy

B, N, V = 3, 7, 5
LENGTHS_B = torch.tensor([7, 2, 5])


def _random(*shape: int, seed: int = 3) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _markov_pair() -> tuple[Tensor, Tensor]:
    p_VV = (3 * _random(V, V, seed=1)).softmax(-1)
    return p_VV, (p_VV.log() + 2 * _random(V, V, seed=2)).softmax(-1)


def _walk(outcomes: tuple[bool, ...], gamma: int) -> tuple[int, list[int], list[int]]:
    """Forwards, reached and accepted counts per drafted token, for one outcome per position."""
    forwards, reached, accepted, state = 0, [0] * gamma, [0] * gamma, 0
    for outcome in outcomes:
        forwards += state == 0
        if state == gamma:
            state = 0
            continue
        reached[state] += 1
        accepted[state] += outcome
        state = state + 1 if outcome else 0
    return forwards, reached, accepted


@pytest.mark.parametrize("gamma", [1, 2, 3, 5, 11])
def test_the_chain_is_the_mean_over_all_outcomes(gamma: int) -> None:
    accept_BN = _random(B, N)
    counts = chain(accept_BN, LENGTHS_B, gamma)
    for row, length in enumerate(LENGTHS_B.tolist()):
        forwards, reached_G, accepted_G = torch.zeros(()), torch.zeros(gamma), torch.zeros(gamma)
        for outcomes in itertools.product([False, True], repeat=length):
            chances = [a if outcome else 1 - a for a, outcome in zip(accept_BN[row], outcomes, strict=False)]
            walked = [torch.stack(chances).prod() * torch.tensor(count) for count in _walk(outcomes, gamma)]
            forwards, reached_G, accepted_G = forwards + walked[0], reached_G + walked[1], accepted_G + walked[2]
        torch.testing.assert_close(counts.forwards_B[row], forwards)
        torch.testing.assert_close(counts.reached_BG[row], reached_G)
        torch.testing.assert_close(counts.position_accepted_BG[row], accepted_G)


@pytest.mark.parametrize("gamma", [1, 3, 5])
def test_the_chain_predicts_real_speculative_sampling(
    gamma: int, speculate: Callable[..., tuple[Tensor, int, Tensor]]
) -> None:
    p_VV, q_VV = _markov_pair()
    text_N, forwards, position_accepted_G = speculate(p_VV, q_VV, gamma, 6_000, 13)
    context_N = torch.cat([torch.zeros(1, dtype=torch.long), text_N[:-1]])
    accept_N = acceptance_sampled(p_VV[context_N, text_N].log(), q_VV[context_N, text_N].log())
    counts = chain(accept_N[None], torch.tensor([len(text_N)]), gamma)
    assert block_efficiency(counts).item() == pytest.approx(len(text_N) / forwards, rel=0.02)
    assert position_acceptance(counts).tolist() == pytest.approx((position_accepted_G / forwards).tolist(), abs=0.02)


@pytest.mark.parametrize("gamma", [1, 2, 3, 5])
def test_the_chain_counts_greedy_decoding_exactly(gamma: int) -> None:
    generator = torch.Generator().manual_seed(gamma)
    target_VV, other_VV = torch.randint(V, (2, V, V), generator=generator)
    draft_VV = other_VV.where(torch.rand(V, V, generator=generator) < 0.3, target_VV)
    text = [0, 1]
    while len(text) < 43:
        text.append(int(target_VV[text[-2], text[-1]]))
    text_N = torch.tensor(text)
    forwards, accepted = _greedy_counts(text_N, target_VV, draft_VV, gamma)
    accept_N = acceptance_greedy(text_N[2:], draft_VV[text_N[:-2], text_N[1:-1]])
    counts = chain(accept_N[None], torch.tensor([41]), gamma)
    assert (counts.forwards_B.item(), counts.accepted_B.item()) == (forwards, accepted)


def _greedy_counts(text_N: Tensor, target_VV: Tensor, draft_VV: Tensor, gamma: int) -> tuple[int, int]:
    """Forwards and accepted tokens of greedy speculative decoding up to the end of the text, block by block."""
    start, forwards, accepted = 2, 0, 0
    while start < len(text_N):
        drafted = text_N[start - 2 : start].tolist()
        for _ in range(gamma):
            drafted.append(int(draft_VV[drafted[-2], drafted[-1]]))
        block = accept_greedy(target_VV[drafted[:-1], drafted[1:]], torch.tensor(drafted[2:]))
        forwards += 1
        accepted += min(block.accepted, len(text_N) - start)
        start += len(block.emitted)
    return forwards, accepted


def test_a_block_cut_off_by_the_end_counts_as_one_forward_and_gamma_proposed_tokens() -> None:
    counts = chain(torch.ones(1, 7), torch.tensor([7]), gamma=3)
    assert (counts.forwards_B.item(), counts.accepted_B.item()) == (2, 6)
    assert acceptance_rate(counts).item() == pytest.approx(6 / (3 * 2))
    counts = chain(torch.ones(1, 5), torch.tensor([5]), gamma=3)
    assert (counts.forwards_B.item(), counts.accepted_B.item()) == (2, 4)
    assert acceptance_rate(counts).item() == pytest.approx(4 / (3 * 2))


def test_every_token_is_accepted_or_ends_a_block() -> None:
    """tokens = accepted + forwards, except for a last block that the end cut off before the target's own token."""
    accept_BN = _random(B, N + 1)
    for gamma in (1, 2, 3):
        counts, one_longer = chain(accept_BN, LENGTHS_B, gamma), chain(accept_BN, LENGTHS_B + 1, gamma)
        cut_off_B = 1 - (one_longer.forwards_B - counts.forwards_B)
        assert (cut_off_B > 0.01).all()
        torch.testing.assert_close(counts.accepted_B + counts.forwards_B - cut_off_B, LENGTHS_B.double())


def test_padding_is_ignored() -> None:
    accept_BN = _random(B, N)
    padding_BN = torch.arange(N) >= LENGTHS_B[:, None]
    padded_BN = accept_BN.masked_fill(padding_BN, torch.nan).requires_grad_()
    for clean, padded in zip(chain(accept_BN, LENGTHS_B, 3), chain(padded_BN, LENGTHS_B, 3), strict=True):
        assert torch.equal(clean, padded)
    assert torch.equal(accept_sums(accept_BN, LENGTHS_B), accept_sums(padded_BN, LENGTHS_B))
    block_efficiency(chain(padded_BN, LENGTHS_B, 3)).backward()
    assert padded_BN.grad is not None
    assert (padded_BN.grad[padding_BN] == 0).all()


def test_a_text_does_not_depend_on_the_other_texts_of_the_batch() -> None:
    accept_BN = _random(B, N)
    together = chain(accept_BN, LENGTHS_B, 2)
    for row, length in enumerate(LENGTHS_B.tolist()):
        alone = chain(accept_BN[row : row + 1, :length], LENGTHS_B[row : row + 1], 2)
        for field, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(field[row], expected[0])


@pytest.mark.parametrize("gamma", [1, 2, 3])
def test_the_gradient_of_the_chain_is_correct(gamma: int) -> None:
    accept_BN = _random(B, N).requires_grad_()

    def counts(accept_BN: Tensor) -> tuple[Tensor, ...]:
        return chain(accept_BN, LENGTHS_B, gamma)[1:]

    assert torch.autograd.gradcheck(counts, (accept_BN,))


def test_position_acceptance_falls_and_averages_to_the_acceptance_rate() -> None:
    counts = chain(_random(B, N), LENGTHS_B, 3)
    position_G = position_acceptance(counts)
    assert (position_G.diff() <= 0).all()
    torch.testing.assert_close(position_G.mean(), acceptance_rate(counts))
    assert (counts.position_accepted_BG <= counts.reached_BG).all()


def test_extreme_drafts_have_extreme_block_efficiency() -> None:
    length_1 = torch.tensor([24])
    assert block_efficiency(chain(torch.zeros(1, 24), length_1, 5)).item() == 1
    assert block_efficiency(chain(torch.ones(1, 24), length_1, 5)).item() == 6


def test_constant_acceptance_gives_the_geometric_sum() -> None:
    """Leviathan et al. 2023, equation 1, in the limit of a long text."""
    counts = chain(torch.full((1, 1009), 0.7, dtype=torch.float64), torch.tensor([1009]), 3)
    assert block_efficiency(counts).item() == pytest.approx((1 - 0.7**4) / (1 - 0.7), rel=2e-3)


def test_rates_are_pooled_over_tokens_not_over_texts() -> None:
    counts = chain(_random(B, N), LENGTHS_B, 3)
    assert block_efficiency(counts).item() == pytest.approx(14 / counts.forwards_B.sum().item())
    row_mean = (counts.tokens_B / counts.forwards_B).mean().item()
    assert block_efficiency(counts).item() != pytest.approx(row_mean, rel=1e-3)


def test_counts_of_two_batches_concatenate() -> None:
    accept_BN = _random(B, N)
    whole = chain(accept_BN, LENGTHS_B, 3)
    parts = [chain(accept_BN[:2], LENGTHS_B[:2], 3), chain(accept_BN[2:], LENGTHS_B[2:], 3)]
    joined = Chain(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
    torch.testing.assert_close(block_efficiency(joined), block_efficiency(whole))


def test_expected_acceptance_is_one_minus_total_variation() -> None:
    p_VV, q_VV = _markov_pair()
    expected_V = (p_VV * acceptance_sampled(p_VV.log(), q_VV.log())).sum(-1)
    torch.testing.assert_close(expected_V, torch.minimum(p_VV, q_VV).sum(-1))
    torch.testing.assert_close(expected_V, 1 - total_variation(p_VV.log(), q_VV.log()))


def test_alpha_is_the_mean_over_positions_of_all_texts() -> None:
    accept_BN = _random(B, N)
    inside = [accept_BN[row, :length] for row, length in enumerate(LENGTHS_B.tolist())]
    torch.testing.assert_close(alpha(accept_BN, LENGTHS_B), torch.cat(inside).mean())


def test_a_token_the_draft_excludes_is_never_accepted_and_its_gradient_is_zero() -> None:
    logq_N = torch.tensor([-torch.inf, -1.0, -3.0], requires_grad=True)
    accept_N = acceptance_sampled(torch.tensor([-1.0, -2.0, -2.0]), logq_N)
    accept_N.sum().backward()
    assert accept_N.tolist() == pytest.approx([0, 1, 0.36787944])
    assert logq_N.grad is not None
    assert logq_N.grad.tolist() == pytest.approx([0, 0, 0.36787944])


def test_mbsu_is_the_speedup_of_a_device_that_only_reads_weights() -> None:
    assert mbsu(2.5, 5, 0.02) == pytest.approx(2.5 / 1.1)
    assert mbsu(2.5, 5, 0.02) == pytest.approx(speedup(2.5, 5, 0.02 * 0.3, 0.3, 0.3))


def test_the_best_gamma_is_large_only_for_a_cheap_draft() -> None:
    tau_by_gamma = {5: 2.9, 1: 1.7, 3: 2.5}
    assert best_gamma(tau_by_gamma, c=0.01) == 5
    assert best_gamma(tau_by_gamma, c=0.5) == 1
    assert best_gamma({3: 2.0, 2: 2.0}, c=0.0) == 2


def test_the_bootstrap_interval_is_a_percentile_of_pooled_resamples() -> None:
    numerator_B, denominator_B = _random(7, seed=1), 1 + _random(7, seed=2)
    resample_RB = torch.randint(7, (41, 7), generator=torch.Generator().manual_seed(3))
    ratios = sorted(
        sum(numerator_B[row].item() for row in rows) / sum(denominator_B[row].item() for row in rows)
        for rows in resample_RB.tolist()
    )
    tail = 0.004106  # of the normal distribution below -sqrt(7 / 6) x 2.4469, the quantile of t with 6 degrees
    expected = np.quantile(ratios, [tail, 1 - tail])
    assert bootstrap_interval(numerator_B, denominator_B, resample_RB) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706205), (2, 4.302653), (3, 3.182446), (7, 2.364624), (16, 2.119905), (95, 1.985251)],
)
def test_the_quantiles_of_t_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, abs=1e-6)


def test_intervals_over_few_prompts_cover_the_true_rate() -> None:
    """Rates with a long tail over 8 prompts: 95 % percentile intervals cover 87 % of the time."""
    generator = torch.Generator().manual_seed(5)
    covered = 0
    for _ in range(500):
        tokens_B = torch.randint(20, 129, (8,), generator=generator)
        rate_B = 0.05 + 0.9 * torch.rand(8, generator=generator) ** 2  # mean 0.35
        resample_RB = torch.randint(8, (500, 8), generator=generator)
        low, high = bootstrap_interval(tokens_B * rate_B, tokens_B, resample_RB)
        covered += low <= 0.35 <= high
    assert covered / 500 > 0.9


@pytest.mark.parametrize("gamma", [1, 2, 3, 7])
def test_mean_and_variance_of_forwards_are_those_of_all_patterns_of_acceptance(gamma: int) -> None:
    accept_BN, lengths_B = _random(3, 7, seed=gamma).double(), torch.tensor([7, 5, 1])
    for accept_N, length, mean, variance in zip(
        accept_BN,
        lengths_B.tolist(),
        chain(accept_BN, lengths_B, gamma).forwards_B,
        forwards_variance(accept_BN, lengths_B, gamma),
        strict=True,
    ):
        first = second = 0.0
        for pattern in itertools.product((False, True), repeat=7):
            probability = torch.where(torch.tensor(pattern), accept_N, 1 - accept_N).prod()
            state = forwards = 0
            for accepted in pattern[:length]:
                forwards += state == 0
                state = state + 1 if accepted and state < gamma else 0
            first, second = first + probability * forwards, second + probability * forwards**2
        assert float(mean) == pytest.approx(float(first))
        assert float(variance) == pytest.approx(float(second - first**2), abs=1e-9)


def test_the_bootstrap_interval_of_one_prompt_is_a_point() -> None:
    low, high = bootstrap_interval(torch.tensor([3]), torch.tensor([2]), torch.zeros(11, 1, dtype=torch.long))
    assert low == high == 1.5


def test_gamma_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="gamma is 0"):
        chain(torch.ones(1, 3), torch.tensor([3]), 0)


@pytest.mark.parametrize("gamma", [1, 2, 5, 11])
@pytest.mark.parametrize("alpha_", [0.0, 0.3, 0.77, 1.0])
def test_the_chain_has_a_closed_form_for_constant_acceptance(alpha_: float, gamma: int) -> None:
    """Leviathan et al. 2023, equation 1, on a text so long that its ends do not matter."""
    n = 4001
    counts = chain(torch.full((1, n), alpha_, dtype=torch.float64), torch.tensor([n]), gamma)
    expected = expected_block_efficiency(alpha_, gamma)
    assert float(block_efficiency(counts)) == pytest.approx(expected, rel=1e-2)
    if alpha_ < 1:
        assert expected == pytest.approx((1 - alpha_ ** (gamma + 1)) / (1 - alpha_))


@pytest.mark.parametrize("gamma", [1, 3, 8])
def test_alpha_of_block_efficiency_inverts_expected_block_efficiency(gamma: int) -> None:
    for alpha_ in (0.0, 0.13, 0.5, 0.97, 1.0):
        tau = expected_block_efficiency(alpha_, gamma)
        assert alpha_of_block_efficiency(tau, gamma) == pytest.approx(alpha_, abs=1e-12)
    assert alpha_of_block_efficiency(0.5, gamma) == pytest.approx(0)
    assert alpha_of_block_efficiency(gamma + 1, gamma) == pytest.approx(1)
    assert alpha_of_block_efficiency(gamma + 1.001, gamma) is None
