"""Divergences of bucketed distributions are lower bounds, and exact if all tokens are known."""

import pytest
import torch
from torch import Tensor

from fastdraft.maths.bucketed import bucketed_draft, bucketed_target
from fastdraft.maths.divergence import DISTRIBUTION_LOSSES

B, T, V = 2, 3, 13


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """Those of the target and of the draft, float64."""
    target_BTV, draft_BTV = 3 * torch.randn(2, B, T, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return target_BTV, draft_BTV.requires_grad_()


def bucketed(target_BTV: Tensor, draft_BTV: Tensor, known: int) -> tuple[Tensor, Tensor]:
    logp_BTK, ids_BTK = target_BTV.log_softmax(-1).topk(known)
    return bucketed_target(logp_BTK, V), bucketed_draft(draft_BTV, ids_BTK)


@pytest.mark.parametrize("known", [1, 2, 5, 12, 13])
def test_the_outcomes_have_the_mass_of_their_tokens(logits: tuple[Tensor, Tensor], known: int) -> None:
    target_BTV, draft_BTV = logits
    order = target_BTV.argsort(-1, descending=True)
    for logits_BTV, bucketed_BTC in zip(logits, bucketed(target_BTV, draft_BTV, known), strict=True):
        mass = logits_BTV.softmax(-1).gather(-1, order)
        rest = [mass[..., known:].sum(-1, keepdim=True)] if known < V else []
        torch.testing.assert_close(bucketed_BTC.exp(), torch.cat([mass[..., :known], *rest], -1))


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
def test_the_bucketed_loss_is_a_lower_bound_that_grows_with_k(logits: tuple[Tensor, Tensor], name: str) -> None:
    loss, (target_BTV, draft_BTV) = DISTRIBUTION_LOSSES[name], logits
    whole_BT = loss(target_BTV.log_softmax(-1), draft_BTV.log_softmax(-1))
    losses = [loss(*bucketed(target_BTV, draft_BTV, known)) for known in range(1, V + 1)]
    for fewer, more in zip(losses, losses[1:], strict=False):
        assert (fewer <= more + 1e-12).all()
    assert (losses[0] < whole_BT).all()
    torch.testing.assert_close(losses[-1], whole_BT)
    torch.testing.assert_close(losses[-2], whole_BT)  # a bucket of one token is that token


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
@pytest.mark.parametrize("known", [12, 13])
def test_the_gradient_is_exact_if_all_tokens_are_known(logits: tuple[Tensor, Tensor], name: str, known: int) -> None:
    loss, (target_BTV, draft_BTV) = DISTRIBUTION_LOSSES[name], logits
    whole = loss(target_BTV.log_softmax(-1), draft_BTV.log_softmax(-1)).sum()
    by_bucket = loss(*bucketed(target_BTV, draft_BTV, known)).sum()
    expected, gradient = (torch.autograd.grad(value, draft_BTV)[0] for value in (whole, by_bucket))
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
@pytest.mark.parametrize("known", [5, 13])
def test_probabilities_that_sum_to_more_than_one_in_float16_are_normalised(name: str, known: int) -> None:
    """The rounded top-K probabilities of a target that is almost certain sum to more than 1."""
    logp_K = torch.full((known,), -14.0)
    logp_K[0] = 0.0
    draft_V = torch.randn(V, generator=torch.Generator().manual_seed(3)).requires_grad_()
    probs_C, draft_C = bucketed_target(logp_K, V), bucketed_draft(draft_V, torch.arange(known))
    torch.testing.assert_close(probs_C.exp().sum(), torch.tensor(1.0))
    loss = DISTRIBUTION_LOSSES[name](probs_C, draft_C)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, draft_V)[0].isfinite().all()
