"""The distribution a token is sampled from: logits after temperature, top-k and top-p. Greedy is a distribution of its
own, in `verify`.

Dimensions: X any leading dimensions, V vocabulary.
"""

import torch
from torch import Tensor


def warp(logits_XV: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """(X,V) float32 log-probabilities after temperature, then top-k (0: all), then top-p; a removed token is -inf."""
    return scores(logits_XV, temperature, top_k, top_p).log_softmax(-1)


def scores(logits_XV: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """(X,V) float32 scores, whose softmax is the distribution; a removed token is -inf.

    Order, ties and limits are those of transformers' warpers: both models are compared under the distribution they run
    with.
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
    """(X,V) the scores that reach the k-th highest, ties with it included; the others are -inf."""
    kept = min(top_k, scores_XV.shape[-1])
    lowest_kept_X1 = scores_XV.topk(kept, dim=-1).values[..., -1:]
    return scores_XV.masked_fill(scores_XV < lowest_kept_X1, -torch.inf)


def _keep_top_p(scores_XV: Tensor, top_p: float) -> Tensor:
    """(X,V) the smallest set of most likely tokens whose mass reaches top_p, never empty; the others are -inf."""
    # Ascending, and not stable: among equal scores at the edge, transformers keeps what this very sort puts last.
    ascending_XV, order_XV = scores_XV.sort(dim=-1)
    removed_XV = ascending_XV.softmax(-1).cumsum(-1) <= 1 - top_p
    removed_XV[..., -1] = False
    return scores_XV.masked_fill(removed_XV.scatter(-1, order_XV, removed_XV), -torch.inf)
