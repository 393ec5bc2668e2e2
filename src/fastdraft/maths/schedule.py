"""The learning rate as a function of the step: a factor in [0, 1] on the peak rate. Steps count from 0.

Each schedule rises linearly over `warmup_steps`, stays at 1, and falls over the last `decay_fraction` of all steps,
never before the warm-up has ended. The first step already learns, and so does the last: the factor is 0 at
`total_steps`.
"""

import math
from collections.abc import Callable

Schedule = Callable[[int, int, int, float], float]


def warmup_stable_decay(step: int, total_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Factor that falls linearly. Hu et al. 2024 (arXiv:2404.06395), with a linear instead of an exponential fall."""
    return _risen(step, warmup_steps) * _left(step, total_steps, warmup_steps, decay_fraction)


def cosine(step: int, total_steps: int, warmup_steps: int, decay_fraction: float = 1.0) -> float:
    """Factor that falls along half a cosine. Loshchilov and Hutter 2017 (arXiv:1608.03983), without restarts."""
    left = _left(step, total_steps, warmup_steps, decay_fraction)
    return _risen(step, warmup_steps) * (1 - math.cos(math.pi * left)) / 2


def _risen(step: int, warmup_steps: int) -> float:
    """Share of the warm-up that this step completes."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def _left(step: int, total_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Share of the decay that is still ahead: 1 until it begins, 0 after the last step."""
    decay_steps = max(1, min(round(decay_fraction * total_steps), total_steps - warmup_steps))
    return min(1.0, max(0.0, (total_steps - step) / decay_steps))


SCHEDULES: dict[str, Schedule] = {"warmup_stable_decay": warmup_stable_decay, "cosine": cosine}
