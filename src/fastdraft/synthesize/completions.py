"""A request to the target, and the completion that answers it.

A completion is identified by its key: the hash of everything that decides it (`request_key`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from fastdraft.data.shards import Tokens

LogProbabilities = npt.NDArray[np.float32]

# Log-probabilities are clamped to this value, above float16's minimum of -65504: excluded tokens have -inf.
MIN_LOGP = -6e4


class SamplingParams(NamedTuple):
    """Temperature, top-k and top-p, applied in this order. Temperature 0 is greedy decoding; top_k 0 keeps all."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt to complete; `index` distinguishes several samples of one prompt."""

    prompt: Tokens
    sampling: SamplingParams
    index: int = 0


class TopTokens(NamedTuple):
    """(n,k) the most likely tokens at each position, and their log-probabilities at T = 1, before top-k and top-p."""

    ids: npt.NDArray[np.uint32]
    logp: npt.NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Completion:
    """(n) tokens and (n) log p of each under the distribution that it was sampled from (0.0 if greedy).

    `logp` is empty if it is unknown, as for recorded answers. `top` is None unless `top_logprobs` was requested.
    """

    key: str
    prompt: Tokens
    tokens: Tokens
    logp: LogProbabilities
    sampling: SamplingParams
    index: int = 0
    top: TopTokens | None = None


def request_key(request: Request, max_new_tokens: int, seed: int, target_revision: str) -> str:
    """16 hex digits: the hash of everything that decides a completion."""
    sampling = float(request.sampling.temperature), request.sampling.top_k, float(request.sampling.top_p)
    content = [request.prompt.tolist(), sampling, max_new_tokens, request.index, seed, target_revision]
    return xxhash.xxh3_64_hexdigest(json.dumps(content).encode())
