"""The time of a step grows with what it does; a draft breaks even where its predicted speed-up is one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdraft.planning import step_times
from fastdraft.planning.devices import DEVICES
from fastdraft.planning.step_times import (
    GAMMAS,
    StepTimes,
    best_gamma,
    break_even_alpha,
    predicted_speedup,
    step_seconds,
)

TIMES = StepTimes(draft_seconds=0.002, target_seconds=tuple(0.020 + 0.003 * n for n in range(9)))


def test_a_step_is_reading_and_overhead(plain, paper):
    """One token's 240 MFLOP at 1 TFLOP/s hide behind 120 ms of reading."""
    assert step_seconds(paper, plain, "int8") == pytest.approx(0.120 + 13 * 0.003 + 0.007, rel=1e-4)
    assert step_seconds(paper, plain, "bf16") == pytest.approx(0.240 + 13 * 0.003 + 0.007, rel=1e-4)


def test_a_block_costs_little_more_than_a_step_until_computing_takes_as_long_as_reading(plain, paper):
    """120 ms of reading: 500 tokens' computing. Neither hides the other whole."""
    overhead = 13 * 0.003 + 0.007
    working = [step_seconds(paper, plain, tokens=n) - overhead for n in (1, 9, 500, 50_000)]
    assert working[0] == pytest.approx(0.120, rel=1e-4)
    assert working[1] == pytest.approx(0.120, rel=1e-3)
    assert working[2] == pytest.approx(0.120 * 2**0.5)
    assert working[3] == pytest.approx(12.0, rel=1e-3)


@pytest.mark.parametrize("read", [1e3, 1e6, 2e6, 5e6, 1e7, 3e7])
def test_small_weights_are_read_from_caches(cached, plain, read):
    """Between the readings on a line, from nothing at no bytes; above the last at the bandwidth."""
    on_the_line = {1e3: 0.0000005, 1e6: 0.0005, 2e6: 0.001, 5e6: 0.00325, 1e7: 0.010, 3e7: 0.030}
    assert cached.reading_seconds(read) == pytest.approx(on_the_line[read])
    assert plain.reading_seconds(read) == pytest.approx(read / 1e9)
    overheads = {1e3: 0.001, 1e6: 0.001, 2e6: 0.001, 5e6: 0.00175, 1e7: 0.003, 3e7: 0.003}
    assert cached.layer_overhead(read) == pytest.approx(overheads[read])


def test_tokens_after_are_read_and_looked_at(plain, paper):
    """Keys and values of 100 tokens are 4 MB here: 4 ms at 1 GB/s; looking takes longer at a rate of 1 GFLOP/s."""
    ahead = step_seconds(paper, plain, context_tokens=100) - step_seconds(paper, plain)
    assert ahead == pytest.approx(2 * 13 * 768 * 100 * 2 / 1e9)
    slow = plain.model_copy(update={"attention_rate": 1e9})
    assert step_seconds(paper, slow, context_tokens=100) - step_seconds(paper, slow) == pytest.approx(
        4 * 13 * 768 * 100 / 1e9
    )


def test_several_texts_fraction_the_reading_of_weights_but_not_of_what_is_after_them(plain, paper):
    one, five = (step_seconds(paper, plain, context_tokens=100, sequences=n) for n in (1, 5))
    context = step_seconds(paper, plain, context_tokens=100) - step_seconds(paper, plain)
    assert five - one == pytest.approx(4 * context, rel=1e-2)


@settings(max_examples=30, deadline=None)
@given(
    device=st.sampled_from(sorted(DEVICES)),
    weights=st.sampled_from(["int8", "int4", "bf16"]),
    tokens=st.integers(1, 64),
    context=st.integers(0, 4096),
)
def test_more_is_never_faster(paper, device, weights, tokens, context):
    def seconds(**other):
        size = paper.model_copy(update={key: other.pop(key) for key in ("layers", "parameters") if key in other})
        asked = {"weights": weights, "tokens": tokens, "context_tokens": context} | other
        return step_seconds(size, DEVICES[device], **asked)

    base = seconds()
    assert seconds(layers=paper.layers + 1) > base
    assert seconds(parameters=2 * paper.parameters) > base
    assert seconds(tokens=tokens + 1) >= base
    assert seconds(context_tokens=context + 1) >= base
    assert seconds(sequences=2) >= base
    assert seconds(weights="int4") <= seconds(weights="int8") <= seconds(weights="bf16")


@pytest.mark.parametrize("gammas", [(1,), (3,), (1, 2, 5), GAMMAS])
def test_break_even_is_where_the_speed_up_is_one(gammas):
    alpha = break_even_alpha(TIMES, gammas)
    assert alpha is not None
    assert 0 < alpha < 1
    best = best_gamma(alpha, TIMES, gammas)
    assert predicted_speedup(alpha, best, TIMES) == pytest.approx(1)
    for more, sign in ((1e-3, 1), (-1e-3, -1)):
        fastest = max(predicted_speedup(alpha + more, gamma, TIMES) for gamma in gammas)
        assert (fastest - 1) * sign > 0


def test_a_draft_as_slow_as_its_target_never_pays():
    times = TIMES._replace(draft_seconds=0.020)
    assert break_even_alpha(times) is None
    assert max(predicted_speedup(1.0, gamma, times) for gamma in GAMMAS) < 1


def test_a_free_draft_checked_for_free_always_pays():
    times = StepTimes(draft_seconds=0.0, target_seconds=(0.02,) * 9)
    assert break_even_alpha(times) == pytest.approx(0)
    assert predicted_speedup(1.0, 8, times) == 9
    assert best_gamma(0.5, times) == 8


def test_the_best_gamma_is_the_fastest_and_the_smallest_of_equals():
    for alpha in (0.0, 0.3, 0.6, 0.9):
        found = [predicted_speedup(alpha, gamma, TIMES) for gamma in GAMMAS]
        assert predicted_speedup(alpha, best_gamma(alpha, TIMES), TIMES) == max(found)
    assert best_gamma(0.0, StepTimes(0.0, (0.02,) * 9)) == 1


def test_the_times_of_a_pair_are_those_of_its_steps(plain, paper, target):
    times = step_times.step_times(paper, target, plain, "int8", "int4", 100, gammas=(2, 4))
    assert times.draft_seconds == step_seconds(paper, plain, "int8", 1, 100)
    assert times.target_seconds == tuple(step_seconds(target, plain, "int4", n, 100) for n in range(1, 6))
