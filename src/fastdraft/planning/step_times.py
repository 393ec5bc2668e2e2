"""The time of a decode step, and what it makes of an acceptance: speed-up, best gamma, break-even. docs/cost.md."""

from __future__ import annotations

import math
from typing import NamedTuple

from fastdraft.maths.acceptance import alpha_of_block_efficiency, expected_block_efficiency, speedup
from fastdraft.planning.devices import Device
from fastdraft.planning.model_size import ModelSize, kv_bytes, read_bytes

GAMMAS = tuple(range(1, 9))


class StepTimes(NamedTuple):
    """Seconds of a draft's step on one token, and of a target's on 1, 2, .. tokens, as many as the longest block."""

    draft_seconds: float
    target_seconds: tuple[float, ...]


def step_seconds(
    size: ModelSize, device: Device, weights: str = "int8", tokens: int = 1, context_tokens: int = 0, sequences: int = 1
) -> float:
    """Seconds of a forward over `tokens` new tokens in each of `sequences` texts with so many tokens behind them."""
    new = tokens * sequences
    read = read_bytes(size, weights, new)
    overhead = size.layers * device.layer_overhead(read) + device.step_overhead_seconds
    looking = sequences * _attention_seconds(size, device, tokens, context_tokens)
    # Reading hides computing, or the other way round, but where both take long neither hides all of the other.
    working = math.hypot(device.reading_seconds(read), forward_flops(size, new) / device.rate(weights))
    return working + looking + overhead


def _attention_seconds(size: ModelSize, device: Device, tokens: int, context_tokens: int) -> float:
    """Seconds of attention to the tokens behind a text: their keys and values are read once for all new tokens."""
    reading = kv_bytes(size, context_tokens) / device.bandwidth
    one = forward_flops(size, 1, context_tokens) - forward_flops(size, 1)
    first = one / (device.attention_rate or device.rate("bf16"))
    return max(reading, first + (tokens - 1) * one / device.rate("bf16"))


def forward_flops(size: ModelSize, tokens: int, context_tokens: float = 0.0) -> float:
    """FLOPs of a forward over `tokens` tokens, each of which looks at `context_tokens` others: two a multiplication."""
    attention = 2 * size.layers * size.attention_width * context_tokens
    return 2.0 * tokens * (size.active_parameters + attention)


def step_times(
    draft: ModelSize,
    target: ModelSize,
    device: Device,
    draft_weights: str = "int8",
    target_weights: str = "int8",
    context_tokens: int = 0,
    gammas: tuple[int, ...] = GAMMAS,
) -> StepTimes:
    """The predicted times of a pair on a device."""
    blocks = range(1, max(gammas) + 2)
    return StepTimes(
        draft_seconds=step_seconds(draft, device, draft_weights, 1, context_tokens),
        target_seconds=tuple(step_seconds(target, device, target_weights, n, context_tokens) for n in blocks),
    )


def predicted_speedup(alpha: float, gamma: int, times: StepTimes) -> float:
    """Speed-up over plain decoding where each drafted token is accepted with chance alpha, whatever came before it."""
    tau = expected_block_efficiency(alpha, gamma)
    return speedup(tau, gamma, times.draft_seconds, times.target_seconds[0], times.target_seconds[gamma])


def best_gamma(alpha: float, times: StepTimes, gammas: tuple[int, ...] = GAMMAS) -> int:
    """The gamma with the highest predicted speed-up; the smallest of equals."""
    return max(sorted(gammas), key=lambda gamma: predicted_speedup(alpha, gamma, times))


def break_even_alpha(times: StepTimes, gammas: tuple[int, ...] = GAMMAS) -> float | None:
    """The least acceptance at which the draft, at its best gamma, does not slow things down; None where none does."""
    found = [alpha_of_block_efficiency(_block_cost(gamma, times), gamma) for gamma in gammas]
    return min((alpha for alpha in found if alpha is not None), default=None)


def _block_cost(gamma: int, times: StepTimes) -> float:
    """What drafting and checking a block takes, in target steps on one token: the tau that pays for it."""
    return (gamma * times.draft_seconds + times.target_seconds[gamma]) / times.target_seconds[0]
