"""`warp` gives the distribution that transformers samples from, and `draw_tokens` draws from it."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fastdraft.maths.sampling import draw_tokens, warp

B, T, V = 2, 3, 17


def _transformers(logits_XV: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    ids, scores = torch.zeros(1, 1, dtype=torch.long), logits_XV.reshape(-1, V)
    scores = TemperatureLogitsWarper(temperature)(ids, scores)
    scores = TopKLogitsWarper(top_k)(ids, scores) if top_k else scores
    scores = TopPLogitsWarper(top_p)(ids, scores) if top_p < 1 else scores
    return scores.log_softmax(-1).view_as(logits_XV)


def _logits(ties: bool) -> Tensor:
    logits_BTV = 3 * torch.randn(B, T, V, generator=torch.Generator().manual_seed(7))
    return logits_BTV.round() if ties else logits_BTV


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, V, V + 1])
@pytest.mark.parametrize("top_p", [1e-6, 0.5, 0.9, 1.0])
def test_the_distribution_equals_that_of_transformers(ties: bool, temperature: float, top_k: int, top_p: float) -> None:
    logits_BTV = _logits(ties)
    expected_BTV = _transformers(logits_BTV, temperature, top_k, top_p)
    assert torch.equal(warp(logits_BTV, temperature, top_k, top_p), expected_BTV)


def test_tokens_that_tie_with_the_last_of_the_top_k_are_kept() -> None:
    logp_V = warp(torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0]), 1.0, top_k=2)
    assert logp_V.isfinite().tolist() == [True, True, True, True, False]


def test_top_p_keeps_the_smallest_set_whose_mass_reaches_it() -> None:
    logits_V = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()
    assert warp(logits_V, 1.0, top_p=0.65).exp().tolist() == pytest.approx([5 / 7, 2 / 7, 0, 0, 0])
    assert warp(logits_V, 1.0, top_p=0.75).isfinite().tolist() == [True, True, True, False, False]


def test_top_p_applies_to_the_tokens_that_top_k_kept() -> None:
    logits_V = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1]).log()
    assert warp(logits_V, 1.0, top_k=2, top_p=0.55).isfinite().tolist() == [True, False, False, False, False]


def test_at_least_one_token_is_left_and_the_distribution_sums_to_one() -> None:
    logp_BTV = warp(_logits(ties=False), 0.6, top_p=1e-9)
    assert (logp_BTV.isfinite().sum(-1) == 1).all()
    torch.testing.assert_close(logp_BTV.exp().sum(-1), torch.ones(B, T))


def test_half_precision_logits_are_warped_in_float32() -> None:
    logits_BTV = _logits(ties=False).bfloat16()
    assert torch.equal(warp(logits_BTV, 0.6), warp(logits_BTV.float(), 0.6))


def test_gradients_are_finite_and_zero_at_removed_tokens() -> None:
    logits_BTV = _logits(ties=False).requires_grad_()
    logp_BTV = warp(logits_BTV, 0.6, top_k=3)
    kept_BTV = logp_BTV.isfinite()
    logp_BTV.masked_fill(~kept_BTV, 0).square().sum().backward()
    assert logits_BTV.grad is not None
    assert logits_BTV.grad.isfinite().all()
    assert (logits_BTV.grad[~kept_BTV] == 0).all()
    assert (logits_BTV.grad[kept_BTV] != 0).any()


def test_temperature_zero_is_not_a_sampling_distribution() -> None:
    with pytest.raises(ValueError, match=r"temperature is 0.*accept_greedy"):
        warp(torch.zeros(V), 0)


def test_limits_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k is -1"):
        warp(torch.zeros(V), 1.0, top_k=-1)
    with pytest.raises(ValueError, match="top_p is 0"):
        warp(torch.zeros(V), 1.0, top_p=0)
    with pytest.raises(ValueError, match=r"top_p is 1\.5"):
        warp(torch.zeros(V), 1.0, top_p=1.5)


@pytest.mark.parametrize("vocabulary", [5, 64, 131, 257])
def test_a_token_is_drawn_by_the_cumulative_sum(vocabulary: int) -> None:
    rng = np.random.default_rng(3)
    p_BV = torch.from_numpy(rng.random((97, vocabulary)) * (rng.random((97, vocabulary)) < 0.3)).float()
    p_BV[:, 2] += 0.1
    p_BV /= p_BV.sum(-1, keepdim=True)
    coin_B = torch.from_numpy(rng.random(97))
    sums_BV = p_BV.double().cumsum(-1)
    expected_B = (sums_BV <= coin_B[:, None] * sums_BV[:, -1:]).sum(-1)
    assert draw_tokens(p_BV, coin_B).tolist() == expected_B.tolist()


@pytest.mark.parametrize("vocabulary", [5, 64, 131])
def test_the_smallest_and_largest_coin_draw_tokens_of_nonzero_probability(vocabulary: int) -> None:
    p_BV = torch.zeros(2, vocabulary)
    p_BV[:, [1, 3]] = 0.5
    coin_B = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw_tokens(p_BV, coin_B).tolist() == [1, 3]
    assert draw_tokens(p_BV, torch.ones(2, dtype=torch.float64)).tolist() == [3, 3], "a coin rounded up to 1"


@pytest.mark.parametrize("vocabulary", [5, 64, 131])
def test_tokens_drawn_from_nan_are_in_the_vocabulary(vocabulary: int) -> None:
    p_BV = torch.full((2, vocabulary), torch.nan)
    assert (draw_tokens(p_BV, torch.tensor([0.0, 0.9])) < vocabulary).all()
