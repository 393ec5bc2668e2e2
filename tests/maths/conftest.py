"""Speculative decoding on Markov models, token by token: the reference for every formula.

Dimensions: V vocabulary, G drafted tokens (gamma), N positions of a text.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastdraft.maths.verification import accept_sampled


class Decoded(NamedTuple):
    """The tokens that one run emitted after token 0, and the counts that an engine reports."""

    text_N: Tensor
    forwards: int
    position_accepted_G: Tensor


Speculate = Callable[[Tensor, Tensor, int, int, int], Decoded]


def _draw_block(q_VV: Tensor, last: int, coins: Tensor) -> list[int]:
    """Draft tokens after `last`, one per coin."""
    drafted = [last]
    for coin in coins.tolist():
        drafted.append(int((q_VV[drafted[-1]].cumsum(0) <= coin).sum().clamp(max=len(q_VV) - 1)))
    return drafted[1:]


@pytest.fixture(scope="session")
def speculate() -> Speculate:
    """Sampled speculative decoding of at least `tokens` tokens. p and q are transition matrices."""

    def run(p_VV: Tensor, q_VV: Tensor, gamma: int, tokens: int, seed: int) -> Decoded:
        generator = torch.Generator().manual_seed(seed)
        text, forwards, position_accepted_G = [0], 0, torch.zeros(gamma)
        while len(text) <= tokens:
            coins = torch.rand(2 * gamma + 1, generator=generator, dtype=torch.float64)
            draft = _draw_block(q_VV, text[-1], coins[:gamma])
            context = [text[-1], *draft]
            block = accept_sampled(p_VV[context], q_VV[context[:-1]], torch.tensor(draft), coins[gamma:])
            text += block.emitted.tolist()
            forwards += 1
            position_accepted_G[: block.accepted] += 1
        return Decoded(torch.tensor(text[1:]), forwards, position_accepted_G)

    return run
