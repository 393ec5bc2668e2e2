"""Numbers that must not change by accident: keys and losses of a tiny pipeline, acceptance of the packaged pair.

`FASTDRAFT_GOLDEN=write .venv/bin/python -m pytest tests/test_golden.py` writes tests/golden.json after a change that is
meant; the commit says why. When a key changes, every finished stage of every user runs again.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdraft.config.resolve import resolve
from fastdraft.evaluation.one_pass import evaluate
from fastdraft.maths.acceptance import acceptance_rate, block_efficiency, chain
from fastdraft.models import named_pairs
from fastdraft.models.pretrained import open_model, open_tokenizer
from fastdraft.pipeline.stages import key_of, stages_of
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Request, SamplingParams
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_transformers import complete

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = (1, 5, 10)
GAMMAS = (2, 5)
PROMPTS = (
    "def read_lines(path):\n",
    "class Parser:\n    def __init__(self",
    "import os\nimport sys\n\n",
    "Return the number of elements in",
    "for key, value in",
    "    if not isinstance(value,",
    "Raises ValueError if the",
)
# Other processors add in another order, and Muon orthogonalises in bf16: a fused cross entropy, equal to 1e-7, moved
# losses by 5e-4 after ten steps.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def numbers(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float | str]]:
    """The numbers of tests/golden.json, measured again."""
    run = finished / "runs" / "tiny"
    store = CompletionStore(tmp_path_factory.mktemp("completions"))
    measured = {"keys": keys(finished), "losses": losses(run), "acceptance": acceptances(store)}
    if os.environ.get("FASTDRAFT_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(measured, indent=2) + "\n")
    return measured


def keys(files: Path) -> dict[str, float | str]:
    """The key of each stage after the target, with the names of the stages it needs in place of their keys."""
    recipe = resolve(files / "recipe.yaml", [f"target.path={files}/target"]).recipe
    return {stage.name: key_of(stage, recipe, {need: need for need in stage.needs}) for stage in stages_of(recipe)[1:]}


def losses(run: Path) -> dict[str, float | str]:
    """Training losses of the tiny pipeline."""
    lines = {path.parent.name: path.read_text().splitlines() for path in run.glob("*/metrics.jsonl")}
    return {
        f"{phase} {step}": json.loads(lines[phase][step - 1])["loss_nats"] for phase in sorted(lines) for step in STEPS
    }


def acceptances(store: CompletionStore) -> dict[str, float | str]:
    """Rates of the packaged draft, which accepts a good share, on what the packaged target writes."""
    target, tokenizer = open_model("demo", torch.device("cpu"), torch.float32), open_tokenizer("demo")
    draft = open_model(named_pairs.draft("demo"), torch.device("cpu"), torch.float32)
    eos = frozenset({tokenizer.eos_token_id})
    decoding = DecodingParams(max_new_tokens=31, eos=eos, seed=7, target_revision="demo", batch_size=len(PROMPTS))
    numbers: dict[str, float | str] = {}
    for temperature in (0.0, 1.0):
        prompts = [np.array(tokenizer(text).input_ids) for text in PROMPTS]
        requests = [Request(prompt, SamplingParams(temperature)) for prompt in prompts]
        completions = complete(target, requests, decoding, store, "golden")
        result = evaluate(draft, completions, GAMMAS, stage="demo", task="golden", c=0.1, resamples=10, seed=7)
        numbers[f"T={temperature:g}: alpha"] = result.alpha.value
        for at in result.gammas:
            numbers[f"T={temperature:g}, gamma {at.gamma}: acceptance rate"] = at.acceptance_rate.value
            numbers[f"T={temperature:g}, gamma {at.gamma}: block efficiency"] = at.block_efficiency.value
    return numbers


def moved(golden: dict[str, float | str], now: dict[str, float | str]) -> list[str]:
    """The names whose number differs or is missing."""
    return [name for name in sorted(golden.keys() | now.keys()) if not _near(golden.get(name), now.get(name))]


def _near(golden: float | str | None, now: float | str | None) -> bool:
    if isinstance(golden, float) and isinstance(now, float):
        return abs(golden - now) <= TOLERANCE
    return golden == now


@pytest.mark.parametrize(("kind", "at_least"), [("keys", 6), ("losses", 9), ("acceptance", 10)])
def test_the_numbers_have_not_moved(numbers, kind, at_least):
    golden = json.loads(GOLDEN.read_text())[kind]
    assert len(golden) >= at_least
    assert moved(golden, numbers[kind]) == []


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
