"""The most likely tokens of each place as an engine says them: ids with their log-probabilities, in any order.

Dimensions: N tokens of a completion, W tokens that an engine says of a place at most, K most likely tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fastdraft.synthesize.completions import LEAST_LOGP, Top
from fastdraft.synthesize.write import Unusable

# By how much the probabilities of a place may sum to more than 1: engines round each to float32.
ROUNDING = 1e-3


def top_logprobs_of(places: Sequence[Mapping[int, float]], known_tokens: int) -> Top | None:
    """The K most likely of each place; None where a place has fewer, so that the target reads the row for them.

    An engine may say one more, the sampled token. Unusable where they cannot be log-probabilities of one distribution.
    """
    if not places or min(map(len, places)) < known_tokens:
        return None
    ids_NW, logp_NW = _side_by_side(places)
    _refuse_unsound(ids_NW, logp_NW)
    best_NK = np.argsort(-logp_NW, axis=1, kind="stable")[:, :known_tokens]
    logp_NK = np.take_along_axis(logp_NW, best_NK, 1).clip(LEAST_LOGP, 0)
    return Top(np.take_along_axis(ids_NW, best_NK, 1).astype(np.uint32), logp_NK.astype(np.float16))


def _side_by_side(places: Sequence[Mapping[int, float]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(N,W) ids, and their log-probabilities; -inf behind those of a place that has fewer."""
    shape = len(places), max(map(len, places))
    ids_NW, logp_NW = np.zeros(shape, np.int64), np.full(shape, -np.inf)
    for number, place in enumerate(places):
        ids_NW[number, : len(place)], logp_NW[number, : len(place)] = list(place), list(place.values())
    return ids_NW, logp_NW


def _refuse_unsound(ids_NW: npt.NDArray[np.int64], logp_NW: npt.NDArray[np.float64]) -> None:
    if np.isnan(logp_NW).any() or (logp_NW > 0).any():
        raise Unusable("log-probabilities of most likely tokens above zero or NaN")
    if (np.exp(logp_NW).sum(1) > 1 + ROUNDING).any():
        raise Unusable("most likely tokens whose probabilities sum to more than 1")
    if (ids_NW < 0).any():
        raise Unusable("token ids that the target's vocabulary has not")
