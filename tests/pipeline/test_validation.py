"""Validation completions: the target writes them once, and a draft is not reported on them."""

import json
from pathlib import Path

import pytest
import torch

from fastdraft.config.resolve import resolve
from fastdraft.evaluation import one_pass
from fastdraft.evaluation.run_recording import evaluation_prompts
from fastdraft.models.draft import DraftCard
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.stage_result import Note
from fastdraft.pipeline.stages import STAGES, key_of
from fastdraft.pipeline.validation import Validation, ValidationCard, make_validation, open_validation
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.system.cards import read_card

PHASES = ("pretrain", "continue", "align")


def context_of(files: Path, *overrides: str) -> RunContext:
    recipe = resolve(files / "recipe.yaml", [f"target.path={files}/target", *overrides]).recipe
    return RunContext(recipe, files / "runs/tiny", torch.device("cpu"))


def measured(run: Path, phase: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / phase / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "block_efficiency" in row]


@pytest.fixture
def validation(finished) -> Validation:
    opened = open_validation(context_of(finished))
    assert opened is not None
    return opened


def test_block_efficiency_is_measured_whenever_the_held_out_loss_is(finished):
    for phase in PHASES:
        lines = (finished / "runs/tiny" / phase / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows if "held_out_text_nats" in row] == [
            row["step"] for row in rows if "block_efficiency" in row
        ]
        assert len(measured(finished / "runs/tiny", phase)) >= 2


def test_the_card_has_the_block_efficiency_of_the_kept_draft(finished, validation):
    """Validating the saved weights gives the same rates."""
    run_context = context_of(finished)
    for phase in PHASES:
        card = read_card(run_context.folder / phase, DraftCard)
        found = validation(run_context.open_draft(phase))
        last = measured(run_context.folder, phase)[-1]
        assert card.block_efficiency == {task: last[f"block_efficiency_{task}"] for task in ("text", "rows")}
        assert found == pytest.approx({key: last[key] for key in found}, rel=1e-6)


def test_it_equals_the_one_pass_block_efficiency(finished, validation):
    run_context = context_of(finished)
    draft = run_context.open_draft("align")
    found = validation(draft)
    for task, rows in validation.completions.items():
        tokens = forwards = 0.0
        for temperature in (0.0, 1.0):
            at_temperature = [row for row in rows if row.sampling.temperature == temperature]
            assert len(at_temperature) == 8
            result = one_pass.evaluate(
                draft, at_temperature, [2], stage="align", task=task, c=0.1, resamples=10, seed=0
            )
            tokens += result.tokens
            forwards += result.tokens / result.gammas[0].block_efficiency.value
        assert found[f"block_efficiency_{task}"] == pytest.approx(tokens / forwards)
    assert min(found.values()) >= 1


def test_its_prompts_are_not_those_of_the_evaluation(finished, validation):
    run_context = context_of(finished)
    part = run_context.recipe.evaluate
    reported = {tuple(prompt) for task in part.tasks for prompt in evaluation_prompts(run_context, part, task)}
    assert len(reported) >= 20
    prompts = {tuple(row.prompt) for rows in validation.completions.values() for row in rows}
    assert len(prompts) == 32
    assert prompts & reported == set()


def test_the_target_writes_once_for_all_phases(finished):
    card = read_card(finished / "runs/tiny/validation", ValidationCard)
    store = CompletionStore(finished / "runs/tiny/validation/completions")
    assert len(store.stored_keys()) == 32
    assert {task: len(keys) for task, keys in card.tasks.items()} == {"text": 16, "rows": 16}
    assert {row.key for row in store.read()} == {key for keys in card.tasks.values() for key in keys}


@pytest.mark.parametrize("key", ["evaluate.validation_prompts=3", "evaluate.max_new_tokens=11", "seed=8"])
def test_its_key_follows_what_is_measured(finished, key):
    def keys_of(*overrides: str) -> dict[str, str]:
        recipe = context_of(finished, "pretrain.keep=best", *overrides).recipe
        return {name: key_of(stage, recipe, {}) for name, stage in stages.items()}

    stages = {stage.name: stage for stage in STAGES}
    before, after = keys_of(), keys_of(key)
    assert before["validation"] != after["validation"]
    assert before["pretrain"] != after["pretrain"], "its draft is chosen by the validation"
    assert (before["align"] == after["align"]) == (key != "seed=8"), "its draft is the last one"


@pytest.mark.parametrize("override", ["evaluate=null", "evaluate.validation_prompts=0"])
def test_it_can_be_left_out(finished, override):
    assert open_validation(context_of(finished, override)) is None


def test_too_few_held_out_prompts_give_a_note(finished_run):
    run_context = context_of(finished_run, "evaluate.validation_prompts=10000", "evaluate.tasks=[text]")
    with pytest.warns(Note, match=r"text: \d+ .* 10,?000"):
        made = make_validation(run_context, run_context.folder / "validation")
    assert 16 < len(made.fields["tasks"]["text"]) < 10_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_keep_best_keeps_the_draft_with_the_best_block_efficiency(tiny, fastdraft):
    keys = ["pretrain.keep=best", "pretrain.held_out_every_tokens=150", "pretrain.learning_rate=0.05"]
    ended = fastdraft("run", "recipe.yaml", *keys, "--until", "pretrain")
    assert ended.code == 0, ended.err
    run_context, rows = context_of(tiny, *keys), measured(tiny / "runs/tiny", "pretrain")
    best = max(rows, key=lambda row: row["block_efficiency"])
    card = read_card(run_context.folder / "pretrain", DraftCard)
    assert card.trained_tokens == best["tokens"]
    found = open_validation(run_context)(run_context.open_draft("pretrain"))
    assert found["block_efficiency"] == pytest.approx(best["block_efficiency"], rel=1e-6)
    assert list((tiny / "runs/tiny/pretrain").glob("checkpoint-*")) == []
