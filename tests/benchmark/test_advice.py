"""What is advised follows from the paces: the fastest setting and gamma, or none."""

import pytest

from fastdraft.benchmark.advice import advise, fastest
from fastdraft.results.bench import ArmResult, Cell, Prediction, Spread


def spread(value, low=0.95, high=1.05):
    return Spread(value=value, low=low * value, high=high * value)


def arm(kind, gamma, pace, plain, predicted=None):
    known = Prediction(block_efficiency=2.0, position_acceptance=(), speedup=predicted) if predicted else None
    return ArmResult(
        arm=kind,
        gamma=gamma,
        milliseconds_a_token=spread(pace),
        first_token_milliseconds=spread(1.0),
        speedup=spread(plain / pace),
        tokens=7,
        drafted=5,
        block_efficiency=2.0,
        position_acceptance=(),
        predicted=known,
        equal_fraction=None,
        widest_gap=None,
    )


def cell(setting, task, plain, lookup, paces, temperature=0.0, predicted=None):
    arms = [arm("none", 0, plain, plain), arm("lookup", 5, lookup, plain)]
    arms += [arm("draft", gamma, pace, plain, predicted) for gamma, pace in paces.items()]
    return Cell(setting=setting, task=task, temperature=temperature, arms=tuple(arms))


CELLS = [
    cell("slow", "text", 9.0, 8.5, {1: 7.0, 3: 6.0}),
    cell("slow", "code", 9.0, 8.5, {1: 6.0, 3: 6.5}),
    cell("fast", "text", 10.0, 9.5, {1: 6.0, 3: 4.0}, predicted=2.6),
    cell("fast", "code", 10.0, 4.5, {1: 5.5, 3: 5.0}, predicted=3.0),
]


def test_the_fastest_is_that_of_all_tasks(counted):
    assert fastest(CELLS) == ("fast", 3)
    said = advise(counted, "cpu", CELLS)
    assert (said.pays, said.setting, said.gamma, said.option) == (True, "fast", 3, "gamma=3")
    assert said.speedup == pytest.approx(
        9.0 / (4.0 * 5.0) ** 0.5
    )  # over the fastest without a draft: the slow setting's
    text = "\n".join(said.lines)
    assert "Set gamma 3, fast: 2.01x over the fastest decoding without a draft, greedy (text 2.50x, code 2.00x)" in text
    assert "That is: gamma=3" in text
    assert "It is ahead of the draft on code." in text
    assert "Predicted for text 2.60x, as measured (+4%)" in text
    assert "Predicted for code 3.00x, not as measured (+50%)" in text


@pytest.mark.parametrize("pace", [9.5, 11.0])
def test_a_draft_that_does_not_pay_is_not_advised(counted, pace):
    """At 9.5 it does, by less than the spread."""
    said = advise(counted, "cpu", [cell("fast", "text", 9.8, 9.7, {1: pace, 3: 12.0})])
    assert not said.pays
    assert said.lines[0].startswith("Do not use this draft here: at its best (gamma 1, fast)")
    assert not any("That is:" in line for line in said.lines)


def test_another_distribution_has_a_gamma_of_its_own(counted):
    cells = [*CELLS, cell("fast", "text", 10.0, 9.5, {1: 5.0, 3: 6.0}, temperature=0.6)]
    assert advise(counted, "cpu", cells).lines[-1] == "T = 0.6, fast: gamma 1 (text 2.00x)."
    counted.keeps_distribution = False
    assert "for sampled text leave the draft out" in advise(counted, "cpu", cells).lines[-1]
