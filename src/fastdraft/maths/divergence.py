"""Losses of a draft against its target, per token: never masked, summed or averaged here (see `reduction`).

Log-probabilities may be -inf, where a distribution has removed a token: 0 log 0 is 0, in value and in gradient.

Dimensions: X any leading dimensions, V vocabulary, B texts, N positions of a text, G drafted tokens of a block.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastdraft.maths.acceptance import acceptance_sampled, chain, forwards_by_place

DistributionLoss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits_XV: Tensor, token_X: Tensor) -> Tensor:
    """(X) -log q(token) in float32, from the draft's logits; a token that is masked later may be any valid id."""
    # torch's fused kernels: a third less time, forward and backward, than logsumexp - gather (512 x 8 192, two cores).
    flat_N = nn.functional.cross_entropy(logits_XV.float().flatten(0, -2), token_X.flatten(), reduction="none")
    return flat_N.view(token_X.shape)


def forward_kl(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    """(X) KL(p || q) = sum p log(p/q): the draft must cover the target; infinite where it misses a token of p."""
    p_XV = logp_XV.exp()
    absent_XV = p_XV == 0
    # Filled before the product, not after it: the gradient of a discarded 0 * inf is NaN.
    return (p_XV * (logp_XV.masked_fill(absent_XV, 0) - logq_XV.masked_fill(absent_XV, 0))).sum(-1)


def reverse_kl(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    """(X) KL(q || p) = sum q log(q/p): the draft must stay inside the target; infinite where it leaves p."""
    return forward_kl(logq_XV, logp_XV)


def jensen_shannon(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    """(X) mean KL of p and of q to their mixture (p + q) / 2, in [0, log 2]: finite and symmetric."""
    absent_XV = logp_XV.isneginf() & logq_XV.isneginf()
    # One of the two is filled: logaddexp has no gradient where both are -inf, and what it holds there is not read.
    logm_XV = logp_XV.masked_fill(absent_XV, 0).logaddexp(logq_XV) - math.log(2)
    return (forward_kl(logp_XV, logm_XV) + forward_kl(logq_XV, logm_XV)) / 2


def total_variation(logp_XV: Tensor, logq_XV: Tensor) -> Tensor:
    """(X) TVD(p, q) = sum |p - q| / 2 = 1 - sum min(p, q): one minus the chance that a drafted token is accepted."""
    return (logp_XV.exp() - logq_XV.exp()).abs().sum(-1) / 2


def sampled_total_variation(logp_X: Tensor, logq_X: Tensor) -> Tensor:
    """(X) -min(1, q/p) of the token the target sampled: an unbiased estimate of TVD(p, q) - 1 without stored logits."""
    return -acceptance_sampled(logp_X, logq_X)


def block_length(logp_BN: Tensor, logq_BN: Tensor, lengths_B: Tensor, gamma: int, decay: float = 1.0) -> Tensor:
    """(B) expected target forwards over texts that the target sampled, docs/maths.md, "All gammas from one pass".

    Divided by the number of tokens it is 1 / block efficiency, pooled: a sum over texts, as the tokens per forward are
    not. What lies past a text's length is not looked at, as long as it is finite. With a decay the value is the same,
    and what drafted token j has to say in the gradient weighs decay^(j - 1): docs/maths.md, "Losses".
    """
    accept_BN = acceptance_sampled(logp_BN, logq_BN)
    if decay == 1:
        return chain(accept_BN, lengths_B, gamma).forwards_B
    weight_G = decay ** torch.arange(gamma, device=accept_BN.device, dtype=accept_BN.dtype)
    held_BN1 = accept_BN.detach()[:, :, None]
    return forwards_by_place(held_BN1 + weight_G * (accept_BN[:, :, None] - held_BN1), lengths_B)


DISTRIBUTION_LOSSES: dict[str, DistributionLoss] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "total_variation": total_variation,
}
