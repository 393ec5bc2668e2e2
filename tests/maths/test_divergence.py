"""Each loss equals its textbook sum, is exact where a distribution removed tokens, and keeps leading dimensions."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdraft.maths.acceptance import chain
from fastdraft.maths.divergence import (
    DISTRIBUTION_LOSSES,
    block_length,
    cross_entropy,
    forward_kl,
    jensen_shannon,
    masked_sum,
    sampled_total_variation,
    total_variation,
)

B, T, V = 2, 3, 5


def _log_probs(removed: bool = False) -> tuple[Tensor, Tensor]:
    """Target and draft, float64. If `removed`, token 1 is missing in both, 2 in the target and 3 in the draft."""
    logits_2BTV = torch.randn(2, B, T, V, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    if removed:
        logits_2BTV[:, ..., 1] = logits_2BTV[0, ..., 2] = logits_2BTV[1, ..., 3] = -torch.inf
    logp_BTV, logq_BTV = logits_2BTV.log_softmax(-1)
    return logp_BTV, logq_BTV


def _ratio_term(p: float, q: float) -> float:
    if p == 0:
        return 0.0
    return math.inf if q == 0 else p * math.log(p / q)


REFERENCES = {
    "forward_kl": lambda p, q: _ratio_term(p, q),
    "reverse_kl": lambda p, q: _ratio_term(q, p),
    "jensen_shannon": lambda p, q: (_ratio_term(p, (p + q) / 2) + _ratio_term(q, (p + q) / 2)) / 2,
    "total_variation": lambda p, q: abs(p - q) / 2,
}


def test_every_loss_of_the_table_has_a_reference_here() -> None:
    assert DISTRIBUTION_LOSSES.keys() == REFERENCES.keys()


def test_every_loss_has_a_row_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "maths.md").read_text(encoding="utf-8")
    for name in (*DISTRIBUTION_LOSSES, "cross_entropy", "sampled_total_variation"):
        assert f"\n| `{name}` |" in page


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
def test_a_distribution_loss_is_its_textbook_sum(name: str, removed: bool) -> None:
    logp_BTV, logq_BTV = _log_probs(removed)
    loss_BT = DISTRIBUTION_LOSSES[name](logp_BTV, logq_BTV)
    for b in range(B):
        for t in range(T):
            pairs = zip(logp_BTV[b, t].exp().tolist(), logq_BTV[b, t].exp().tolist(), strict=True)
            expected = sum(REFERENCES[name](p, q) for p, q in pairs)
            assert loss_BT[b, t].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
def test_a_distribution_loss_is_zero_only_between_equal_distributions(name: str) -> None:
    logp_BTV, logq_BTV = _log_probs()
    loss = DISTRIBUTION_LOSSES[name]
    torch.testing.assert_close(loss(logp_BTV, logp_BTV), torch.zeros(B, T).double())
    assert (loss(logp_BTV, logq_BTV) > 0).all()


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
def test_removed_tokens_give_no_nan_gradient(name: str) -> None:
    logp_BTV, logq_BTV = _log_probs(removed=True)
    for probs_BTV in (logp_BTV.requires_grad_(), logq_BTV.requires_grad_()):
        (gradient_BTV,) = torch.autograd.grad(DISTRIBUTION_LOSSES[name](logp_BTV, logq_BTV).sum(), probs_BTV)
        assert not gradient_BTV.isnan().any()


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon", "total_variation"])
def test_the_draft_has_the_true_gradient_where_the_target_removed_tokens(name: str) -> None:
    logp_BTV, _ = _log_probs(removed=True)
    logits_BTV = torch.randn(B, T, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda logits_BTV: DISTRIBUTION_LOSSES[name](logp_BTV, logits_BTV.log_softmax(-1)), (logits_BTV,)
    )


def test_tokens_that_underflow_count_as_removed() -> None:
    logp_V, logq_V = torch.tensor([0.0, -200.0]), torch.tensor([0.0, -torch.inf])
    assert forward_kl(logp_V, logq_V).item() == 0


def test_cross_entropy_equals_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(5)
    logits_BTV, token_BT = torch.randn(B, T, V, generator=generator), torch.randint(V, (B, T), generator=generator)
    expected_BT = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), token_BT.flatten(), reduction="none")
    torch.testing.assert_close(cross_entropy(logits_BTV, token_BT), expected_BT.view(B, T))
    assert cross_entropy(logits_BTV.bfloat16(), token_BT).dtype == torch.float32


def test_expected_cross_entropy_is_forward_kl_plus_the_entropy_of_the_target() -> None:
    logp_BTV, logq_BTV = (log_probs.float() for log_probs in _log_probs())
    every_V = torch.arange(V).expand(B, T, V)
    loss_BTV = cross_entropy(logq_BTV[:, :, None].expand(B, T, V, V), every_V)
    entropy_BT = -(logp_BTV.exp() * logp_BTV).sum(-1)
    torch.testing.assert_close((logp_BTV.exp() * loss_BTV).sum(-1), forward_kl(logp_BTV, logq_BTV) + entropy_BT)


@pytest.mark.parametrize("removed", [False, True])
def test_the_sampled_loss_is_total_variation_minus_one_in_expectation(removed: bool) -> None:
    logp_BTV, logq_BTV = _log_probs(removed)
    sampled_BTV = torch.where(logp_BTV.isneginf(), 0, sampled_total_variation(logp_BTV, logq_BTV))
    expected_BT = (logp_BTV.exp() * sampled_BTV).sum(-1)
    torch.testing.assert_close(expected_BT, total_variation(logp_BTV, logq_BTV) - 1)


def test_the_sampled_loss_has_the_gradient_of_total_variation_in_expectation() -> None:
    logp_BTV, logits_BTV = _log_probs()
    logits_BTV.requires_grad_()
    logq_BTV = logits_BTV.log_softmax(-1)
    sampled = (logp_BTV.exp() * sampled_total_variation(logp_BTV, logq_BTV)).sum()
    (sampled_gradient,) = torch.autograd.grad(sampled, logits_BTV, retain_graph=True)
    (gradient,) = torch.autograd.grad(total_variation(logp_BTV, logq_BTV).sum(), logits_BTV)
    torch.testing.assert_close(sampled_gradient, gradient)


def test_jensen_shannon_is_symmetric_and_bounded_by_log_two() -> None:
    logp_BTV, logq_BTV = _log_probs(removed=True)
    torch.testing.assert_close(jensen_shannon(logp_BTV, logq_BTV), jensen_shannon(logq_BTV, logp_BTV))
    apart_2V = torch.eye(2).log()
    assert jensen_shannon(apart_2V[0], apart_2V[1]).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_block_length_is_the_forwards_of_the_chain_and_falls_as_q_rises(gamma: int) -> None:
    draw = torch.Generator().manual_seed(3)
    logp_BN, logq_BN = (torch.rand(2, 3, 7, generator=draw, dtype=torch.float64)).log()
    lengths_B = torch.tensor([7, 5, 1])
    logq_BN.requires_grad_()
    forwards_B = block_length(logp_BN, logq_BN, lengths_B, gamma)
    tokens = lengths_B.sum() / forwards_B.sum()
    assert 1 <= tokens <= gamma + 1
    (slope_BN,) = torch.autograd.grad(forwards_B.sum(), logq_BN)
    assert (slope_BN <= 1e-12).all()
    assert (slope_BN[1, 5:] == 0).all()
    assert torch.equal(block_length(logp_BN, logp_BN, lengths_B, gamma), (lengths_B / (gamma + 1)).ceil().double())


def _forwards_by_block_position(accept_NG: Tensor) -> float:
    """Expected target forwards over one text, outcome by outcome; acceptance depends on the block position."""
    positions, gamma = accept_NG.shape
    total = 0.0
    for outcomes in itertools.product((True, False), repeat=positions):
        chance, forwards, state = 1.0, 0, 0
        for accept_G, outcome in zip(accept_NG.tolist(), outcomes, strict=True):
            forwards += state == 0
            if state == gamma:  # a bonus token for both outcomes
                chance, state = chance / 2, 0
            else:
                chance *= accept_G[state] if outcome else 1 - accept_G[state]
                state = state + 1 if outcome else 0
        total += chance * forwards
    return total


@pytest.mark.parametrize("gamma", [1, 2, 3])
@pytest.mark.parametrize("decay", [1.0, 0.7, 0.1])
def test_block_length_weighs_the_gradient_by_block_position(gamma: int, decay: float) -> None:
    """Checked by finite differences in the acceptance of one token at one position of its block."""
    draw = torch.Generator().manual_seed(3)
    logp_BN, logq_BN = (torch.rand(2, 3, 7, generator=draw, dtype=torch.float64)).log()
    lengths_B, step = torch.tensor([7, 5, 1]), 1e-6
    logq_BN.requires_grad_()
    forwards_B = block_length(logp_BN, logq_BN, lengths_B, gamma, decay)
    assert torch.equal(forwards_B, block_length(logp_BN, logq_BN, lengths_B, gamma))
    (slope_BN,) = torch.autograd.grad(forwards_B.sum(), logq_BN)
    accept_BN = (logq_BN - logp_BN).detach().exp().clamp(max=1)
    for row, length in enumerate(lengths_B.tolist()):
        accept_NG = accept_BN[row, :length, None].repeat(1, gamma)
        assert forwards_B[row].item() == pytest.approx(_forwards_by_block_position(accept_NG))
        for position in range(length):
            change = 0.0
            for drafted in range(gamma):
                moved = [accept_NG.clone(), accept_NG.clone()]
                for sign, each in zip((-1, 1), moved, strict=True):
                    each[position, drafted] += sign * step
                below, above = map(_forwards_by_block_position, moved)
                change += decay**drafted * (above - below) / (2 * step)
            accept = accept_BN[row, position].item()
            expected = change * accept if accept < 1 else 0.0
            assert slope_BN[row, position].item() == pytest.approx(expected, abs=1e-7)
    assert (slope_BN <= 1e-12).all()
    assert (slope_BN[1, 5:] == 0).all()


def test_weighted_counts_of_accepted_tokens_would_reward_rejections() -> None:
    """Why `decay` weighs the gradient of the forwards instead. gamma 5, decay 1/2: docs/maths.md, "Losses"."""
    weight_G = 0.5 ** torch.arange(5)
    saved = {}
    for name, accept in {"all": torch.ones(1, 60), "every second": torch.tensor([1.0, 0.0]).repeat(30)[None]}.items():
        saved[name] = (chain(accept, torch.tensor([60]), 5).position_accepted_BG @ weight_G).item() / 60
    assert saved == pytest.approx({"all": 1.9375 / 6, "every second": 1 / 2})


def _loss_and_mask() -> tuple[Tensor, Tensor]:
    loss_BT = torch.randn(5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return loss_BT, torch.rand(5, 7, generator=torch.Generator().manual_seed(5)) < 0.4


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_the_masked_sum_does_not_depend_on_how_the_batch_is_split(rows: int) -> None:
    loss_BT, mask_BT = _loss_and_mask()
    parts = [masked_sum(*pair) for pair in zip(loss_BT.split(rows), mask_BT.split(rows), strict=True)]
    torch.testing.assert_close(sum(parts), loss_BT[mask_BT].sum())


def test_masked_values_do_not_enter_the_sum_or_the_gradient_not_even_nan() -> None:
    loss_BT, mask_BT = _loss_and_mask()
    masked_BT = loss_BT.masked_fill(~mask_BT, torch.nan).requires_grad_()
    total = masked_sum(masked_BT, mask_BT)
    torch.testing.assert_close(total, loss_BT[mask_BT].sum())
    (gradient_BT,) = torch.autograd.grad(total, masked_BT)
    assert torch.equal(gradient_BT, mask_BT.double())
    assert masked_sum(masked_BT, torch.zeros_like(mask_BT)) == 0
