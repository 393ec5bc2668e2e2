"""Divergences of two distributions given by their logits, with the gradient that is known in closed form.

With g = dL / dlog q of a token, the gradient for the draft's logits is g - q sum(g) (docs/maths.md, "Losses"). Autograd
keeps each of a dozen matrices of tokens times vocabulary; this keeps one, and works on rows that stay in the cache.

Dimensions: N tokens of a chunk, V vocabulary.
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
# Log-probabilities at least: where a target excludes a token, 0 log 0 must be 0 and no NaN.
LEAST_LOGP = -1e4


def divergences(logits_NV: Tensor, target_logits: TargetLogits, weights: Mapping[str, float]) -> Tensor:
    """(N) the weighted sum of divergences between softmax(target) and softmax(draft), differentiable in the draft's."""
    found: Tensor = _Divergences.apply(logits_NV, target_logits, weights)  # type: ignore[no-untyped-call]
    return found


class _Divergences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, target_logits: TargetLogits, weights: Mapping[str, float]) -> Tensor:
        gradient_NV, losses = torch.empty_like(logits_NV), []
        for rows in _pieces(logits_NV):
            distributions = _distributions(target_logits(rows), logits_NV[rows])
            loss_N, slope = _weighted(distributions, weights)
            losses.append(loss_N)
            torch.addcmul(slope, distributions.q, slope.sum(-1, keepdim=True), value=-1, out=gradient_NV[rows])
        ctx.save_for_backward(gradient_NV)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # In place: the graph is walked once, and autograd notices where it is not.
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV.mul_(grad_outputs[0][:, None]), None, None


def bucketed_divergences(
    logits_NV: Tensor,
    logp_NK: Tensor,
    ids_NK: Tensor,
    weights: Mapping[str, float],
    labels_N: Tensor,
    text_N: Tensor,
) -> Tensor:
    """(N) the weighted divergences from K stored log-probabilities, plus text_N times the cross entropy of the label.

    The logits are replaced by the gradient of the sum. Tokens whose logp_NK is NaN have cross entropy alone. K < V.
    The outcomes are the K tokens and one bucket for all others (maths/bucketed.py). With q_r the draft's probability of
    the bucket, the gradient of another token's logit is its share of the bucket times (g_r - q_r sum(g)).
    """
    pieces = _pieces(logits_NV)
    if not len(logits_NV):
        return logits_NV.new_zeros(0, dtype=torch.float32)
    return torch.cat(
        [
            _coarse_in_cache(logits_NV[rows], logp_NK[rows], ids_NK[rows], weights, labels_N[rows], text_N[rows])
            for rows in pieces
        ]
    )


def _coarse_in_cache(
    logits_NV: Tensor,
    logp_NK: Tensor,
    ids_NK: Tensor,
    weights: Mapping[str, float],
    labels_N: Tensor,
    text_N: Tensor,
) -> Tensor:
    known_N1, label_N1, text_N1 = ~logp_NK[:, :1].isnan(), labels_N[:, None], text_N[:, None]
    # Any K distinct tokens and any finite distribution do where none was stored: their slope is set to 0 below.
    ids_NK = ids_NK.where(known_N1, torch.arange(ids_NK.shape[1], device=ids_NK.device))
    logp_NC = bucketed_target(logp_NK.float().where(known_N1, -math.log(logits_NV.shape[1])), logits_NV.shape[1])
    scores_NV = logits_NV.float()
    label_score_N1, known_scores_NK = scores_NV.gather(1, label_N1), scores_NV.gather(1, ids_NK)
    # The others alone: 1 - the sum of the known has no digits left where the draft is sure.
    scores_NV.scatter_(1, ids_NK, -torch.inf)
    rest_score_N1 = scores_NV.amax(1, keepdim=True)
    torch.softmax(scores_NV, 1, out=scores_NV)
    rest_score_N1 -= scores_NV.amax(1, keepdim=True).log_()
    outcomes_NC = torch.cat([known_scores_NK, rest_score_N1], 1)
    total_N1 = outcomes_NC.logsumexp(1, keepdim=True)
    logp_NC, logq_NC = logp_NC.clamp_(min=LEAST_LOGP), outcomes_NC - total_N1
    loss_N, slope_NC = _weighted(_Distributions(logp_NC, logq_NC, logp_NC.exp(), logq_NC.exp()), weights)
    slope_NC = slope_NC.where(known_N1, 0)
    by_outcome_NC = slope_NC - logq_NC.exp() * (slope_NC.sum(1, keepdim=True) - text_N1)
    scores_NV.mul_(by_outcome_NC[:, -1:]).scatter_(1, ids_NK, by_outcome_NC[:, :-1])
    scores_NV.scatter_add_(1, label_N1, -text_N1)
    if scores_NV is not logits_NV:  # fp32 logits are their own copy
        logits_NV.copy_(scores_NV)
    return loss_N.where(known_N1[:, 0], 0) + text_N * (total_N1 - label_score_N1)[:, 0]


def _weighted(distributions: _Distributions, weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """(N) the weighted sum of the losses, and (N,V) that of their slopes."""
    found = [(weight, *_graded(name, distributions)) for name, weight in weights.items()]
    slope_NV = found[0][0] * found[0][2]
    for weight, _, more in found[1:]:
        slope_NV.add_(more, alpha=weight)
    return torch.stack([weight * loss_N for weight, loss_N, _ in found]).sum(0), slope_NV


class _Distributions(NamedTuple):
    """(N,V) the target's distribution p and the draft's q, with their logarithms."""

    logp: Tensor
    logq: Tensor
    p: Tensor
    q: Tensor


def _distributions(target_NV: Tensor, draft_NV: Tensor) -> _Distributions:
    logp, logq = target_NV.log_softmax(-1).clamp_(min=LEAST_LOGP), draft_NV.log_softmax(-1)
    return _Distributions(logp, logq, logp.exp(), logq.exp())


def _pieces(logits_NV: Tensor) -> list[slice]:
    """Rows whose logits stay in the cache of a CPU; an accelerator takes all at once. Of no rows one empty piece."""
    rows, vocabulary = logits_NV.shape
    on_cpu = logits_NV.device.type == "cpu"
    step = max(torch.get_num_threads() * CACHED_BYTES // (4 * vocabulary) if on_cpu else rows, 1)
    return [slice(start, min(start + step, rows)) for start in range(0, max(rows, 1), step)]


def _graded(name: str, distributions: _Distributions) -> tuple[Tensor, Tensor]:
    """(N) a loss and (N,V) its g; autograd finds that of a loss for which nobody wrote it down."""
    if name in GRADED:
        return GRADED[name](distributions)
    with torch.enable_grad():
        leaf = distributions.logq.detach().requires_grad_()
        loss = DISTRIBUTION_LOSSES[name](distributions.logp, leaf)
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), slope


# (N) the loss, as `maths.divergence` has it, and (N,V) g, up to a multiple of q.


def _forward_kl(distributions: _Distributions) -> tuple[Tensor, Tensor]:
    return (distributions.logp - distributions.logq).mul_(distributions.p).sum(-1), -distributions.p


def _reverse_kl(distributions: _Distributions) -> tuple[Tensor, Tensor]:
    terms = (distributions.logq - distributions.logp).mul_(distributions.q)
    return terms.sum(-1), terms


def _jensen_shannon(distributions: _Distributions) -> tuple[Tensor, Tensor]:
    logm = distributions.logp.logaddexp(distributions.logq) - math.log(2)
    of_q = (distributions.logq - logm).mul_(distributions.q).div_(2)
    return of_q.sum(-1) + (distributions.logp - logm).mul_(distributions.p).sum(-1) / 2, of_q


def _total_variation(distributions: _Distributions) -> tuple[Tensor, Tensor]:
    difference = distributions.q - distributions.p
    return difference.abs().sum(-1) / 2, difference.sign_().mul_(distributions.q).div_(2)


GRADED: dict[str, Callable[[_Distributions], tuple[Tensor, Tensor]]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jensen_shannon": _jensen_shannon,
    "total_variation": _total_variation,
}
