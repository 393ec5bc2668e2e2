"""Learning-rate schedules: the factor in [0, 1] on the peak learning rate at each step. Steps count from 0.

Each schedule rises linearly over `warmup_steps`, stays at 1, and falls over the last `decay_fraction` of all steps,
but not before the warm-up has ended. The first and the last step have a factor above 0: it is 0 at `total_steps`.
"""

import math
from collections.abc import Callable

Schedule = Callable[[int, int, int, float], float]


def warmup_stable_decay(step: int, total_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Linear decay. Hu et al. 2024 (arXiv:2404.06395), with a linear instead of an exponential decay."""
    return _warmup(step, warmup_steps) * _remaining(step, total_steps, warmup_steps, decay_fraction)


def cosine(step: int, total_steps: int, warmup_steps: int, decay_fraction: float = 1.0) -> float:
    """Decay along half a cosine. Loshchilov and Hutter 2017 (arXiv:1608.03983), without restarts."""
    remaining = _remaining(step, total_steps, warmup_steps, decay_fraction)
    return _warmup(step, warmup_steps) * (1 - math.cos(math.pi * remaining)) / 2


def _warmup(step: int, warmup_steps: int) -> float:
    """Fraction of the warm-up that is complete after this step."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def _remaining(step: int, total_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Fraction of the decay that remains: 1 until it begins, 0 after the last step."""
    decay_steps = max(1, min(round(decay_fraction * total_steps), total_steps - warmup_steps))
    return min(1.0, max(0.0, (total_steps - step) / decay_steps))


SCHEDULES: dict[str, Schedule] = {"warmup_stable_decay": warmup_stable_decay, "cosine": cosine}
