"""Losses of a draft against its target, per token, and the masked sum that adds them up.

The log-probability of a token that top-k or top-p removed is -inf: 0 log 0 is 0, in value and in gradient.

Dimensions: X any leading dimensions, V vocabulary, B texts, N positions of a text, G drafted tokens of a block.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastdraft.maths.acceptance import acceptance_sampled, chain, forwards_by_block_position

DistributionLoss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits_XV: Tensor, token_X: Tensor) -> Tensor:
    """(X) -log q(token) in float32, from the draft's logits. A token that is masked later may be any valid id."""
    # torch's fused kernel takes a third less time, forward and backward, than logsumexp - gather (512 x 8 192).
    flat_N = nn.functional.cross_entropy(logits_XV.float().flatten(0, -2), token_X.flatten(), reduction="none")
    return flat_N.view(token_X.shape)


def forward_kl(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    """(X) KL(p || q) = sum p log(p/q). It makes the draft cover the target; infinite if q misses a token of p."""
    p_XV = logp_XV.exp()
    absent_XV = p_XV == 0
    # Fill before the product: the gradient of a 0 * inf that is masked afterwards is NaN.
    return (p_XV * (logp_XV.masked_fill(absent_XV, 0) - logq_XV.masked_fill(absent_XV, 0))).sum(-1)


def reverse_kl(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    """(X) KL(q || p) = sum q log(q/p). It keeps the draft inside the target; infinite if q has a token that p lacks."""
    return forward_kl(logq_XV, logp_XV)


def jensen_shannon(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    """(X) mean KL of p and of q to their mixture (p + q) / 2, in [0, log 2]: finite and symmetric."""
    absent_XV = logp_XV.isneginf() & logq_XV.isneginf()
    # Fill one of the two: logaddexp has no gradient where both are -inf. The filled values have weight 0 below.
    logm_XV = logp_XV.masked_fill(absent_XV, 0).logaddexp(logq_XV) - math.log(2)
    return (forward_kl(logp_XV, logm_XV) + forward_kl(logq_XV, logm_XV)) / 2


def total_variation(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    """(X) TVD(p, q) = sum |p - q| / 2 = 1 - sum min(p, q): the probability that a drafted token is rejected."""
    return (logp_XV.exp() - logq_XV.exp()).abs().sum(-1) / 2


def sampled_total_variation(logp_X: Tensor, logq_X: Tensor) -> Tensor:
    """(X) -min(1, q/p) of the token the target sampled: an unbiased estimate of TVD(p, q) - 1 that needs no logits."""
    return -acceptance_sampled(logp_X, logq_X)


def block_length(logp_BN: Tensor, logq_BN: Tensor, lengths_B: Tensor, gamma: int, decay: float = 1.0) -> Tensor:
    """(B) expected target forwards over texts that the target sampled: docs/maths.md, "All gammas from one pass".

    The sum over texts divided by their tokens is 1 / block efficiency, pooled. Values past a text's length are ignored
    if they are finite. `decay` does not change the value: in the gradient, the term of drafted token j is multiplied by
    decay^(j - 1) (docs/maths.md, "Losses").
    """
    accept_BN = acceptance_sampled(logp_BN, logq_BN)
    if decay == 1:
        return chain(accept_BN, lengths_B, gamma).forwards_B
    weight_G = decay ** torch.arange(gamma, device=accept_BN.device, dtype=accept_BN.dtype)
    constant_BN1 = accept_BN.detach()[:, :, None]
    accept_BNG = constant_BN1 + weight_G * (accept_BN[:, :, None] - constant_BN1)
    return forwards_by_block_position(accept_BNG, lengths_B)


def masked_sum(loss_X: Tensor, mask_X: Tensor) -> Tensor:
    """() the sum of the losses where the mask is true. Values elsewhere, even NaN, do not enter the sum or gradient.

    Losses are summed over micro-batches and ranks, and divided once per step by the step's number of tokens.
    """
    return loss_X.where(mask_X, 0).sum()


DISTRIBUTION_LOSSES: dict[str, DistributionLoss] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "total_variation": total_variation,
}
