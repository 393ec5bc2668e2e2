"""Divergences of two distributions given by their logits, with a closed-form gradient.

With g = dL / dlog q of each token, the gradient of the draft's logits is g - q sum(g) (docs/maths.md, "Losses").
Autograd keeps a dozen matrices of tokens x vocabulary. This keeps one, and works on rows that stay in the cache.

Dimensions: N tokens of a chunk, V vocabulary, K stored tokens, C = K + 1 outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdraft.maths.bucketed import bucketed_target
from fastdraft.maths.divergence import DISTRIBUTION_LOSSES
from fastdraft.train.head import CACHED_BYTES

# (rows of the chunk) -> (N,V) the target's logits
TargetLogits = Callable[[slice], Tensor]
# Lower bound of log p: 0 log 0 must be 0 and not NaN where a target excludes a token.
MIN_LOGP = -1e4


class _Distributions(NamedTuple):
    """(N,V) the target's distribution p and the draft's q, with their logarithms."""

    logp: Tensor
    logq: Tensor
    p: Tensor
    q: Tensor


def divergences(logits_NV: Tensor, target_logits: TargetLogits, weights: Mapping[str, float]) -> Tensor:
    """(N) the weighted sum of divergences between softmax(target) and softmax(draft), with the draft's gradient."""
    losses_N: Tensor = _Divergences.apply(logits_NV, target_logits, weights)  # type: ignore[no-untyped-call]
    return losses_N


class _Divergences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, target_logits: TargetLogits, weights: Mapping[str, float]) -> Tensor:
        gradient_NV, losses = torch.empty_like(logits_NV), []
        for rows in _pieces(logits_NV):
            logp = target_logits(rows).log_softmax(-1).clamp_(min=MIN_LOGP)
            logq = logits_NV[rows].log_softmax(-1)
            q = logq.exp()
            loss_N, g_NV = _weighted_sum(_Distributions(logp, logq, logp.exp(), q), weights)
            losses.append(loss_N)
            torch.addcmul(g_NV, q, g_NV.sum(-1, keepdim=True), value=-1, out=gradient_NV[rows])
        ctx.save_for_backward(gradient_NV)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # In place: the graph is backpropagated once, and autograd raises an error on a second time.
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV.mul_(grad_outputs[0][:, None]), None, None


def bucketed_divergences(
    logits_NV: Tensor,
    logp_NK: Tensor,
    ids_NK: Tensor,
    *,
    weights: Mapping[str, float],
    labels_N: Tensor,
    cross_entropy_weight_N: Tensor,
) -> Tensor:
    """(N) the weighted divergences from K stored log-probabilities, plus the weighted cross entropy of the label.

    Overwrites the logits with the gradient of the sum. Tokens whose logp_NK is NaN have cross entropy alone. K < V.
    The outcomes are the K tokens and one bucket for all others (maths/bucketed.py). With q_r the draft's probability of
    the bucket, the gradient of the logit of a token in the bucket is its share of the bucket x (g_r - q_r sum(g)).
    """
    if not len(logits_NV):
        return logits_NV.new_zeros(0, dtype=torch.float32)
    return torch.cat(
        [
            _bucketed_in_cache(
                logits_NV[rows], logp_NK[rows], ids_NK[rows], weights, labels_N[rows], cross_entropy_weight_N[rows]
            )
            for rows in _pieces(logits_NV)
        ]
    )


def _bucketed_in_cache(
    logits_NV: Tensor,
    logp_NK: Tensor,
    ids_NK: Tensor,
    weights: Mapping[str, float],
    labels_N: Tensor,
    cross_entropy_weight_N: Tensor,
) -> Tensor:
    known_N1, label_N1 = ~logp_NK[:, :1].isnan(), labels_N[:, None]
    cross_entropy_weight_N1 = cross_entropy_weight_N[:, None]
    # Where nothing was stored, use any K distinct tokens and any finite distribution: their g is set to 0 below.
    ids_NK = ids_NK.where(known_N1, torch.arange(ids_NK.shape[1], device=ids_NK.device))
    logp_NC = bucketed_target(logp_NK.float().where(known_N1, -math.log(logits_NV.shape[1])), logits_NV.shape[1])
    scores_NV = logits_NV.float()
    label_score_N1, known_scores_NK = scores_NV.gather(1, label_N1), scores_NV.gather(1, ids_NK)
    # logsumexp over the bucket's tokens: 1 - sum(known) loses all digits where the draft is almost certain.
    scores_NV.scatter_(1, ids_NK, -torch.inf)
    bucket_score_N1 = scores_NV.amax(1, keepdim=True)
    torch.softmax(scores_NV, 1, out=scores_NV)
    bucket_score_N1 -= scores_NV.amax(1, keepdim=True).log_()
    outcome_scores_NC = torch.cat([known_scores_NK, bucket_score_N1], 1)
    log_normaliser_N1 = outcome_scores_NC.logsumexp(1, keepdim=True)
    logp_NC, logq_NC = logp_NC.clamp_(min=MIN_LOGP), outcome_scores_NC - log_normaliser_N1
    q_NC = logq_NC.exp()
    loss_N, g_NC = _weighted_sum(_Distributions(logp_NC, logq_NC, logp_NC.exp(), q_NC), weights)
    g_NC = g_NC.where(known_N1, 0)
    gradient_NC = g_NC - q_NC * (g_NC.sum(1, keepdim=True) - cross_entropy_weight_N1)
    scores_NV.mul_(gradient_NC[:, -1:]).scatter_(1, ids_NK, gradient_NC[:, :-1])
    scores_NV.scatter_add_(1, label_N1, -cross_entropy_weight_N1)
    if scores_NV is not logits_NV:  # .float() of fp32 logits is no copy
        logits_NV.copy_(scores_NV)
    return loss_N.where(known_N1[:, 0], 0) + cross_entropy_weight_N * (log_normaliser_N1 - label_score_N1)[:, 0]


def _pieces(logits_NV: Tensor) -> list[slice]:
    """Rows whose logits stay in the cache of a CPU; on an accelerator all rows. One empty piece for no rows."""
    rows, vocabulary = logits_NV.shape
    on_cpu = logits_NV.device.type == "cpu"
    step = max(torch.get_num_threads() * CACHED_BYTES // (4 * vocabulary) if on_cpu else rows, 1)
    return [slice(start, min(start + step, rows)) for start in range(0, max(rows, 1), step)]


def _weighted_sum(distributions: _Distributions, weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """(N) the weighted sum of the losses, and (N,V) of their g."""
    terms = [(weight, *_loss_and_g(name, distributions)) for name, weight in weights.items()]
    g_NV = terms[0][0] * terms[0][2]
    for weight, _, term_g_NV in terms[1:]:
        g_NV.add_(term_g_NV, alpha=weight)
    return torch.stack([weight * loss_N for weight, loss_N, _ in terms]).sum(0), g_NV


def _loss_and_g(name: str, distributions: _Distributions) -> tuple[Tensor, Tensor]:
    """(N) a loss and (N,V) its g, by autograd for a loss without a closed form here."""
    if name in CLOSED_FORMS:
        return CLOSED_FORMS[name](distributions)
    with torch.enable_grad():
        leaf = distributions.logq.detach().requires_grad_()
        loss = DISTRIBUTION_LOSSES[name](distributions.logp, leaf)
        (g_NV,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), g_NV


# (N) the loss as in `maths.divergence`, and (N,V) g up to a multiple of q, which cancels in g - q sum(g).


def _forward_kl(distributions: _Distributions) -> tuple[Tensor, Tensor]:
    return (distributions.logp - distributions.logq).mul_(distributions.p).sum(-1), -distributions.p


def _reverse_kl(distributions: _Distributions) -> tuple[Tensor, Tensor]:
    terms = (distributions.logq - distributions.logp).mul_(distributions.q)
    return terms.sum(-1), terms


def _jensen_shannon(distributions: _Distributions) -> tuple[Tensor, Tensor]:
    logm = distributions.logp.logaddexp(distributions.logq) - math.log(2)
    q_terms = (distributions.logq - logm).mul_(distributions.q).div_(2)
    return q_terms.sum(-1) + (distributions.logp - logm).mul_(distributions.p).sum(-1) / 2, q_terms


def _total_variation(distributions: _Distributions) -> tuple[Tensor, Tensor]:
    difference = distributions.q - distributions.p
    return difference.abs().sum(-1) / 2, difference.sign_().mul_(distributions.q).div_(2)


CLOSED_FORMS: dict[str, Callable[[_Distributions], tuple[Tensor, Tensor]]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jensen_shannon": _jensen_shannon,
    "total_variation": _total_variation,
}
