"""The closed-form gradients of divergences equal those of autograd, in pieces of any size."""

import pytest
import torch

from fastdraft.config import DISTRIBUTION_OBJECTIVES
from fastdraft.maths.bucketed import bucketed_draft, bucketed_target
from fastdraft.maths.divergence import DISTRIBUTION_LOSSES
from fastdraft.train.divergence_kernels import CLOSED_FORMS, _pieces, bucketed_divergences, divergences

N, V = 17, 70_001


@pytest.mark.parametrize("names", [*([name] for name in DISTRIBUTION_LOSSES), ["forward_kl", "total_variation"]])
def test_loss_and_gradient_equal_those_of_maths_divergence(names):
    generator = torch.Generator().manual_seed(3)
    target_NV, logits_NV = (3 * torch.randn(N, V, generator=generator) for _ in range(2))
    weights, grad_N = {name: 0.5 + i for i, name in enumerate(names)}, torch.rand(N, generator=generator)
    logits_NV.requires_grad_()
    assert len(_pieces(logits_NV)) > 2
    loss_N = divergences(logits_NV, lambda rows: target_NV[rows], weights)
    (gradient,) = torch.autograd.grad((loss_N * grad_N).sum(), logits_NV)
    double_NV = logits_NV.detach().double().requires_grad_()
    logp_NV, logq_NV = target_NV.double().log_softmax(-1), double_NV.log_softmax(-1)
    expected_N = sum(weight * DISTRIBUTION_LOSSES[name](logp_NV, logq_NV) for name, weight in weights.items())
    (expected,) = torch.autograd.grad((expected_N * grad_N).sum(), double_NV)
    torch.testing.assert_close(loss_N.double(), expected_N, rtol=1e-4, atol=1e-5)
    # The gradient of |q - p| jumps by q where p = q. fp32 may take either side if log p and log q differ by less than
    # their rounding error, a few units in the last place of numbers up to 32.
    logq_NV = logq_NV.detach()
    tied_NV = (logp_NV - logq_NV).abs() < 4 * 32 * torch.finfo(torch.float32).eps
    assert tied_NV.float().mean() < 1e-4
    jump_NV = weights.get("total_variation", 0) * grad_N[:, None] * logq_NV.exp() * tied_NV
    assert ((gradient - expected).abs() <= 1e-7 + 1e-3 * expected.abs() + jump_NV).all()


def test_recipes_know_every_divergence():
    assert DISTRIBUTION_OBJECTIVES == DISTRIBUTION_LOSSES.keys() >= CLOSED_FORMS.keys()


def test_tokens_that_the_target_excludes_have_the_right_loss_and_gradient():
    target_NV = torch.tensor([[1.0, -torch.inf, 0.5], [0.0, 2.0, -torch.inf]])
    logits_NV = torch.tensor([[0.3, 0.2, -1.0], [0.0, 1.0, 2.0]], requires_grad=True)
    weights = {"forward_kl": 1.0, "jensen_shannon": 1.0, "total_variation": 1.0}
    loss_N = divergences(logits_NV, lambda rows: target_NV[rows], weights)
    logp_NV, logq_NV = target_NV.log_softmax(-1), logits_NV.log_softmax(-1)
    expected_N = sum(DISTRIBUTION_LOSSES[name](logp_NV, logq_NV) for name in weights)
    torch.testing.assert_close(loss_N, expected_N)
    gradient, expected = (torch.autograd.grad(loss.sum(), logits_NV) for loss in (loss_N, expected_N))
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
def test_autograd_gives_the_gradient_of_a_loss_without_a_closed_form(name, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    target_NV, logits_NV = (3 * torch.randn(5, 13, generator=generator) for _ in range(2))
    logits_NV.requires_grad_()

    def loss_and_gradient():
        loss_N = divergences(logits_NV, lambda rows: target_NV[rows], {name: 0.7})
        return loss_N, torch.autograd.grad(loss_N.sum(), logits_NV)[0]

    closed_form = loss_and_gradient()
    monkeypatch.delitem(CLOSED_FORMS, name)
    torch.testing.assert_close(loss_and_gradient(), closed_form)


@pytest.mark.parametrize("names", [*([name] for name in DISTRIBUTION_LOSSES), ["forward_kl", "total_variation"]])
@pytest.mark.parametrize("largest", [3.0, 200.0])
@pytest.mark.parametrize("cross_entropy_weight", [0.0, 0.7])
@pytest.mark.parametrize("known", ["all", "some", "none"])
def test_bucketed_loss_and_gradient_equal_those_of_maths_divergence(
    monkeypatch, names, largest, cross_entropy_weight, known
):
    """Also where the draft is so certain that the probability of the bucket, or of all else, is 0 in fp32."""
    tokens, vocabulary, stored, cached_tokens = 29, 101, 7, 3
    monkeypatch.setattr("fastdraft.train.divergence_kernels.CACHED_BYTES", 4 * vocabulary * cached_tokens)
    generator = torch.Generator().manual_seed(3)
    logits_NV = largest * torch.randn(tokens, vocabulary, generator=generator)
    top = torch.randn(tokens, vocabulary, generator=generator).mul(2).log_softmax(-1).topk(stored)
    logp_NK, ids_NK = top.values.half(), top.indices.int()
    if known != "all":
        unknown = torch.arange(tokens) % 2 == 1 if known == "some" else torch.ones(tokens).bool()
        logp_NK[unknown], ids_NK[unknown] = torch.nan, 0
    labels_N = torch.randint(vocabulary, (tokens,), generator=generator)
    cross_entropy_weight_N = torch.full((tokens,), cross_entropy_weight) * torch.rand(tokens, generator=generator)
    weights = {name: 0.5 + i for i, name in enumerate(names)}

    double_NV = logits_NV.double().requires_grad_()
    expected_N = cross_entropy_weight_N * torch.nn.functional.cross_entropy(double_NV, labels_N, reduction="none")
    known_N = ~logp_NK[:, 0].isnan()
    logp_NC = bucketed_target(logp_NK[known_N].double(), vocabulary)
    logq_NC = bucketed_draft(double_NV[known_N], ids_NK[known_N].long())
    for name, weight in weights.items():
        loss = weight * DISTRIBUTION_LOSSES[name](logp_NC, logq_NC)
        expected_N = expected_N.index_put((known_N,), loss, accumulate=True)
    (expected_NV,) = torch.autograd.grad(expected_N.sum(), double_NV)

    loss_N = bucketed_divergences(
        logits_NV,
        logp_NK,
        ids_NK,
        weights=weights,
        labels_N=labels_N,
        cross_entropy_weight_N=cross_entropy_weight_N,
    )
    # Logits of up to 600 are rounded by 3e-5.
    torch.testing.assert_close(loss_N.double(), expected_N.detach(), rtol=1e-5, atol=1e-5 * largest / 3)
    torch.testing.assert_close(logits_NV.double(), expected_NV, rtol=1e-3, atol=1e-6 * largest / 3)


def test_no_tokens_have_no_losses():
    losses = bucketed_divergences(
        torch.zeros(0, 11),
        torch.zeros(0, 3),
        torch.zeros(0, 3).int(),
        weights={"forward_kl": 1.0},
        labels_N=torch.zeros(0).long(),
        cross_entropy_weight_N=torch.zeros(0),
    )
    assert losses.tolist() == []


def test_the_gradient_overwrites_bf16_logits_rounded():
    generator = torch.Generator().manual_seed(3)
    logits_NV = (3 * torch.randn(11, 31, generator=generator)).bfloat16()
    top = torch.randn(11, 31, generator=generator).log_softmax(-1).topk(5)
    options = {
        "weights": {"forward_kl": 0.5, "total_variation": 0.5},
        "labels_N": torch.arange(11),
        "cross_entropy_weight_N": torch.full((11,), 0.3),
    }
    exact_NV = logits_NV.float()
    expected_N = bucketed_divergences(exact_NV, top.values, top.indices, **options)
    assert torch.equal(bucketed_divergences(logits_NV, top.values, top.indices, **options), expected_N)
    assert torch.equal(logits_NV, exact_NV.bfloat16())
