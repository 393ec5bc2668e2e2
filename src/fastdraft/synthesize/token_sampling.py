"""The next token of each row, from its logits: the most likely, or the one that a coin falls on.

Dimensions: B rows in hand, X any leading dimensions, V vocabulary, K blocks or most likely tokens, S tokens of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastdraft.maths.sampling import scores
from fastdraft.synthesize.completions import LEAST_LOGP, SamplingParams
from fastdraft.system.errors import TargetError

# Tokens of the vocabulary whose probabilities are summed before the place of a coin is looked for among the sums.
BLOCK_TOKENS = 64


def likeliest(logits_XV: Tensor, known_tokens: int) -> tuple[Tensor, Tensor]:
    """(X,K) ids of the most likely tokens, and their log-probabilities at temperature 1 as they are kept, float16."""
    best_XK, ids_XK = logits_XV.topk(known_tokens, dim=-1)
    logp_XK = (best_XK - logits_XV.logsumexp(-1, keepdim=True)).clamp(min=LEAST_LOGP, max=0)
    return ids_XK.int(), logp_XK.half()


def choose(logits_BV: Tensor, sampling: SamplingParams, coin_B: Tensor) -> tuple[Tensor, Tensor]:
    """(B) the next tokens, and (B) log p of each under the distribution; TargetError where logits are NaN."""
    if sampling.greedy:
        best_B, token_B = logits_BV.max(-1)
        logp_B = best_B - best_B  # 0, or NaN where a logit is: max passes it on
    else:
        p_BV = scores(logits_BV, *sampling).softmax(-1)
        token_B = draw(p_BV, coin_B)
        logp_B = p_BV.gather(1, token_B[:, None])[:, 0].log()
    if logp_B.isnan().any():
        raise TargetError("the target's logits are NaN\n  do: check its weights, or load it in float32")
    return token_B, logp_B


def draw(p_BV: Tensor, coin_B: Tensor) -> Tensor:
    """(B) the first token at which the sum of the probabilities exceeds the coin: never one of probability 0.

    Summed in float64, by blocks first: the sums of all 8 192 tokens took an eighth of the time of decoding.
    """
    p_BKS = pad(p_BV, (0, -p_BV.shape[1] % BLOCK_TOKENS)).unflatten(1, (-1, BLOCK_TOKENS))
    blocks_BK = p_BKS.sum(-1, dtype=torch.float64).cumsum(-1)
    total_B1 = blocks_BK[:, -1:]
    # Below the whole sum, whatever rounding does.
    aim_B1 = (coin_B[:, None] * total_B1).minimum(total_B1.nextafter(torch.zeros_like(total_B1)))
    block_B1 = torch.searchsorted(blocks_BK, aim_B1, right=True)
    before_B1 = torch.where(block_B1 > 0, blocks_BK.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    inside_BS = p_BKS.gather(1, block_B1[:, :, None].expand(-1, -1, BLOCK_TOKENS))[:, 0].double()
    sums_BS = before_B1 + inside_BS.cumsum(-1)
    # Where rounding puts the coin behind the block's last sum, its last token of any probability is meant.
    last_B1 = (BLOCK_TOKENS - 1) - (inside_BS > 0).flip(-1).int().argmax(-1, keepdim=True)
    place_B1 = torch.searchsorted(sums_BS, aim_B1, right=True).minimum(last_B1)
    return (block_B1 * BLOCK_TOKENS + place_B1)[:, 0]
