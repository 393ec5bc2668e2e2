"""The closed-form gradient of divergences is autograd's, over as many pieces as the cache asks for."""

import pytest
import torch

from fastdraft.config import DISTRIBUTION_OBJECTIVES
from fastdraft.maths.bucketed import bucketed_draft, bucketed_target
from fastdraft.maths.divergence import DISTRIBUTION_LOSSES
from fastdraft.train.divergence_kernels import GRADED, _pieces, bucketed_divergences, divergences

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
    sampling_settings = target_NV.double().log_softmax(-1), plain_NV.log_softmax(-1)
    wanted_N = sum(weight * DISTRIBUTION_LOSSES[name](*sampling_settings) for name, weight in weights.items())
    (wanted,) = torch.autograd.grad((wanted_N * share_N).sum(), plain_NV)
    torch.testing.assert_close(found_N.double(), wanted_N, rtol=1e-4, atol=1e-5)
    # The slope of |q - p| jumps by q where the two are equal: which side fp32 sees is open where log p and log q differ
    # by less than they are rounded by, a few units in the last place of numbers up to 32.
    logp_NV, logq_NV = (log.detach() for log in sampling_settings)
    tied_NV = (logp_NV - logq_NV).abs() < 4 * 32 * torch.finfo(torch.float32).eps
    assert tied_NV.float().mean() < 1e-4
    jump_NV = weights.get("total_variation", 0) * share_N[:, None] * logq_NV.exp() * tied_NV
    assert ((gradient - wanted).abs() <= 1e-7 + 1e-3 * wanted.abs() + jump_NV).all()


def test_recipes_know_every_divergence():
    assert DISTRIBUTION_OBJECTIVES == DISTRIBUTION_LOSSES.keys() >= GRADED.keys()


def test_tokens_that_the_target_excludes_have_the_loss_and_gradient_of_their_distribution():
    target_NV = torch.tensor([[1.0, -torch.inf, 0.5], [0.0, 2.0, -torch.inf]])
    logits_NV = torch.tensor([[0.3, 0.2, -1.0], [0.0, 1.0, 2.0]], requires_grad=True)
    weights = {"forward_kl": 1.0, "jensen_shannon": 1.0, "total_variation": 1.0}
    found_N = divergences(logits_NV, lambda rows: target_NV[rows], weights)
    sampling_settings = target_NV.log_softmax(-1), logits_NV.log_softmax(-1)
    wanted_N = sum(DISTRIBUTION_LOSSES[name](*sampling_settings) for name in weights)
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


@pytest.mark.parametrize("names", [*([name] for name in DISTRIBUTION_LOSSES), ["forward_kl", "total_variation"]])
@pytest.mark.parametrize("largest", [3.0, 200.0])
@pytest.mark.parametrize("text", [0.0, 0.7])
@pytest.mark.parametrize("known", ["all", "some", "none"])
def test_stored_tokens_and_a_bucket_have_the_loss_and_gradient_of_the_textbook(
    monkeypatch, names, largest, text, known
):
    """Also where the draft is so sure that the bucket's probability, or all but the bucket's, is 0 in fp32."""
    tokens, vocabulary, stored = 29, 101, 7
    monkeypatch.setattr(
        "fastdraft.train.divergence_kernels.CACHED_BYTES", 4 * vocabulary * 3
    )  # three tokens at a time, two left
    draw = torch.Generator().manual_seed(3)
    logits_NV = largest * torch.randn(tokens, vocabulary, generator=draw)
    top = torch.randn(tokens, vocabulary, generator=draw).mul(2).log_softmax(-1).topk(stored)
    logp_NK, ids_NK = top.values.half(), top.indices.int()
    if known != "all":
        unknown = torch.arange(tokens) % 2 == 1 if known == "some" else torch.ones(tokens).bool()
        logp_NK[unknown], ids_NK[unknown] = torch.nan, 0
    labels_N = torch.randint(vocabulary, (tokens,), generator=draw)
    text_N = torch.full((tokens,), text) * torch.rand(tokens, generator=draw)
    weights = {name: 0.5 + i for i, name in enumerate(names)}

    plain_NV = logits_NV.double().requires_grad_()
    wanted_N = text_N * torch.nn.functional.cross_entropy(plain_NV, labels_N, reduction="none")
    has_N = ~logp_NK[:, 0].isnan()
    sampling_settings = (
        bucketed_target(logp_NK[has_N].double(), vocabulary),
        bucketed_draft(plain_NV[has_N], ids_NK[has_N].long()),
    )
    for name, weight in weights.items():
        wanted_N = wanted_N.index_put((has_N,), weight * DISTRIBUTION_LOSSES[name](*sampling_settings), accumulate=True)
    (wanted_NV,) = torch.autograd.grad(wanted_N.sum(), plain_NV)

    found_N = bucketed_divergences(logits_NV, logp_NK, ids_NK, weights, labels_N, text_N)
    # Logits of up to 600 are rounded by 3e-5.
    torch.testing.assert_close(found_N.double(), wanted_N.detach(), rtol=1e-5, atol=1e-5 * largest / 3)
    torch.testing.assert_close(logits_NV.double(), wanted_NV, rtol=1e-3, atol=1e-6 * largest / 3)


def test_of_no_tokens_there_are_no_losses():
    nothing = torch.zeros(0, 11), torch.zeros(0, 3), torch.zeros(0, 3).int(), {"forward_kl": 1.0}
    assert bucketed_divergences(*nothing, torch.zeros(0).long(), torch.zeros(0)).tolist() == []


def test_logits_in_bf16_become_the_rounded_gradient():
    draw = torch.Generator().manual_seed(3)
    logits_NV = (3 * torch.randn(11, 31, generator=draw)).bfloat16()
    top, labels_N = torch.randn(11, 31, generator=draw).log_softmax(-1).topk(5), torch.arange(11)
    given = top.values, top.indices, {"forward_kl": 0.5, "total_variation": 0.5}, labels_N, torch.full((11,), 0.3)
    exact_NV = logits_NV.float()
    wanted_N, found_N = bucketed_divergences(exact_NV, *given), bucketed_divergences(logits_NV, *given)
    assert torch.equal(found_N, wanted_N)
    assert torch.equal(logits_NV, exact_NV.bfloat16())
