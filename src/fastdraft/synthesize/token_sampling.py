"""The next token of each sequence from its logits: the most likely one, or one drawn with a given random number.

Dimensions: B sequences, X any leading dimensions, V vocabulary, K top tokens.
"""

from __future__ import annotations

from torch import Tensor

from fastdraft.maths.sampling import draw_tokens, scores
from fastdraft.synthesize.completions import MIN_LOGP, SamplingParams
from fastdraft.system.errors import TargetError


def top_tokens(logits_XV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(X,K) int32 ids of the most likely tokens, and their float16 log-probabilities at temperature 1."""
    best_XK, ids_XK = logits_XV.topk(k, dim=-1)
    logp_XK = (best_XK - logits_XV.logsumexp(-1, keepdim=True)).clamp(min=MIN_LOGP, max=0)
    return ids_XK.int(), logp_XK.half()


def next_tokens(logits_BV: Tensor, sampling: SamplingParams, coin_B: Tensor) -> tuple[Tensor, Tensor]:
    """(B) the next tokens, and (B) log p of each under the distribution; TargetError if logits are NaN."""
    if sampling.greedy:
        best_B, token_B = logits_BV.max(-1)
        logp_B = best_B - best_B  # 0, or NaN if any logit is NaN: max propagates it
    else:
        p_BV = scores(logits_BV, *sampling).softmax(-1)
        token_B = draw_tokens(p_BV, coin_B)
        logp_B = p_BV.gather(1, token_B[:, None])[:, 0].log()
    if logp_B.isnan().any():
        raise TargetError("the target's logits are NaN\n  do: check its weights, or load it in float32")
    return token_B, logp_B
