"""Properties of every learning-rate schedule."""

import math

import pytest

from fastdraft.maths.schedule import SCHEDULES, cosine, warmup_stable_decay

SHAPES = [(101, 7, 0.2), (101, 0, 1.0), (13, 5, 0.0), (11, 11, 0.5), (3, 7, 0.5), (1, 0, 0.2), (1, 1, 1.0)]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup", "fraction"), SHAPES)
def test_every_step_learns_within_the_peak_rate(name: str, total: int, warmup: int, fraction: float) -> None:
    factors = [SCHEDULES[name](step, total, warmup, fraction) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup", "fraction"), SHAPES)
def test_the_factor_rises_then_falls_and_ends_at_zero(name: str, total: int, warmup: int, fraction: float) -> None:
    factors = [SCHEDULES[name](step, total, warmup, fraction) for step in range(total + 1)]
    peak = min(warmup, total)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[total] == 0
    assert SCHEDULES[name](total + 5, total, warmup, fraction) == 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_peak_is_reached_when_the_warm_up_ends(name: str) -> None:
    assert SCHEDULES[name](6, 101, 7, 0.2) == 1
    assert SCHEDULES[name](5, 101, 7, 0.2) == pytest.approx(6 / 7)
    assert SCHEDULES[name](0, 101, 0, 0.2) == 1


def test_the_stable_part_lasts_until_the_decay_begins() -> None:
    factors = [warmup_stable_decay(step, 100, 10, 0.2) for step in range(100)]
    assert factors[9:81] == [1.0] * 72
    assert factors[81] == pytest.approx(19 / 20)
    assert factors[99] == pytest.approx(1 / 20)


def test_the_cosine_is_half_a_period_after_the_warm_up() -> None:
    for step in range(10, 100):
        assert cosine(step, 100, 10) == pytest.approx((1 + math.cos(math.pi * (step - 10) / 90)) / 2)
