"""The distribution that a token is sampled from, logits after temperature, top-k and top-p; and tokens drawn from it.

Greedy decoding is not temperature 0 of it: `verification.accept_greedy`.

Dimensions: X any leading dimensions, B sequences, V vocabulary, K blocks of the vocabulary, S tokens of a block.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

# The vocabulary is summed in blocks of this size; the cumulative sum within a block is computed for one block only.
BLOCK_TOKENS = 64


def warp(logits_XV: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """(X,V) float32 log-probabilities after temperature, then top-k (0: all), then top-p. Removed tokens are -inf."""
    return scores(logits_XV, temperature, top_k, top_p).log_softmax(-1)


def scores(logits_XV: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """(X,V) float32 scores whose softmax is the distribution of `warp`. Removed tokens are -inf.

    Order, ties and limits are those of transformers' logits warpers. ValueError for a parameter out of range.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, wanted more than 0; for greedy decoding use accept_greedy")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}, wanted 0 (keep all) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, wanted more than 0 and at most 1")
    scores_XV = logits_XV.float() / temperature
    if top_k > 0:
        scores_XV = _keep_top_k(scores_XV, top_k)
    if top_p < 1:
        scores_XV = _keep_top_p(scores_XV, top_p)
    return scores_XV


def _keep_top_k(scores_XV: Tensor, top_k: int) -> Tensor:
    """(X,V) the k highest scores and any ties with the k-th; the others are -inf."""
    lowest_kept_X1 = scores_XV.topk(min(top_k, scores_XV.shape[-1]), dim=-1).values[..., -1:]
    return scores_XV.masked_fill(scores_XV < lowest_kept_X1, -torch.inf)


def _keep_top_p(scores_XV: Tensor, top_p: float) -> Tensor:
    """(X,V) the smallest set of most likely tokens whose mass reaches top_p, at least one; the others are -inf."""
    # Ascending and unstable, as in transformers: among equal scores at the edge, the last of this sort is kept.
    ascending_XV, order_XV = scores_XV.sort(dim=-1)
    removed_XV = ascending_XV.softmax(-1).cumsum(-1) <= 1 - top_p
    removed_XV[..., -1] = False
    return scores_XV.masked_fill(removed_XV.scatter(-1, order_XV, removed_XV), -torch.inf)


def draw_tokens(p_BV: Tensor, coin_B: Tensor) -> Tensor:
    """(B) inverse transform sampling: the first token whose cumulative probability exceeds the coin, uniform on [0, 1).

    Never a token of probability 0. If probabilities are NaN, any token of the vocabulary: the caller finds the NaN in
    its results. Sums are in float64. Blocks are summed first: one cumulative sum over a vocabulary of 8 192 took an
    eighth of the decoding time.
    """
    p_BKS = pad(p_BV, (0, -p_BV.shape[1] % BLOCK_TOKENS)).unflatten(1, (-1, BLOCK_TOKENS))
    blocks_BK = p_BKS.sum(-1, dtype=torch.float64).cumsum(-1)
    total_B1 = blocks_BK[:, -1:]
    # Below the total whatever the rounding.
    aim_B1 = (coin_B[:, None] * total_B1).minimum(total_B1.nextafter(torch.zeros_like(total_B1)))
    block_B1 = torch.searchsorted(blocks_BK, aim_B1, right=True).clamp(max=blocks_BK.shape[1] - 1)
    before_B1 = torch.where(block_B1 > 0, blocks_BK.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    inside_BS = p_BKS.gather(1, block_B1[:, :, None].expand(-1, -1, BLOCK_TOKENS))[:, 0].double()
    sums_BS = before_B1 + inside_BS.cumsum(-1)
    # If rounding puts the coin above the last sum of the block, the block's last token of nonzero probability is drawn.
    last_B1 = (BLOCK_TOKENS - 1) - (inside_BS > 0).flip(-1).int().argmax(-1, keepdim=True)
    offset_B1 = torch.searchsorted(sums_BS, aim_B1, right=True).minimum(last_B1)
    return (block_B1 * BLOCK_TOKENS + offset_B1)[:, 0].clamp(max=p_BV.shape[1] - 1)
