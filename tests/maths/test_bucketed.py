"""A distribution known on some tokens is never farther from another than the whole distribution, and is it where all
tokens are known.
"""

import pytest
import torch
from torch import Tensor

from fastdraft.maths.bucketed import coarse_draft, coarse_target
from fastdraft.maths.divergence import DISTRIBUTION_LOSSES

B, T, V = 2, 3, 13


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """Target's and draft's, float64."""
    drawn = 3 * torch.randn(2, B, T, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return drawn[0], drawn[1].requires_grad_()


def coarse(target_BTV: Tensor, draft_BTV: Tensor, known: int) -> tuple[Tensor, Tensor]:
    logp_BTK, ids_BTK = target_BTV.log_softmax(-1).topk(known)
    return coarse_target(logp_BTK, V), coarse_draft(draft_BTV, ids_BTK)


@pytest.mark.parametrize("known", [1, 2, 5, 12, 13])
def test_the_outcomes_have_the_mass_of_their_tokens(logits: tuple[Tensor, Tensor], known: int) -> None:
    target_BTV, draft_BTV = logits
    order = target_BTV.argsort(-1, descending=True)
    for probs_BTV, found in zip(logits, coarse(target_BTV, draft_BTV, known), strict=True):
        mass = probs_BTV.softmax(-1).gather(-1, order)
        rest = [mass[..., known:].sum(-1, keepdim=True)] if known < V else []
        torch.testing.assert_close(found.exp(), torch.cat([mass[..., :known], *rest], -1))


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
def test_a_coarser_distribution_is_a_lower_bound_that_grows_to_the_whole(
    logits: tuple[Tensor, Tensor], name: str
) -> None:
    loss, (target_BTV, draft_BTV) = DISTRIBUTION_LOSSES[name], logits
    whole_BT = loss(target_BTV.log_softmax(-1), draft_BTV.log_softmax(-1))
    found = [loss(*coarse(target_BTV, draft_BTV, known)) for known in range(1, V + 1)]
    for fewer, more in zip(found, found[1:], strict=False):
        assert (fewer <= more + 1e-12).all()
    assert (found[0] < whole_BT).all()
    torch.testing.assert_close(found[-1], whole_BT)
    torch.testing.assert_close(found[-2], whole_BT)  # a bucket of one token is that token


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
@pytest.mark.parametrize("known", [12, 13])
def test_with_all_tokens_known_the_gradient_is_that_of_the_whole_distribution(
    logits: tuple[Tensor, Tensor], name: str, known: int
) -> None:
    loss, (target_BTV, draft_BTV) = DISTRIBUTION_LOSSES[name], logits
    whole = loss(target_BTV.log_softmax(-1), draft_BTV.log_softmax(-1)).sum()
    found = loss(*coarse(target_BTV, draft_BTV, known)).sum()
    wanted, got = (torch.autograd.grad(value, draft_BTV)[0] for value in (whole, found))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
@pytest.mark.parametrize("known", [5, 13])
def test_what_float16_rounds_beyond_one_is_still_a_distribution(name: str, known: int) -> None:
    """A target that is sure: its most likely tokens, rounded, sum to more than 1."""
    logp_K = torch.full((known,), -14.0)
    logp_K[0] = 0.0
    draft_V = torch.randn(V, generator=torch.Generator().manual_seed(3)).requires_grad_()
    probs_C, draft_C = coarse_target(logp_K, V), coarse_draft(draft_V, torch.arange(known))
    torch.testing.assert_close(probs_C.exp().sum(), torch.tensor(1.0))
    loss = DISTRIBUTION_LOSSES[name](probs_C, draft_C)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, draft_V)[0].isfinite().all()
