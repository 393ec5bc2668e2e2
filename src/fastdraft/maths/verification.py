"""The target verifies one block of speculative decoding: `accept_greedy` and `accept_sampled`.

Coin tosses are arguments.

Dimensions: G drafted tokens (gamma), G1 = gamma + 1, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdraft.maths.sampling import draw_tokens


class Block(NamedTuple):
    """The number of accepted drafted tokens, and the ids the target emits: the accepted ones and one of its own."""

    accepted: int
    emitted: Tensor


def accept_greedy(target_G1: Tensor, draft_G: Tensor) -> Block:
    """The block under greedy decoding: drafted tokens are accepted while they equal the target's most likely token.

    target_G1[j] is the target's most likely token after draft_G[:j]. Full softmaxes in the ratio test of
    `accept_sampled` would keep tokens that greedy decoding does not emit.
    """
    accepted = _leading_true(target_G1[:-1] == draft_G)
    return Block(accepted, target_G1[: accepted + 1])


def accept_sampled(p_G1V: Tensor, q_GV: Tensor, draft_G: Tensor, coin_G1: Tensor) -> Block:
    """The block under sampling. The emitted tokens are distributed as p for any q, if draft_G[j] ~ q_GV[j].

    Leviathan et al. 2023 (arXiv:2211.17192), algorithm 1. Coins are uniform on [0, 1): one per drafted token, then
    one that draws the corrected or the bonus token.
    """
    p_G = p_G1V[:-1].gather(1, draft_G[:, None]).squeeze(1)
    q_G = q_GV.gather(1, draft_G[:, None]).squeeze(1)
    accepted = _leading_true(coin_G1[:-1] * q_G < p_G)
    probs_V = p_G1V[-1] if accepted == len(draft_G) else residual(p_G1V[accepted], q_GV[accepted])
    return Block(accepted, torch.cat([draft_G[:accepted], draw_tokens(probs_V[None], coin_G1[-1:])]))


def residual(p_V: Tensor, q_V: Tensor) -> Tensor:
    """(V) the distribution of the token that replaces a rejected one: max(p - q, 0), normalised."""
    surplus_V = (p_V - q_V).clamp(min=0)
    mass = surplus_V.sum()
    # The mass is 0 only if p <= q everywhere, where rounding alone can reject a token: draw from p then.
    return surplus_V / mass if mass > 0 else p_V


def _leading_true(accepted_G: Tensor) -> int:
    """The number of true entries before the first false one."""
    return int(accepted_G.long().cumprod(0).sum())
