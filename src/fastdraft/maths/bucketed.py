"""Distributions from the top-K log-probabilities: K tokens one by one, and all other tokens as one bucket.

Merging outcomes can only bring two distributions closer (data-processing inequality). So KL, Jensen-Shannon and total
variation on K + 1 outcomes are lower bounds of those on the whole vocabulary, and equal to them if K is the vocabulary.

Dimensions: X any leading dimensions, K known tokens, V vocabulary, C = K + 1 outcomes, or K if K = V.
"""

import torch
from torch import Tensor

# Top-K probabilities stored as float16 logarithms may sum to as much as 1.001, which would leave a bucket below 0.
MIN_BUCKET_MASS = 2.0**-20


def bucketed_target(logp_XK: Tensor, vocab_rows: int) -> Tensor:
    """(X,C) log-probabilities from those of the target's K most likely tokens; the bucket gets the remaining mass."""
    if logp_XK.shape[-1] == vocab_rows:
        return logp_XK.log_softmax(-1)
    rest_X1 = (1 - logp_XK.exp().sum(-1, keepdim=True)).clamp(min=MIN_BUCKET_MASS).log()
    return torch.cat([logp_XK, rest_X1], -1).log_softmax(-1)


def bucketed_draft(logits_XV: Tensor, ids_XK: Tensor) -> Tensor:
    """(X,C) the draft's log-probabilities of the same outcomes. The K ids of a position must be distinct."""
    known_XK = logits_XV.gather(-1, ids_XK)
    if ids_XK.shape[-1] == logits_XV.shape[-1]:
        return known_XK.log_softmax(-1)
    # logsumexp over the bucket's tokens: 1 - sum(known) loses all digits where the draft is almost certain.
    rest_X1 = logits_XV.scatter(-1, ids_XK, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([known_XK, rest_X1], -1).log_softmax(-1)
