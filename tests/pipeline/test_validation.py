"""What a draft is measured on while it trains: the target's, written once, and nothing that it is reported on."""

import json
from pathlib import Path

import pytest
import torch

from fastdraft.config.resolve import resolve
from fastdraft.evaluate import one_pass
from fastdraft.evaluate.run_prompts import evaluation_prompts
from fastdraft.models.draft import DraftCard
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.stage_result import Note
from fastdraft.pipeline.validation import FOLDER, Measure, open_measure
from fastdraft.synthesize.completions import CompletionStore
from fastdraft.system.cards import read_card

PHASES = ("pretrain", "continue", "align")


def journey_of(files: Path, *overrides: str) -> RunContext:
    recipe = resolve(files / "recipe.yaml", [f"target.path={files}/target", *overrides]).recipe
    return RunContext(recipe, files / "runs/tiny", torch.device("cpu"))


def measured(run: Path, phase: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / phase / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "block_efficiency" in row]


@pytest.fixture
def measure(finished) -> Measure:
    found = open_measure(journey_of(finished))
    assert found is not None
    return found


def test_a_line_has_block_efficiency_wherever_it_has_held_out_loss(finished):
    for phase in PHASES:
        lines = (finished / "runs/tiny" / phase / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows if "held_out_text_nats" in row] == [
            row["step"] for row in rows if "block_efficiency" in row
        ]
        assert len(measured(finished / "runs/tiny", phase)) >= 2


def test_the_card_has_what_the_kept_draft_was_measured_at(finished, measure):
    """On the weights as they are on the disk the measure says the same."""
    run_context = journey_of(finished)
    for phase in PHASES:
        card = read_card(run_context.folder / phase, DraftCard)
        found = measure(run_context.open_draft(phase))
        last = measured(run_context.folder, phase)[-1]
        assert card.block_efficiency == {task: last[f"block_efficiency_{task}"] for task in ("text", "rows")}
        assert found == pytest.approx({key: last[key] for key in found}, rel=1e-6)


def test_it_is_the_block_efficiency_of_one_pass(finished, measure):
    run_context = journey_of(finished)
    draft = run_context.open_draft("align")
    found = measure(draft)
    for task, rows in measure.rows.items():
        tokens = forwards = 0.0
        for temperature in (0.0, 1.0):
            of_law = [row for row in rows if row.sampling.temperature == temperature]
            assert len(of_law) == 8
            result = one_pass.evaluate(draft, of_law, [2], one_pass.Subject("align", task, 0.1), 10, 0)
            tokens += result.tokens
            forwards += result.tokens / result.gammas[0].block_efficiency.value
        assert found[f"block_efficiency_{task}"] == pytest.approx(tokens / forwards)
    assert min(found.values()) >= 1


def test_no_prompt_is_one_of_evaluation(finished, measure):
    run_context = journey_of(finished)
    part = run_context.recipe.evaluate
    reported = {tuple(prompt) for task in part.tasks for prompt in evaluation_prompts(run_context, part, task)}
    assert len(reported) >= 20
    prompts = {tuple(row.prompt) for rows in measure.rows.values() for row in rows}
    assert len(prompts) == 32
    assert prompts & reported == set()


def test_the_target_writes_once_for_all_phases(finished, measure, monkeypatch):
    store = CompletionStore(finished / "runs/tiny" / FOLDER / "completions")
    assert len(store.stored()) == 32
    monkeypatch.setattr(RunContext, "open_target", None)  # whoever opens it now fails
    again = open_measure(journey_of(finished))
    assert [row.key for row in again.rows["text"]] == [row.key for row in measure.rows["text"]]


@pytest.mark.parametrize("override", ["evaluate=null", "evaluate.validation_prompts=0"])
def test_it_can_be_left_out(finished, override):
    assert open_measure(journey_of(finished, override)) is None


def test_a_held_out_side_with_too_few_prompts_is_named(finished_run):
    with pytest.warns(Note, match=r"text: \d+ held-out prompts to measure on while training, wanted 100,?000: ev"):
        found = open_measure(journey_of(finished_run, "evaluate.validation_prompts=100000", "evaluate.tasks=[text]"))
    assert 16 < len(found.rows["text"]) < 100_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_best_draft_of_a_pipeline_is_the_one_it_reports(tiny, fastdraft):
    keys = ["pretrain.keep=best", "pretrain.held_out_every_tokens=150", "pretrain.learning_rate=0.05"]
    ended = fastdraft("run", "recipe.yaml", *keys, "--until", "pretrain")
    assert ended.code == 0, ended.err
    run_context, rows = journey_of(tiny, *keys), measured(tiny / "runs/tiny", "pretrain")
    best = max(rows, key=lambda row: row["block_efficiency"])
    card = read_card(run_context.folder / "pretrain", DraftCard)
    assert card.trained_tokens == best["tokens"]
    found = open_measure(run_context)(run_context.open_draft("pretrain"))
    assert found["block_efficiency"] == pytest.approx(best["block_efficiency"], rel=1e-6)
    assert list((tiny / "runs/tiny/pretrain").glob("checkpoint-*")) == []
