"""Numbers that must not move by accident: losses, acceptance, keys of a tiny pipeline, as tests/golden.json has them.

Where they move on purpose, `FASTDRAFT_GOLDEN=write .venv/bin/python -m pytest tests/test_golden.py` writes the file
anew; the commit says why. A key that moves makes every finished run of every user anew.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from fastdraft.config.resolve import resolve
from fastdraft.maths.acceptance import acceptance_rate, block_efficiency, chain
from fastdraft.pipeline.stages import key_of, stages_of
from fastdraft.results.evaluation import EvaluationCard
from fastdraft.system.cards import read_card

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = (1, 5, 10)
GAMMA = 2
# Other processors add in another order, and Muon orthogonalises in bf16: a fused cross entropy, equal to 1e-7, moved
# losses by 5e-4 after ten steps.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def found(finished: Path) -> dict[str, dict[str, float | str]]:
    """The same numbers, as this code makes them."""
    run = finished / "runs" / "tiny"
    measured = {"keys": keys(finished), "losses": losses(run), "acceptance": acceptances(run)}
    if os.environ.get("FASTDRAFT_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(measured, indent=2) + "\n")
    return measured


def keys(files: Path) -> dict[str, float | str]:
    """The key of each stage, were those before it called by their names; the target's is that of its files."""
    recipe = resolve(files / "recipe.yaml", [f"target.path={files}/target"]).recipe
    return {stage.name: key_of(stage, recipe, {need: need for need in stage.needs}) for stage in stages_of(recipe)[1:]}


def losses(run: Path) -> dict[str, float | str]:
    rows = {path.parent.name: path.read_text().splitlines() for path in run.glob("*/metrics.jsonl")}
    return {
        f"{phase} {step}": json.loads(rows[phase][step - 1])["loss_nats"] for phase in sorted(rows) for step in STEPS
    }


def acceptances(run: Path) -> dict[str, float | str]:
    numbers: dict[str, float | str] = {}
    for result in read_card(run / "evaluate", EvaluationCard).results:
        name = f"{result.stage}, {result.task}, {result.temperature:g}"
        numbers[f"{name}: alpha"] = result.alpha.value
        at = next(at for at in result.gammas if at.gamma == GAMMA)
        numbers[f"{name}: block efficiency"] = at.block_efficiency.value
    return numbers


def moved(golden: dict[str, float | str], now: dict[str, float | str]) -> list[str]:
    """The names under which another number, or none, is found."""
    return [name for name in sorted(golden.keys() | now.keys()) if not _near(golden.get(name), now.get(name))]


def _near(golden: float | str | None, now: float | str | None) -> bool:
    if isinstance(golden, float) and isinstance(now, float):
        return abs(golden - now) <= TOLERANCE
    return golden == now


@pytest.mark.parametrize(("kind", "at_least"), [("keys", 6), ("losses", 9), ("acceptance", 24)])
def test_the_numbers_have_not_moved(found, kind, at_least):
    golden = json.loads(GOLDEN.read_text())[kind]
    assert len(golden) >= at_least
    assert moved(golden, found[kind]) == []


def test_the_guard_sees_a_number_that_moved():
    assert moved({"loss": 2.0, "key": "ab"}, {"loss": 2.001, "key": "ab"}) == []
    assert moved({"loss": 2.0, "key": "ab"}, {"loss": 2.003, "key": "ab"}) == ["loss"]
    assert moved({"loss": 2.0, "key": "ab"}, {"loss": 2.0, "key": "ac"}) == ["key"]
    assert moved({"loss": 2.0}, {"loss": 2.0, "new": 1.0}) == ["new"]
    assert moved({"loss": 2.0, "gone": 1.0}, {"loss": 2.0}) == ["gone"]


def test_the_block_chain_by_hand():
    """docs/maths.md, "All gammas from one pass": three tokens, acceptances 1/2, 4/5, 1/4, blocks of two drafted tokens.

    P_1 = (1, 0, 0)
    P_2 = (1/2, 1/2, 0)                      opened by a rejection, or one token into the first block
    P_3 = (1/10 + 1/10, 1/2 x 4/5, 1/2 x 4/5) = (1/5, 2/5, 2/5)
    forwards 1 + 1/2 + 1/5, accepted 1/2 + (1/2 + 1/2) 4/5 + (1/5 + 2/5) 1/4
    """
    counts = chain(torch.tensor([[0.5, 0.8, 0.25]], dtype=torch.float64), torch.tensor([3]), gamma=2)
    assert counts.forwards_B.item() == pytest.approx(1.7)
    assert counts.accepted_B.item() == pytest.approx(1.45)
    assert counts.reached_BG.tolist() == [[pytest.approx(1.7), pytest.approx(0.9)]]
    assert counts.position_accepted_BG.tolist() == [[pytest.approx(0.95), pytest.approx(0.5)]]
    assert block_efficiency(counts).item() == pytest.approx(3 / 1.7)
    assert acceptance_rate(counts).item() == pytest.approx(1.45 / 3.4)
