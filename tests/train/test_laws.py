"""The closed-form gradient of divergences is autograd's, over as many pieces as the cache asks for."""

import pytest
import torch

from fastdraft.maths.divergence import DISTRIBUTION_LOSSES
from fastdraft.recipe import OF_THE_LAW
from fastdraft.train.laws import GRADED, _pieces, divergences

N, V = 17, 70_001


@pytest.mark.parametrize("names", [*([name] for name in DISTRIBUTION_LOSSES), ["forward_kl", "total_variation"]])
def test_loss_and_gradient_are_those_of_the_textbook(names):
    draw = torch.Generator().manual_seed(3)
    target_NV, logits_NV = (3 * torch.randn(N, V, generator=draw) for _ in range(2))
    weights, share_N = {name: 0.5 + i for i, name in enumerate(names)}, torch.rand(N, generator=draw)
    logits_NV.requires_grad_()
    assert len(_pieces(logits_NV)) > 2
    found_N = divergences(logits_NV, lambda rows: target_NV[rows], weights)
    (gradient,) = torch.autograd.grad((found_N * share_N).sum(), logits_NV)
    plain_NV = logits_NV.detach().double().requires_grad_()
    laws = target_NV.double().log_softmax(-1), plain_NV.log_softmax(-1)
    wanted_N = sum(weight * DISTRIBUTION_LOSSES[name](*laws) for name, weight in weights.items())
    (wanted,) = torch.autograd.grad((wanted_N * share_N).sum(), plain_NV)
    torch.testing.assert_close(found_N.double(), wanted_N, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-3, atol=1e-7)


def test_recipes_know_every_divergence():
    assert OF_THE_LAW == DISTRIBUTION_LOSSES.keys() >= GRADED.keys()


def test_tokens_that_the_target_excludes_have_the_loss_and_gradient_of_their_law():
    target_NV = torch.tensor([[1.0, -torch.inf, 0.5], [0.0, 2.0, -torch.inf]])
    logits_NV = torch.tensor([[0.3, 0.2, -1.0], [0.0, 1.0, 2.0]], requires_grad=True)
    weights = {"forward_kl": 1.0, "jensen_shannon": 1.0, "total_variation": 1.0}
    found_N = divergences(logits_NV, lambda rows: target_NV[rows], weights)
    laws = target_NV.log_softmax(-1), logits_NV.log_softmax(-1)
    wanted_N = sum(DISTRIBUTION_LOSSES[name](*laws) for name in weights)
    torch.testing.assert_close(found_N, wanted_N)
    found, wanted = (torch.autograd.grad(loss_N.sum(), logits_NV) for loss_N in (found_N, wanted_N))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
def test_a_loss_whose_gradient_nobody_wrote_down_has_the_same_one(name, monkeypatch):
    draw = torch.Generator().manual_seed(3)
    target_NV, logits_NV = (3 * torch.randn(5, 13, generator=draw) for _ in range(2))
    logits_NV.requires_grad_()

    def found():
        loss_N = divergences(logits_NV, lambda rows: target_NV[rows], {name: 0.7})
        return loss_N, torch.autograd.grad(loss_N.sum(), logits_NV)[0]

    closed = found()
    monkeypatch.delitem(GRADED, name)
    torch.testing.assert_close(found(), closed)
