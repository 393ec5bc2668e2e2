"""`fastdraft evaluate DRAFT` as users run it: any draft on what its target wrote once; what does not fit is refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdraft.evaluate.rate_names import ELSEWHERE
from fastdraft.synthesize.completions import CompletionStore
from fastdraft.system.files import locked

DRAFT, OTHER = "runs/tiny/align/model", "runs/tiny/pretrain"
WORDS = ("seven", "wolf", "house", "never", "cloud", "song", "under")
ASKED = ("--tasks", "own.jsonl", "--max-new-tokens", 13)
QUICK = ("--resamples", 100, "--device", "cpu", "--json")


def check_refused(ended: Any, *said: str, code: int = 2) -> None:
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert re.search(r"^  do: \S", ended.err, re.MULTILINE), ended.err
    for text in said:
        assert text in ended.err


def found(ended: Any) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


@pytest.fixture
def asked(finished_run: Path) -> Path:
    """A finished tiny pipeline, and prompts of a user's own."""
    rows = [{"prompt": f"river stone {word} walks"} for word in WORDS]
    (finished_run / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    return finished_run


@pytest.fixture
def kept(asked: Path, fastdraft: Any) -> dict[str, Any]:
    """What the first command found; what the target wrote is in `kept`."""
    return found(fastdraft("evaluate", DRAFT, *ASKED, "--temperature", "0,1", "--keep", "kept", *QUICK))


def test_the_target_writes_once_and_any_draft_is_scored_without_it(kept, asked, fastdraft):
    assert [(r["task"], r["temperature"], r["prompts"]) for r in kept["results"]] == [
        ("own.jsonl", 0.0, 7),
        ("own.jsonl", 1.0, 7),
    ]
    assert [at["gamma"] for at in kept["results"][0]["gammas"]] == list(range(1, 17))
    assert kept["tasks"][0]["left_out"] == {"rows that are not JSON in UTF-8": 1}
    assert [*kept["names"]] == [rate.ours for rate in ELSEWHERE]
    assert (kept["notes"], kept["comparisons"], kept["verified"]) == ([], [], {})
    (asked / "target").rename(asked / "away")
    again = found(fastdraft("evaluate", "runs/tiny", "--data", "kept", "--gammas", "2,16", *QUICK))
    assert again["results"][1]["alpha"] == kept["results"][1]["alpha"]
    assert again["results"][1]["gammas"] == [kept["results"][1]["gammas"][place] for place in (1, 15)]
    both = found(fastdraft("evaluate", DRAFT, "--data", "kept", "--compare", OTHER, "--temperature", 1, *QUICK))
    assert [r["stage"] for r in both["results"]] == [DRAFT, OTHER]
    (gap,) = both["comparisons"]
    ours, theirs = (r["alpha"]["value"] for r in both["results"])
    assert gap["alpha"]["value"] == pytest.approx(ours - theirs)
    assert gap["alpha"]["more_than_noise"] == (gap["alpha"]["low"] > 0 or gap["alpha"]["high"] < 0)


def test_it_is_shown_and_judged(kept, fastdraft):
    ended = fastdraft("evaluate", DRAFT, "--data", "kept", "--compare", OTHER, "--verify", "--verify-prompts", 7)
    assert ended.code == 0, ended.err
    for text in (
        "position acceptance",
        "Mean acceptance length",
        "Minus runs/tiny/pretrain",
        "own.jsonl, T = 1",
        "The verification",
    ):
        assert text in ended.out, text
    assert "completions/s" in ended.err
    assert "s left" in ended.err


def test_distributions_of_one_temperature_are_reported_apart(kept, fastdraft):
    found(
        fastdraft("evaluate", DRAFT, *ASKED, "--temperature", 1, "--top-k", 5, "--top-p", 0.9, "--keep", "kept", *QUICK)
    )
    shown = fastdraft("evaluate", DRAFT, "--data", "kept", "--gammas", 2).out
    for sampling in ("greedy", "T = 1", "T = 1, top-k 5, top-p 0.9"):
        assert shown.count(f"own.jsonl, {sampling}: task version 1") == 1


def test_the_verification_fails_loudly(kept, asked, fastdraft):
    store = CompletionStore(asked / "kept" / "completions")
    rows = [row if row.sampling.greedy else replace(row, logp=row.logp - np.float32(9)) for row in store.read()]
    for shard in store.folder.iterdir():
        shard.unlink()
    store.write(rows)
    ended = fastdraft("evaluate", DRAFT, "--data", "kept", "--verify", "--verify-gamma", 2)
    check_refused(ended, "VerificationError", "in real runs", "in one pass", code=1)
    assert "best gamma" in ended.out, "what was measured is shown all the same"
    (asked / "target").rename(asked / "away")
    (asked / "target").mkdir()
    ended = fastdraft("evaluate", DRAFT, "--data", "kept", "--verify")
    check_refused(ended, "no config.json in target")


def test_completions_of_another_revision(kept, asked, fastdraft):
    """A draft's card names the target that it was made for; whoever means another one names it."""
    card = asked / "kept" / "card.json"
    content = json.loads(card.read_text())
    content["target"]["digest"] = "0123456789abcdef"
    card.write_text(json.dumps(content))
    said = "kept was written by target (files' digest 0123456789abcdef)"
    check_refused(fastdraft("evaluate", DRAFT, "--data", "kept"), said, f"the card of {DRAFT} names", "--target target")
    named = fastdraft("evaluate", DRAFT, "--data", "kept", "--target", "target")
    check_refused(named, said, "target has", "do: make completions of that one")
    assert "name that" not in named.err, "the target that wrote them is no longer here, and was named already"
    check_refused(fastdraft("evaluate", DRAFT, *ASKED, "--keep", "kept"), "choose another folder with --keep")
    shutil.copytree(asked / "target", asked / "tuned")
    (asked / "tuned" / "generation_config.json").write_text('{"eos_token_id": 0, "top_k": 3}')
    other = found(fastdraft("evaluate", DRAFT, *ASKED, "--target", "tuned", "--keep", "other", "--gammas", 1, *QUICK))
    assert "made for another target" in other["notes"][0]
    found(fastdraft("evaluate", DRAFT, "--data", "other", "--target", "tuned", "--gammas", 1, *QUICK))


def test_a_runs_own_evaluation_is_a_recording(asked, fastdraft):
    """Without the target it scores a draft as the run did; what another target wrote, or was asked, is refused."""
    run, own = asked / "runs" / "tiny", "runs/tiny/evaluate"
    theirs = [r for r in json.loads((run / "evaluate" / "card.json").read_text())["results"] if r["stage"] == "align"]
    (asked / "target").rename(asked / "away")
    ours = found(fastdraft("evaluate", DRAFT, "--data", own, "--gammas", "1-3", *QUICK))["results"]
    assert len(ours) == 4
    for mine, of_run in zip(ours, theirs, strict=True):
        assert (mine["task"], mine["temperature"]) == (of_run["task"], of_run["temperature"])
        assert mine["alpha"]["value"] == pytest.approx(of_run["alpha"]["value"])
        for at, of_gamma in zip(mine["gammas"], of_run["gammas"], strict=True):
            assert at["block_efficiency"]["value"] == pytest.approx(of_gamma["block_efficiency"]["value"])
    one = found(fastdraft("evaluate", OTHER, "--data", own, "--tasks", "rows", "--temperature", 1, *QUICK))
    assert [(task["name"], task["temperature"]) for task in one["tasks"]] == [("rows", 1.0)]
    check_refused(fastdraft("evaluate", DRAFT, "--data", own, "--tasks", "gsm8k"), "has no completions of gsm8k")
    shutil.copytree(asked / "away", asked / "tuned")
    (asked / "tuned" / "generation_config.json").write_text('{"eos_token_id": 0, "top_k": 3}')
    check_refused(fastdraft("evaluate", DRAFT, "--data", own, "--target", "tuned"), "evaluate was written by target")
    check_refused(fastdraft("evaluate", DRAFT, "--keep", own, "--target", "tuned", *QUICK), "nothing is added")
    card = run / "target" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"digest": "0123456789abcdef"}))
    check_refused(fastdraft("evaluate", DRAFT, "--data", own), "was not made with", "0123456789abcdef")


def test_a_draft_that_does_not_fit(kept, asked, fastdraft):
    shutil.copytree(asked / DRAFT, asked / "foreign")
    config = asked / "foreign" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 307}))
    advice = "do: fastdraft check target foreign --repair"
    check_refused(fastdraft("evaluate", "foreign", "--data", "kept"), "foreign has 307 rows", "311 rows", advice)
    ended = fastdraft("evaluate", "foreign", "--target", "target", *ASKED, "--keep", "never")
    check_refused(ended, advice)
    assert not (asked / "never").exists(), "before the target writes a token"
    shutil.copy(asked / DRAFT / "config.json", config)
    file = asked / "foreign" / "tokenizer.json"
    swapped = json.loads(file.read_text())
    first, second = [*swapped["model"]["vocab"]][5:7]
    vocabulary = swapped["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(swapped))
    check_refused(fastdraft("evaluate", "foreign", "--data", "kept"), "other bytes behind its ids", advice)


def test_what_cannot_be_asked(asked, fastdraft):
    def refused(*arguments: object, said: str) -> None:
        check_refused(fastdraft("evaluate", *arguments), said)

    refused("recipe.yaml", "--tasks", "gsm8k", said="recipe.yaml is a recipe, and --tasks is for a draft")
    refused(DRAFT, "seed=3", said=f"{DRAFT} is a draft, and KEY=VALUE is for a recipe")
    refused(DRAFT, "--gammas", "0-3", said="--gammas: found 0-3")
    refused(DRAFT, "--temperature", "warm", said="--temperature: found warm")
    refused(DRAFT, "--data", "nowhere", said="no recorded completions at nowhere")
    refused(DRAFT, "--data", "nowhere", "--prompts", 3, said="--prompts is for writing")
    refused(DRAFT, "--compare", DRAFT, said="the draft itself")
    refused("runs/none", *ASKED, said="runs/none")
    refused(DRAFT, *ASKED, "--device", "warp", said="--device auto")
    with locked(asked / "held"):
        refused(DRAFT, *ASKED, "--keep", "held", said="choose another folder with --keep")
    refused(
        DRAFT, *ASKED[:2], "--max-new-tokens", 95, said="no row of own.jsonl gives a prompt: 7 prompts of more than"
    )
    shutil.copytree(asked / DRAFT, asked / "bare")
    refused("bare", *ASKED, said="add --target TARGET")


def test_a_recipe_is_evaluated_as_a_stage(finished_run, fastdraft):
    cards = found(fastdraft("evaluate", "recipe.yaml", "--json"))
    assert [*cards][-1] == "evaluate"
    assert fastdraft("evaluate", "recipe.yaml", "seed=12").code == 2, "its other stages are not done with this seed"


def test_completions_are_kept_for_the_next_draft(asked, fastdraft):
    """Without --keep they lie in the user's cache, by the target's digest."""
    command = ("evaluate", DRAFT, *ASKED, "--temperature", 0, "--gammas", 1, "--json")
    first = found(fastdraft.start(*command, environment={"XDG_CACHE_HOME": str(asked / "cache")}).end())
    assert Path(first["recording"]) == asked / "cache" / "fastdraft" / "completions" / first["target_digest"]
    assert (asked / "cache" / "fastdraft" / "completions" / first["target_digest"] / "card.json").is_file()


@pytest.mark.slow
def test_an_export_names_its_target(kept, fastdraft):
    made = fastdraft("export", "runs/tiny", "--format", "huggingface", "--out", "given")
    assert made.code == 0, made.err
    again = found(fastdraft("evaluate", "given", "--data", "kept", *QUICK))
    for one, two in zip(again["results"], kept["results"], strict=True):  # an export rounds to bf16
        assert one["alpha"]["value"] == pytest.approx(two["alpha"]["value"], rel=0.02)
    first = found(fastdraft("evaluate", "given", *ASKED, "--temperature", "0,1", "--keep", "kept", *QUICK))
    assert (first["results"], first["notes"]) == (again["results"], [])
