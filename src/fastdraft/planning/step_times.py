"""The time of a decode step, and from it the speed-up, the best gamma and the break-even acceptance. docs/cost.md."""

from __future__ import annotations

import math
from typing import NamedTuple

from fastdraft.maths.acceptance import alpha_of_block_efficiency, expected_block_efficiency, speedup
from fastdraft.planning.devices import Device
from fastdraft.planning.model_size import ModelSize, kv_bytes, read_bytes

GAMMAS = tuple(range(1, 9))


class StepTimes(NamedTuple):
    """Seconds of a draft's step on one token, and of a target's on 1, 2, .. tokens up to the longest block."""

    draft_seconds: float
    target_seconds: tuple[float, ...]


def step_seconds(
    size: ModelSize, device: Device, weights: str = "int8", tokens: int = 1, context_tokens: int = 0, sequences: int = 1
) -> float:
    """Seconds of a forward over `tokens` new tokens in each of `sequences` texts, after `context_tokens` in each."""
    new = tokens * sequences
    read = read_bytes(size, weights, new)
    overhead = size.layers * device.layer_overhead(read) + device.step_overhead_seconds
    attention = sequences * _attention_seconds(size, device, tokens, context_tokens)
    # Reading and computing overlap, but not fully where both take long.
    matmuls = math.hypot(device.reading_seconds(read), forward_flops(size, new) / device.rate(weights))
    return matmuls + attention + overhead


def _attention_seconds(size: ModelSize, device: Device, tokens: int, context_tokens: int) -> float:
    """Seconds of attention to the context, whose keys and values are read once for all new tokens."""
    reading = kv_bytes(size, context_tokens) / device.bandwidth
    one = forward_flops(size, 1, context_tokens) - forward_flops(size, 1)
    first = one / (device.attention_rate or device.rate("bf16"))
    return max(reading, first + (tokens - 1) * one / device.rate("bf16"))


def forward_flops(size: ModelSize, tokens: int, context_tokens: float = 0.0) -> float:
    """FLOPs of a forward over `tokens`, each attending to `context_tokens`; a multiplication and addition are two."""
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
    """The predicted step times of a pair on a device."""
    blocks = range(1, max(gammas) + 2)
    return StepTimes(
        draft_seconds=step_seconds(draft, device, draft_weights, 1, context_tokens),
        target_seconds=tuple(step_seconds(target, device, target_weights, n, context_tokens) for n in blocks),
    )


def predicted_speedup(alpha: float, gamma: int, times: StepTimes) -> float:
    """Speed-up over plain decoding if each drafted token is accepted with probability alpha, independently."""
    tau = expected_block_efficiency(alpha, gamma)
    return speedup(tau, gamma, times.draft_seconds, times.target_seconds[0], times.target_seconds[gamma])


def best_gamma(alpha: float, times: StepTimes, gammas: tuple[int, ...] = GAMMAS) -> int:
    """The gamma with the highest predicted speed-up; the smallest if several are equal."""
    return max(sorted(gammas), key=lambda gamma: predicted_speedup(alpha, gamma, times))


def break_even_alpha(times: StepTimes, gammas: tuple[int, ...] = GAMMAS) -> float | None:
    """The lowest acceptance at which the draft pays at its best gamma; None if it never does."""
    # The time of a block in target steps on one token is the block efficiency that breaks even.
    costs = {n: (n * times.draft_seconds + times.target_seconds[n]) / times.target_seconds[0] for n in gammas}
    alphas = [alpha_of_block_efficiency(cost, gamma) for gamma, cost in costs.items()]
    return min((alpha for alpha in alphas if alpha is not None), default=None)
