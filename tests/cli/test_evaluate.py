"""`fastdraft evaluate DRAFT`: any draft is scored on completions that its target generated once."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdraft.evaluation.rate_names import RATE_NAMES
from fastdraft.evaluation.recording import RecordingCard
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.system.cards import read_card, write_card
from fastdraft.system.files import locked

DRAFT, OTHER = "runs/tiny/align/model", "runs/tiny/pretrain"
WORDS = ("seven", "wolf", "house", "never", "cloud", "song", "under")
PROMPTS = ("--tasks", "own.jsonl", "--max-new-tokens", 13)
QUICK = ("--resamples", 100, "--device", "cpu", "--json")


def check_refused(ended: Any, *parts: str, code: int = 2) -> None:
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert re.search(r"^  do: \S", ended.err, re.MULTILINE), ended.err
    for part in parts:
        assert part in ended.err


def result(ended: Any) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


@pytest.fixture
def folder(finished_run: Path) -> Path:
    """A finished tiny run, and a file of a user's own prompts."""
    rows = [{"prompt": f"river stone {word} walks"} for word in WORDS]
    (finished_run / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    return finished_run


@pytest.fixture
def kept(folder: Path, fastdraft: Any) -> dict[str, Any]:
    """The result of the first command. The target's completions are in the folder `kept`."""
    return result(fastdraft("evaluate", DRAFT, *PROMPTS, "--temperature", "0,1", "--keep", "kept", *QUICK))


def test_the_target_writes_once_and_any_draft_is_scored_without_it(kept, folder, fastdraft):
    assert [(r["task"], r["temperature"], r["prompts"]) for r in kept["results"]] == [
        ("own.jsonl", 0.0, 7),
        ("own.jsonl", 1.0, 7),
    ]
    assert [at["gamma"] for at in kept["results"][0]["gammas"]] == list(range(1, 17))
    assert kept["tasks"][0]["left_out"] == {"rows that are not JSON": 1}
    assert [*kept["names"]] == [rate.fastdraft for rate in RATE_NAMES]
    assert (kept["notes"], kept["comparisons"], kept["verified"]) == ([], [], {})
    (folder / "target").rename(folder / "away")
    again = result(fastdraft("evaluate", "runs/tiny", "--data", "kept", "--gammas", "2,16", *QUICK))
    assert again["results"][1]["alpha"] == kept["results"][1]["alpha"]
    assert again["results"][1]["gammas"] == [kept["results"][1]["gammas"][place] for place in (1, 15)]
    both = result(fastdraft("evaluate", DRAFT, "--data", "kept", "--compare", OTHER, "--temperature", 1, *QUICK))
    assert [r["stage"] for r in both["results"]] == [DRAFT, OTHER]
    (gap,) = both["comparisons"]
    first, second = (r["alpha"]["value"] for r in both["results"])
    assert gap["alpha"]["value"] == pytest.approx(first - second)
    assert gap["alpha"]["more_than_noise"] == (gap["alpha"]["low"] > 0 or gap["alpha"]["high"] < 0)


def test_tables_and_verification(kept, fastdraft):
    ended = fastdraft("evaluate", DRAFT, "--data", "kept", "--compare", OTHER, "--verify", "--verify-prompts", 7)
    assert ended.code == 0, ended.err
    for text in (
        "position acceptance",
        "Mean acceptance length",
        "Difference from runs/tiny/pretrain",
        "own.jsonl, T = 1",
        "Verification",
    ):
        assert text in ended.out, text
    assert "completions/s" in ended.err
    assert "s left" in ended.err


def test_sampling_settings_of_one_temperature_are_reported_separately(kept, fastdraft):
    result(
        fastdraft(
            "evaluate", DRAFT, *PROMPTS, "--temperature", 1, "--top-k", 5, "--top-p", 0.9, "--keep", "kept", *QUICK
        )
    )
    shown = fastdraft("evaluate", DRAFT, "--data", "kept", "--gammas", 2).out
    for sampling in ("greedy", "T = 1", "T = 1, top-k 5, top-p 0.9"):
        assert shown.count(f"own.jsonl, {sampling}: task version 1") == 1


def test_the_verification_fails_loudly(kept, folder, fastdraft):
    store = CompletionStore(folder / "kept" / "completions")
    rows = [row if row.sampling.greedy else replace(row, logp=row.logp - np.float32(9)) for row in store.read()]
    for shard in store.folder.iterdir():
        shard.unlink()
    store.write(rows)
    write_card(folder / "kept", read_card(folder / "kept", RecordingCard))
    ended = fastdraft("evaluate", DRAFT, "--data", "kept", "--verify", "--verify-gamma", 2)
    check_refused(ended, "VerificationError", "belong to another distribution", code=1)
    assert "best gamma" in ended.out, "the rates are printed, and kept"
    assert "Verification" in ended.out
    (folder / "target").rename(folder / "away")
    (folder / "target").mkdir()
    ended = fastdraft("evaluate", DRAFT, "--data", "kept", "--verify")
    check_refused(ended, "no config.json in target")


def test_completions_of_another_revision(kept, folder, fastdraft):
    """A draft is scored on completions of the target in its card, unless --target names another one."""
    card = folder / "kept" / "card.json"
    content = json.loads(card.read_text())
    content["target"]["digest"] = "0123456789abcdef"
    card.write_text(json.dumps(content))
    message = "kept was written by target (files' digest 0123456789abcdef)"
    check_refused(
        fastdraft("evaluate", DRAFT, "--data", "kept"), message, f"the card of {DRAFT} names", "--target target"
    )
    named = fastdraft("evaluate", DRAFT, "--data", "kept", "--target", "target")
    check_refused(named, message, "target has", "do: record completions of that one")
    assert "name that" not in named.err, "the target that wrote them is no longer here, and was named already"
    check_refused(fastdraft("evaluate", DRAFT, *PROMPTS, "--keep", "kept"), "choose another folder with --keep")
    shutil.copytree(folder / "target", folder / "tuned")
    (folder / "tuned" / "generation_config.json").write_text('{"eos_token_id": 0, "top_k": 3}')
    other = result(
        fastdraft("evaluate", DRAFT, *PROMPTS, "--target", "tuned", "--keep", "other", "--gammas", 1, *QUICK)
    )
    assert "made for another target" in other["notes"][0]
    result(fastdraft("evaluate", DRAFT, "--data", "other", "--target", "tuned", "--gammas", 1, *QUICK))


def test_a_runs_own_evaluation_is_a_recording(folder, fastdraft):
    """Without the target it gives the rates of the run. Completions of other targets or tasks are refused."""
    run, own = folder / "runs" / "tiny", "runs/tiny/evaluate"
    of_run = [r for r in json.loads((run / "evaluate" / "card.json").read_text())["results"] if r["stage"] == "align"]
    (folder / "target").rename(folder / "away")
    results = result(fastdraft("evaluate", DRAFT, "--data", own, "--gammas", "1-3", *QUICK))["results"]
    assert len(results) == 4
    for actual, expected in zip(results, of_run, strict=True):
        assert (actual["task"], actual["temperature"]) == (expected["task"], expected["temperature"])
        assert actual["alpha"]["value"] == pytest.approx(expected["alpha"]["value"])
        for at, of_gamma in zip(actual["gammas"], expected["gammas"], strict=True):
            assert at["block_efficiency"]["value"] == pytest.approx(of_gamma["block_efficiency"]["value"])
    one = result(fastdraft("evaluate", OTHER, "--data", own, "--tasks", "rows", "--temperature", 1, *QUICK))
    assert [(task["name"], task["temperature"]) for task in one["tasks"]] == [("rows", 1.0)]
    check_refused(fastdraft("evaluate", DRAFT, "--data", own, "--tasks", "gsm8k"), "has no completions of gsm8k")
    shutil.copytree(folder / "away", folder / "tuned")
    (folder / "tuned" / "generation_config.json").write_text('{"eos_token_id": 0, "top_k": 3}')
    check_refused(fastdraft("evaluate", DRAFT, "--data", own, "--target", "tuned"), "evaluate was written by target")
    check_refused(fastdraft("evaluate", DRAFT, "--keep", own, "--target", "tuned", *QUICK), "nothing can be added")
    card = run / "target" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"digest": "0123456789abcdef"}))
    check_refused(fastdraft("evaluate", DRAFT, "--data", own), "was not made with", "0123456789abcdef")


def test_a_draft_that_does_not_fit(kept, folder, fastdraft):
    shutil.copytree(folder / DRAFT, folder / "foreign")
    config = folder / "foreign" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 307}))
    advice = "do: fastdraft check target foreign --repair"
    check_refused(fastdraft("evaluate", "foreign", "--data", "kept"), "foreign has 307 rows", "311 rows", advice)
    ended = fastdraft("evaluate", "foreign", "--target", "target", *PROMPTS, "--keep", "never")
    check_refused(ended, advice)
    assert not (folder / "never").exists(), "before the target writes a token"
    shutil.copy(folder / DRAFT / "config.json", config)
    file = folder / "foreign" / "tokenizer.json"
    swapped = json.loads(file.read_text())
    first, second = [*swapped["model"]["vocab"]][5:7]
    vocabulary = swapped["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(swapped))
    check_refused(fastdraft("evaluate", "foreign", "--data", "kept"), "stand for other bytes", advice)


def test_invalid_arguments_are_refused(folder, fastdraft):
    def refused(*arguments: object, part: str) -> None:
        check_refused(fastdraft("evaluate", *arguments), part)

    refused("recipe.yaml", "--tasks", "gsm8k", part="recipe.yaml is a recipe; only a draft takes --tasks")
    refused(DRAFT, "seed=3", part=f"{DRAFT} is a draft; only a recipe takes KEY=VALUE")
    refused(DRAFT, "--gammas", "0-3", part="--gammas: found 0-3")
    refused(DRAFT, "--temperature", "warm", part="--temperature: found warm")
    refused(DRAFT, "--data", "nowhere", part="no recorded completions at nowhere")
    refused(DRAFT, "--data", "nowhere", "--prompts", 3, part="--prompts is for generating")
    refused(DRAFT, "--compare", DRAFT, part="the draft itself")
    refused("runs/none", *PROMPTS, part="runs/none")
    refused(DRAFT, *PROMPTS, "--device", "warp", part="--device auto")
    with locked(folder / "held"):
        refused(DRAFT, *PROMPTS, "--keep", "held", part="choose another folder with --keep")
    refused(
        DRAFT, *PROMPTS[:2], "--max-new-tokens", 95, part="no row of own.jsonl gives a prompt: 7 prompts of more than"
    )
    shutil.copytree(folder / DRAFT, folder / "bare")
    refused("bare", *PROMPTS, part="add --target TARGET")


def test_a_recipe_is_evaluated_as_a_stage(finished_run, fastdraft):
    cards = result(fastdraft("evaluate", "recipe.yaml", "--json"))
    assert [*cards][-1] == "evaluate"
    assert fastdraft("evaluate", "recipe.yaml", "seed=12").code == 2, "its other stages are not done with this seed"


def test_a_disagreement_in_the_card_of_a_run_is_shown_and_the_exit_code_is_1(finished_run, fastdraft):
    path = finished_run / "runs" / "tiny" / "evaluate" / "card.json"
    card = json.loads(path.read_text())
    (task, (first, *more)), *others = card["verified"].items()
    wrong = first | {"disagreements": ["31 target forwards, one pass expects 20.0"]}
    path.write_text(json.dumps(card | {"verified": {task: [wrong, *more], **dict(others)}}))
    ended = fastdraft("run", "recipe.yaml")
    check_refused(ended, "VerificationError", f"first in {task}, greedy: 31 target forwards", code=1)
    assert "best gamma" in ended.out
    assert "Verification" in ended.out
    assert ended.out.count("31 target forwards") == 1
    path.write_text(json.dumps(card | {"verified": {}}))  # as with `evaluate.verify_prompts: 0`
    ended = fastdraft("run", "recipe.yaml")
    assert (ended.code, "best gamma" in ended.out, "Verification" in ended.out) == (0, True, False)


def test_completions_are_kept_for_the_next_draft(folder, fastdraft):
    """Without --keep they are in the user's cache, under the target's digest."""
    command = ("evaluate", DRAFT, *PROMPTS, "--temperature", 0, "--gammas", 1, "--json")
    first = result(fastdraft.start(*command, environment={"XDG_CACHE_HOME": str(folder / "cache")}).end())
    assert Path(first["recording"]) == folder / "cache" / "fastdraft" / "completions" / first["target_digest"]
    assert (folder / "cache" / "fastdraft" / "completions" / first["target_digest"] / "card.json").is_file()


@pytest.mark.slow
def test_an_export_names_its_target(kept, fastdraft):
    made = fastdraft("export", "runs/tiny", "--format", "huggingface", "--out", "given")
    assert made.code == 0, made.err
    again = result(fastdraft("evaluate", "given", "--data", "kept", *QUICK))
    for one, two in zip(again["results"], kept["results"], strict=True):  # an export rounds to bf16
        assert one["alpha"]["value"] == pytest.approx(two["alpha"]["value"], rel=0.02)
    first = result(fastdraft("evaluate", "given", *PROMPTS, "--temperature", "0,1", "--keep", "kept", *QUICK))
    assert (first["results"], first["notes"]) == (again["results"], [])
