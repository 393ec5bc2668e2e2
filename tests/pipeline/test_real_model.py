"""The whole pipeline on a real target: recipes/stories260k.yaml with fewer tokens, on stories like its own."""

import json
from pathlib import Path

import pytest

from fastdraft.synthesize.completion_store import CompletionStore

ROOT = Path(__file__).parents[2]
CORPORA = ROOT.parent / "shared" / "data" / "corpora"
# Two thirds of these tokens and prompts gave alpha .449 at T = 1, with interval .435 to .464.
SHORTER = [
    *("pretrain.train_tokens=300000", "align.train_tokens=700000", "synthesize.prompts=1000"),
    *("evaluate.prompts=48", "evaluate.max_new_tokens=64", "evaluate.verify_prompts=8"),
]


@pytest.mark.slow
def test_a_draft_for_a_real_target(stories260k, fastdraft, tmp_path):
    if not (CORPORA / "tinystories_v2_10k.txt.gz").is_file():
        pytest.skip("the stories are not at ../shared/data/corpora, beside the repository")
    fastdraft.folder = ROOT  # the recipe's paths are relative to it
    ended = fastdraft("run", "recipes/stories260k.yaml", *SHORTER, "--folder", tmp_path / "run", "--json", seconds=900)
    assert ended.code == 0, ended.err
    cards = json.loads(ended.out)
    assert cards["align"]["shape"]["parameters"] <= 82_000
    assert sum(cards[phase]["trained_tokens"] for phase in ("pretrain", "align")) <= 1_100_000

    alpha = {(row["stage"], row["temperature"]): row["alpha"] for row in cards["evaluate"]["results"]}
    assert len(alpha) == 4
    assert alpha["align", 1.0]["value"] >= 0.5
    assert alpha["align", 1.0]["low"] > alpha["pretrain", 1.0]["high"]
    assert alpha["align", 0.0]["low"] > alpha["pretrain", 0.0]["high"]

    greedy, sampled = cards["evaluate"]["verified"]["stories"]
    assert (greedy["prompts"], greedy["temperature"], sampled["temperature"]) == (8, 0.0, 1.0)
    assert greedy["compared"] >= 7
    assert greedy["real"] == greedy["one_pass"]
    assert greedy["disagreements"] == sampled["disagreements"] == []
    assert greedy["real"]["value"] > 1.8

    # The target's tokenizer adds a begin-of-text token, which no prompt lacks.
    card = cards["target"]
    for folder in ("evaluate", "validation", "synthesize"):
        prompts = [row.prompt for row in CompletionStore(tmp_path / "run" / folder / "completions").read()]
        assert {int(prompt[0]) for prompt in prompts} == {card["bos_id"]} != {None}
        assert not any(card["bos_id"] in prompt[1:] for prompt in prompts)
