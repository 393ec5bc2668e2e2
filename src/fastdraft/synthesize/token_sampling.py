"""The next token of each sequence from its logits: the most likely one, or one drawn with a given random number.

Dimensions: B sequences, X any leading dimensions, V vocabulary, K blocks or top tokens, S tokens of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastdraft.maths.sampling import scores
from fastdraft.synthesize.completions import MIN_LOGP, SamplingParams
from fastdraft.system.errors import TargetError

# The vocabulary is summed in blocks of this size; the cumulative sum within a block is computed for one block only.
BLOCK_TOKENS = 64


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


def draw_tokens(p_BV: Tensor, coin_B: Tensor) -> Tensor:
    """(B) inverse transform sampling: the first token whose cumulative probability exceeds the coin, uniform on [0, 1).

    Never a token of probability 0. Sums are in float64. Blocks are summed first: one cumulative sum over a vocabulary
    of 8 192 took an eighth of the decoding time.
    """
    p_BKS = pad(p_BV, (0, -p_BV.shape[1] % BLOCK_TOKENS)).unflatten(1, (-1, BLOCK_TOKENS))
    blocks_BK = p_BKS.sum(-1, dtype=torch.float64).cumsum(-1)
    total_B1 = blocks_BK[:, -1:]
    # Below the total whatever the rounding.
    aim_B1 = (coin_B[:, None] * total_B1).minimum(total_B1.nextafter(torch.zeros_like(total_B1)))
    block_B1 = torch.searchsorted(blocks_BK, aim_B1, right=True)
    before_B1 = torch.where(block_B1 > 0, blocks_BK.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    inside_BS = p_BKS.gather(1, block_B1[:, :, None].expand(-1, -1, BLOCK_TOKENS))[:, 0].double()
    sums_BS = before_B1 + inside_BS.cumsum(-1)
    # If rounding puts the coin above the last sum of the block, the block's last token of nonzero probability is drawn.
    last_B1 = (BLOCK_TOKENS - 1) - (inside_BS > 0).flip(-1).int().argmax(-1, keepdim=True)
    offset_B1 = torch.searchsorted(sums_BS, aim_B1, right=True).minimum(last_B1)
    return (block_B1 * BLOCK_TOKENS + offset_B1)[:, 0]
