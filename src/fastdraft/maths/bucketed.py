"""Distributions known on some tokens only: those K tokens one by one, and all others as one bucket.

A coarser distribution can only bring two distributions closer (data-processing inequality): KL, Jensen-Shannon and
total variation on
K + 1 outcomes are lower bounds of those on the vocabulary, and equal to them where K is the vocabulary.

Dimensions: X any leading dimensions, K known tokens, V vocabulary, C = K + 1 outcomes, or K where K = V.
"""

import torch
from torch import Tensor

# The least mass of the bucket: float16 log-probabilities may sum to more than 1, by up to a thousandth.
REST_AT_LEAST = 2.0**-20


def coarse_target(logp_XK: Tensor, vocab_rows: int) -> Tensor:
    """(X,C) log-probabilities from those of the K most likely tokens; the bucket holds what they leave of 1."""
    if logp_XK.shape[-1] == vocab_rows:
        return logp_XK.log_softmax(-1)
    rest_X1 = (1 - logp_XK.exp().sum(-1, keepdim=True)).clamp(min=REST_AT_LEAST).log()
    return torch.cat([logp_XK, rest_X1], -1).log_softmax(-1)


def coarse_draft(logits_XV: Tensor, ids_XK: Tensor) -> Tensor:
    """(X,C) log-probabilities of the same outcomes, from logits; the ids of a place are distinct."""
    known_XK = logits_XV.gather(-1, ids_XK)
    if ids_XK.shape[-1] == logits_XV.shape[-1]:
        return known_XK.log_softmax(-1)
    # Summed over the others, not 1 - the sum of the known: that has no digits left where the draft is sure.
    rest_X1 = logits_XV.scatter(-1, ids_XK, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([known_XK, rest_X1], -1).log_softmax(-1)
