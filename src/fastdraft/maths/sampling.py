"""The distribution that a token is sampled from: logits after temperature, top-k and top-p.

Greedy decoding is not temperature 0 of it: `verification.accept_greedy`.

Dimensions: X any leading dimensions, V vocabulary.
"""

import torch
from torch import Tensor


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
