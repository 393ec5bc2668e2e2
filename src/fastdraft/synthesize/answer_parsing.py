"""Answers from outside this process, parsed and checked: of vLLM, of servers, and of recorded files.

Whatever is invalid raises UnusableAnswer with the reason under which the answer is counted.

Dimensions: N tokens of a completion, W the largest number of tokens returned for a position, K top tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from fastdraft.data.shards import Tokens
from fastdraft.synthesize.completions import MIN_LOGP, LogProbabilities, TopTokens
from fastdraft.synthesize.engine_interface import UnusableAnswer

NO_LOGP = np.empty(0, np.float32)
UNKNOWN_IDS = "token ids outside the target's vocabulary"
# The probabilities of a position may sum to 1 plus this: engines round each to float32.
ROUNDING = 1e-3


def tokenize_exactly(text: str, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """The tokens of a text; UnusableAnswer if they do not decode to the same text."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
        raise UnusableAnswer("text that its tokens do not decode to")
    return np.array(ids, np.int64)


def parse_logp(values: Any, tokens: int) -> LogProbabilities:
    """(n) one log-probability per token."""
    if not isinstance(values, list | np.ndarray) or len(values) != tokens:
        raise UnusableAnswer("log-probabilities that are not one per token")
    if not all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        raise UnusableAnswer("log-probabilities that are not numbers")
    if not all(-math.inf < value <= 0 for value in values):  # exact for integers of any size; False for NaN
        raise UnusableAnswer("log-probabilities above zero, infinite or NaN")
    return np.array([max(value, MIN_LOGP) for value in values], np.float32)


def parse_top_logprobs(positions: Sequence[Mapping[int, float]], k: int) -> TopTokens | None:
    """The k most likely tokens of each position; None if a position has fewer.

    Tokens may come in any order, with the sampled token in addition.
    """
    if not positions or min(map(len, positions)) < k:
        return None
    if not all(0 <= token < 1 << 32 for position in positions for token in position):
        raise UnusableAnswer(UNKNOWN_IDS)
    shape = len(positions), max(map(len, positions))
    ids_NW, logp_NW = np.zeros(shape, np.int64), np.full(shape, -np.inf)
    for n, position in enumerate(positions):
        ids_NW[n, : len(position)], logp_NW[n, : len(position)] = list(position), list(position.values())
    if np.isnan(logp_NW).any() or (logp_NW > 0).any():
        raise UnusableAnswer("log-probabilities of most likely tokens above zero or NaN")
    if (np.exp(logp_NW).sum(1) > 1 + ROUNDING).any():
        raise UnusableAnswer("most likely tokens whose probabilities sum to more than 1")
    best_NK = np.argsort(-logp_NW, axis=1, kind="stable")[:, :k]
    logp_NK = np.take_along_axis(logp_NW, best_NK, 1).clip(MIN_LOGP, 0)
    return TopTokens(np.take_along_axis(ids_NW, best_NK, 1).astype(np.uint32), logp_NK.astype(np.float16))
