"""What there is to say about a draft's shape is said once, when the target is looked at, and kept in the manifest."""

import json
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig

from fastdraft.artefacts.journey import Journey
from fastdraft.errors import ShapeError
from fastdraft.manifest import Manifest
from fastdraft.resolve import digest, resolve
from fastdraft.stages import travel


def look(files: Path, *keys: str) -> list[str]:
    """The notes that a run's manifest has after the target's stage."""
    recipe, run = resolve(files / "recipe.yaml", [f"target.path={files}/target", *keys]).recipe, files / "run"
    run.mkdir(exist_ok=True)
    manifest = Manifest(run, digest(recipe), recipe.seed, torch.device("cpu"))
    travel(Journey(recipe, run, torch.device("cpu")), manifest, until="target")
    return json.loads((run / "manifest.json").read_text())["commands"][-1]["notes"]


def test_a_draft_of_the_targets_own_family_needs_no_words(tiny):
    assert look(tiny) == []


def test_a_draft_of_another_family_is_said_once_with_the_reason(tiny, capsys):
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "vocab_size": 311, "hidden_size": 24}
    sizes = {"intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    MixtralConfig(**experts, **sizes, max_position_embeddings=97, eos_token_id=0).save_pretrained(tiny / "target")
    notes = look(tiny)
    assert len(notes) == 1
    assert "the target is a `mixtral`, the draft a `mistral`: it is a mixture of experts" in notes[0]
    assert capsys.readouterr().err.count("the draft a `mistral`") == 1
    assert look(tiny) == []  # already done


def test_a_budget_that_the_vocabulary_alone_exceeds_is_said_before_any_work(tiny):
    """311 rows of the narrowest width are .02M."""
    keys = ("draft.params_millions=0.01", "draft.hidden_size=null", "draft.layers=null", "draft.heads=null")
    with pytest.raises(
        ShapeError, match=r"(?s)0.01M parameters cannot be: the smallest .* raise draft.params_millions to"
    ):
        look(tiny, *keys, "draft.kv_heads=null", "draft.intermediate_size=null")
