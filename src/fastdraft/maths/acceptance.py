"""How well a draft serves its target: alpha, the chain of blocks, block efficiency for every gamma, speed-up.

All of it follows from one number per position of a text that the target itself emitted: the chance that this token,
had it been drafted, was accepted. No speculative decoding is run. Proof: docs/maths.md, "All gammas from one pass".

Dimensions: X any shape, B texts (one per prompt), N positions of a text, G drafted tokens of a block (gamma),
S = G + 1 states, R resamples.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


def acceptance_sampled(logp_X: Tensor, logq_X: Tensor) -> Tensor:
    """(X) min(1, q/p): the chance that the token which the target sampled came from an acceptance, had it been drafted.

    Leviathan et al. 2023 (arXiv:2211.17192), conditioned on the emitted token. Wants p > 0: the target did sample it.
    """
    return (logq_X - logp_X).clamp(max=0).exp()


def acceptance_greedy(target_X: Tensor, draft_X: Tensor) -> Tensor:
    """(X) 1.0 where the draft's most likely token is the one that greedy decoding of the target emitted, else 0.0."""
    return (target_X == draft_X).float()


def accept_sums(accept_BN: Tensor, lengths_B: Tensor) -> Tensor:
    """(B) acceptance summed over the positions of each text; what lies past a text's length is not looked at."""
    return accept_BN.where(_inside(accept_BN, lengths_B), 0).sum(1)


def alpha(accept_BN: Tensor, lengths_B: Tensor) -> Tensor:
    """() mean acceptance over all positions of all texts: an estimate of 1 - TVD(p, q), free of gamma."""
    return accept_sums(accept_BN, lengths_B).sum() / lengths_B.sum()


class Chain(NamedTuple):
    """Expected counts of speculative sampling at one gamma, per text; pool rows before dividing."""

    tokens_B: Tensor
    forwards_B: Tensor
    reached_BG: Tensor
    position_accepted_BG: Tensor

    @property
    def accepted_B(self) -> Tensor:
        """(B) drafted tokens that were accepted."""
        return self.position_accepted_BG.sum(1)

    @property
    def gamma(self) -> int:
        """Drafted tokens proposed in a block."""
        return self.position_accepted_BG.shape[1]


def chain(accept_BN: Tensor, lengths_B: Tensor, gamma: int) -> Chain:
    """Expected counts over given texts, exact and differentiable in the acceptances, in O(N gamma).

    docs/maths.md, "All gammas from one pass". A block that the end of the text cuts off counts as one whole target
    forward and gamma proposed tokens, as in an engine, which has run both before it sees the end; what it accepts past
    the end does not count.
    """
    if gamma < 1:
        raise ValueError(f"gamma is {gamma}, wanted at least 1 drafted token in a block")
    inside_BN = _inside(accept_BN, lengths_B)
    accept_BN = accept_BN.where(inside_BN, 0)
    state_BNS = _states(accept_BN[:, :, None], gamma) * inside_BN[:, :, None]
    drafted_BNG = state_BNS[:, :, :gamma]
    return Chain(
        tokens_B=lengths_B,
        forwards_B=state_BNS[:, :, 0].sum(1),
        reached_BG=drafted_BNG.sum(1),
        position_accepted_BG=(drafted_BNG * accept_BN[:, :, None]).sum(1),
    )


def forwards_by_place(accept_BNG: Tensor, lengths_B: Tensor) -> Tensor:
    """(B) expected target forwards as `chain` has them, of acceptances that differ with the place in the block."""
    inside_BN = _inside(accept_BNG[:, :, 0], lengths_B)
    state_BNS = _states(accept_BNG.where(inside_BN[:, :, None], 0), accept_BNG.shape[2])
    return (state_BNS[:, :, 0] * inside_BN).sum(1)


def _states(accept_BNX: Tensor, gamma: int) -> Tensor:
    """(B,N,S) chance that each position is token j of its block: 0 opens it, gamma is the bonus token of a full one.

    X is 1, or G where a token's place in the block matters.
    """
    state_BS = accept_BNX.new_zeros(len(accept_BNX), gamma + 1)
    state_BS[:, 0] = 1
    states = []
    for accept_BX in accept_BNX.unbind(1):
        states.append(state_BS)
        drafted_BG, bonus_B1 = state_BS[:, :gamma], state_BS[:, gamma:]
        opens_B1 = bonus_B1 + (drafted_BG * (1 - accept_BX)).sum(1, keepdim=True)
        state_BS = torch.cat([opens_B1, drafted_BG * accept_BX], dim=1)
    return torch.stack(states, dim=1)


def _inside(accept_BN: Tensor, lengths_B: Tensor) -> Tensor:
    """(B,N) whether a position belongs to its text."""
    return torch.arange(accept_BN.shape[1], device=accept_BN.device) < lengths_B[:, None]


def block_efficiency(counts: Chain) -> Tensor:
    """() tau: tokens emitted per target forward, pooled over the texts."""
    return counts.tokens_B.sum() / counts.forwards_B.sum()


def acceptance_rate(counts: Chain) -> Tensor:
    """() accepted over proposed tokens, pooled over the texts; it falls with gamma by arithmetic alone."""
    return counts.accepted_B.sum() / (counts.gamma * counts.forwards_B.sum())


def position_acceptance(counts: Chain) -> Tensor:
    """(G) share of blocks in which drafted token j is reached and accepted, pooled over the texts."""
    return counts.position_accepted_BG.sum(0) / counts.forwards_B.sum()


def expected_block_efficiency(alpha: float, gamma: int) -> float:
    """tau where each drafted token is accepted with chance alpha, independently: 1 + alpha + .. + alpha^gamma.

    Leviathan et al. 2023 (arXiv:2211.17192), equation 1. On real texts acceptances cluster, and `chain` counts them.
    """
    return sum(alpha**j for j in range(gamma + 1))


def alpha_of_block_efficiency(tau: float, gamma: int) -> float | None:
    """The alpha in [0, 1] with this expected_block_efficiency; 0 where tau is below 1, None where above gamma + 1."""
    if tau > gamma + 1:
        return None
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if expected_block_efficiency(middle, gamma) < tau else (low, middle)
    return high


def mbsu(tau: float, gamma: int, c: float) -> float:
    """Memory-bound speed-up: reading weights is the whole cost, c = draft parameters / target parameters."""
    return tau / (c * gamma + 1)


def speedup(
    tau: float, gamma: int, draft_step_seconds: float, target_step_seconds: float, target_block_seconds: float
) -> float:
    """Speed-up over plain decoding, from times measured on the device; a target block is a step on gamma + 1 tokens."""
    return tau * target_step_seconds / (gamma * draft_step_seconds + target_block_seconds)


def best_gamma(tau_by_gamma: Mapping[int, float], c: float) -> int:
    """The gamma with the highest mbsu; the smallest of equals."""
    return max(sorted(tau_by_gamma), key=lambda gamma: mbsu(tau_by_gamma[gamma], gamma, c))


def bootstrap_interval(numerator_B: Tensor, denominator_B: Tensor, resample_RB: Tensor) -> tuple[float, float]:
    """95 % interval of the pooled ratio: percentiles over resamples, each B prompt indices drawn with replacement."""
    return interval(resampled_ratios(numerator_B, denominator_B, resample_RB))


def resampled_ratios(numerator_B: Tensor, denominator_B: Tensor, resample_RB: Tensor) -> Tensor:
    """(R) the pooled ratio of each resample; two of the same resamples are paired."""
    return numerator_B.double()[resample_RB].sum(1) / denominator_B.double()[resample_RB].sum(1)


def interval(values_R: Tensor) -> tuple[float, float]:
    """95 % interval of what was computed from each resample: percentiles."""
    low, high = values_R.quantile(values_R.new_tensor([0.025, 0.975])).tolist()
    return low, high
