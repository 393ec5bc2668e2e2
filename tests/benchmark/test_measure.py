"""With known step times, measured equals predicted; different greedy text and an ignored draft are errors."""

import numpy as np
import pytest
import torch

from fastdraft.benchmark.engine import LOOKUP, NONE, Arm
from fastdraft.benchmark.equality import NEAR_TIE, check_near_ties, first_difference
from fastdraft.benchmark.measure import Bench, compare_greedy_texts, measure
from fastdraft.results.bench import Difference
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.system.errors import BenchError, UnequalOutput


def greedy_cells(engine, files, plan):
    return measure(Bench(engine, files, plan, engine.readers_of), engine.settings[0], [SamplingParams(0.0)])


def test_measured_is_predicted(counted, files, plan):
    """The same blocks, and with them the same speed-up."""
    each, cells = greedy_cells(counted, files, plan())
    assert [(cell.task, cell.temperature) for cell in cells] == [("text", 0.0), ("code", 0.0)]
    assert [(steps.setting, steps.temperature, steps.repeat) for steps in each] == [("fast", 0.0, 0), ("fast", 0.0, 1)]
    for steps in each:
        assert steps.target_seconds == pytest.approx(counted.block_seconds(1))
        assert steps.draft_seconds == pytest.approx(dict.fromkeys((1, 3), counted.draft_seconds))
        assert steps.block_seconds == pytest.approx({gamma: counted.block_seconds(gamma + 1) for gamma in (1, 3)})
    for cell in cells:
        assert [(arm.arm, arm.gamma) for arm in cell.arms] == [("none", 0), ("lookup", 5), ("draft", 1), ("draft", 3)]
        for arm in cell.drafts:
            assert arm.block_efficiency == pytest.approx(arm.predicted.block_efficiency)
            assert arm.position_acceptance == pytest.approx(arm.predicted.position_acceptance)
            assert arm.speedup.value == pytest.approx(arm.predicted.speedup)
            assert 1.1 < arm.block_efficiency < 1 + arm.gamma
            assert arm.equal_fraction == 1
    assert cells[0].at("draft", 1).speedup.value != pytest.approx(cells[0].at("draft", 3).speedup.value)


def test_milliseconds_are_those_after_the_first_token(counted, files, plan):
    _, (text, _) = greedy_cells(counted, files, plan())
    assert text.none.milliseconds_a_token.value == pytest.approx(21)
    assert text.none.first_token_milliseconds.value == pytest.approx(21)
    assert text.none.speedup.value == 1
    assert text.none.tokens == 2 * 2 * 23


def test_all_arms_take_turns_forwards_and_back(counted, files, plan):
    wanted = plan(tasks={"text": plan().tasks["text"]})
    greedy_cells(counted, files, wanted)
    arms = [NONE, LOOKUP, Arm("draft", 1), Arm("draft", 3)]
    assert counted.asked == arms + 2 * arms + 2 * arms[::-1]


def test_an_engine_that_ignores_the_draft_is_an_error(counted, files, plan):
    counted.drafts = False
    with pytest.raises(BenchError, match="counted .* gamma ."):
        greedy_cells(counted, files, plan())


@pytest.mark.parametrize(("arm", "name"), [(NONE, "none, gamma 0"), (Arm("draft", 3), "draft, gamma 3")])
def test_texts_that_end_with_the_first_forward_are_an_error(counted, files, plan, arm, name):
    """One arm is enough: its time per token would be that of no tokens."""
    counted.spoils = staticmethod(lambda tokens, of: tokens[:1] if of == arm else tokens)
    with pytest.raises(BenchError, match=f"task text, {name}: .*\n.*--tokens"):
        greedy_cells(counted, files, plan())


def test_greedy_text_is_the_targets_own(counted, files, plan):
    texts, differences = compare_greedy_texts(Bench(counted, files, plan(), counted.readers_of))
    assert (texts, differences) == (3 * 3, [])


def test_other_text_is_an_error_and_reports_where(counted, files, plan):
    def spoiled(tokens, arm):
        return np.where(np.arange(len(tokens)) == 7, 1, tokens) if arm == Arm("draft", 3) else tokens

    counted.spoils = staticmethod(spoiled)
    texts, differences = compare_greedy_texts(Bench(counted, files, plan(), counted.readers_of))
    assert texts == 9
    assert [(found.arm, found.gamma, found.position) for found in differences] == 3 * [("draft", 3, 7)]
    assert {found.task for found in differences} == {"text", "code"}
    with pytest.raises(UnequalOutput, match="exact: .* draft, gamma 3.*task text, prompt 0, token 7: 1 "):
        check_near_ties("exact", differences)


def test_the_gap_is_that_of_the_targets_logits(tiny_llama):
    model, prompt = tiny_llama(3), np.array([3, 5, 7])
    plain, tokens, where = (
        np.array([2, 11, 5]),
        np.array([2, 13, 5]),
        {"task": "text", "number": 0, "arm": Arm("draft", 1)},
    )
    found = first_difference(model, prompt, plain, tokens, **where)
    logits = model(input_ids=torch.tensor([[3, 5, 7, 2]])).logits[0, -1].detach()
    assert (found.position, found.tokens) == (1, (11, 13))
    assert found.gap == pytest.approx(abs(float(logits[11] - logits[13])), abs=1e-4)
    assert first_difference(model, prompt, plain, plain, **where) is None


def test_a_text_that_ends_early_is_no_near_tie(tiny_llama):
    found = first_difference(
        tiny_llama(3), np.array([3]), np.array([2, 5]), np.array([2]), task="t", number=0, arm=NONE
    )
    assert (found.position, found.tokens) == (1, (5, -1))
    with pytest.raises(UnequalOutput):
        check_near_ties("exact", [found])


def test_a_near_tie_is_no_error_of_the_engine():
    tie = Difference(task="text", prompt=0, arm="draft", gamma=3, position=7, tokens=(1, 2), gap=NEAR_TIE / 2)
    check_near_ties("exact", [tie])
    with pytest.raises(UnequalOutput, match="1 texts differ"):
        check_near_ties("exact", [tie, tie.model_copy(update={"gap": NEAR_TIE})])
