"""What there is to say about a draft's shape is said once, when the target is looked at, and kept in the manifest."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, MixtralConfig

from fastdraft.config import Recipe
from fastdraft.config.resolve import digest, resolve
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.stages import key_of, run_stages, stages_of
from fastdraft.system.errors import ShapeError, TargetError, VocabularyMismatch
from fastdraft.system.manifest import Manifest


def look(files: Path, *keys: str) -> list[str]:
    """The notes that a run's manifest has after the target's stage."""
    recipe, run = resolve(files / "recipe.yaml", [f"target.path={files}/target", *keys]).recipe, files / "run"
    run.mkdir(exist_ok=True)
    manifest = Manifest(run, digest(recipe), recipe.seed, torch.device("cpu"))
    run_stages(RunContext(recipe, run, torch.device("cpu")), manifest, until="target")
    return json.loads((run / "manifest.json").read_text())["commands"][-1]["notes"]


def test_a_draft_of_the_targets_own_family_needs_no_words(tiny):
    assert look(tiny) == []


def test_a_draft_of_another_family_is_reported_once_with_the_reason(tiny, capsys):
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "vocab_size": 311, "hidden_size": 24}
    sizes = {"intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    MixtralConfig(**experts, **sizes, max_position_embeddings=97, eos_token_id=0).save_pretrained(tiny / "target")
    notes = look(tiny)
    assert len(notes) == 1
    assert "the target is a `mixtral`, the draft a `mistral`: it is a mixture of experts" in notes[0]
    assert capsys.readouterr().err.count("the draft a `mistral`") == 1
    assert look(tiny) == []  # already done


def test_a_budget_that_the_vocabulary_alone_exceeds_is_reported_before_any_work(tiny):
    """311 rows of the narrowest width are .02M."""
    keys = ("draft.params_millions=0.01", "draft.hidden_size=null", "draft.layers=null", "draft.heads=null")
    with pytest.raises(
        ShapeError, match=r"(?s)0.01M parameters cannot be: the smallest .* raise draft.params_millions to"
    ):
        look(tiny, *keys, "draft.kv_heads=null", "draft.intermediate_size=null")


TAUGHT = ["pretrain.objective=forward_kl", "pretrain.teacher={}"]


def recipe_of(files: Path, teacher: Path, *more: str) -> Recipe:
    """Where a phase has this teacher."""
    given = [f"target.path={files}/target", *(key.format(teacher) for key in TAUGHT), *more]
    return resolve(files / "recipe.yaml", given).recipe


def keys(files: Path, teacher: Path) -> dict[str, str]:
    """The key of each of its stages."""
    recipe, found = recipe_of(files, teacher), {}
    for stage in stages_of(recipe):
        found[stage.name] = key_of(stage, recipe, found)
    return found


def test_a_teacher_that_is_none_for_this_target_is_reported_before_any_work(tiny):
    other = tiny / "other"
    with pytest.raises(TargetError, match=r"pretrain.teacher: no config.json in .*other\n  do: "):
        look(tiny, *(key.format(other) for key in TAUGHT))
    shutil.copytree(tiny / "target", other)
    assert look(tiny, *(key.format(other) for key in TAUGHT)) == []
    with pytest.raises(
        TargetError, match=r"sequence_tokens is 98, the context of pretrain.teacher .* holds 97 [^\0]*do:"
    ):
        RunContext(recipe_of(tiny, other, "pretrain.sequence_tokens=98"), tiny, torch.device("cpu")).check_teacher(
            "pretrain"
        )
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    (one, first), (two, second) = sorted(vocabulary.items(), key=lambda item: item[1])[-2:]
    tokenizer["model"]["vocab"] = vocabulary | {one: second, two: first}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    run_context = RunContext(recipe_of(tiny, other), tiny / "run", torch.device("cpu"))
    with pytest.raises(VocabularyMismatch, match=r"pretrain.teacher: .* something else by 2 of [^\0]*leave it out"):
        run_context.open_teacher("pretrain", torch.float32)  # the target was looked at before
    shutil.rmtree(tiny / "run")
    with pytest.raises(VocabularyMismatch, match=r"pretrain.teacher: "):
        look(tiny, *(key.format(other) for key in TAUGHT))


def test_a_phase_is_made_anew_where_its_teacher_is_another_one(tiny, perturbed):
    other = tiny / "other"
    shutil.copytree(tiny / "target", other)
    before = keys(tiny, other)
    assert keys(tiny, other) == before
    perturbed(LlamaForCausalLM.from_pretrained(other), 0.1, 3).save_pretrained(other)
    after = keys(tiny, other)
    assert [name for name in before if before[name] != after[name]] == ["pretrain", "continue", "align", "evaluate"]


def test_the_target_itself_as_teacher_makes_the_target_s_own_draft(tiny, one_thread, monkeypatch):
    """To the last bit, by way of another folder."""
    monkeypatch.chdir(tiny)
    shutil.copytree(tiny / "target", tiny / "other")
    drafts = [tiny / "runs" / name for name in ("own", "taught")]
    for folder, more in zip(drafts, ([], [f"pretrain.teacher={tiny}/other"]), strict=True):
        given = [f"target.path={tiny}/target", "pretrain.objective=forward_kl", "pretrain.train_tokens=1000", *more]
        recipe = resolve(tiny / "recipe.yaml", given).recipe
        folder.mkdir(parents=True)
        manifest = Manifest(folder, digest(recipe), recipe.seed, torch.device("cpu"))
        run_stages(RunContext(recipe, folder, torch.device("cpu")), manifest, until="pretrain")
    own, taught = (load_file(folder / "pretrain/model/model.safetensors") for folder in drafts)
    assert all(torch.equal(own[name], taught[name]) for name in own)
