"""The stage `target`: notes about the draft's shape go into the manifest, and teachers are checked before any work."""

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
from fastdraft.pipeline.run_stages import run_stages
from fastdraft.pipeline.stages import key_of, stages_of
from fastdraft.system.errors import ShapeError, TargetError, VocabularyMismatch
from fastdraft.system.manifest import Manifest


def run_target(files: Path, *keys: str) -> list[str]:
    """Run the stage `target` and return the notes in the manifest."""
    recipe, run = resolve(files / "recipe.yaml", [f"target.path={files}/target", *keys]).recipe, files / "run"
    run.mkdir(exist_ok=True)
    manifest = Manifest(run, digest(recipe), recipe.seed, torch.device("cpu"))
    run_stages(RunContext(recipe, run, torch.device("cpu")), manifest, until="target")
    return json.loads((run / "manifest.json").read_text())["commands"][-1]["notes"]


def test_a_draft_of_the_targets_own_family_gives_no_note(tiny):
    assert run_target(tiny) == []


def test_a_draft_of_another_family_gives_one_note_with_the_reason(tiny, capsys):
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "vocab_size": 311, "hidden_size": 24}
    sizes = {"intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    MixtralConfig(**experts, **sizes, max_position_embeddings=97, eos_token_id=0).save_pretrained(tiny / "target")
    notes = run_target(tiny)
    assert len(notes) == 1
    assert "the target is a `mixtral`, the draft a `mistral`: it is a mixture of experts" in notes[0]
    assert capsys.readouterr().err.count("the draft a `mistral`") == 1
    assert run_target(tiny) == []  # already done


def test_a_size_that_the_vocabulary_alone_exceeds_fails_before_any_work(tiny):
    """311 embedding rows of the narrowest width have 0.02M parameters."""
    keys = ("draft.params_millions=0.01", "draft.hidden_size=null", "draft.layers=null", "draft.heads=null")
    with pytest.raises(
        ShapeError, match=r"(?s)0.01M parameters is too small: the smallest .* raise draft.params_millions to"
    ):
        run_target(tiny, *keys, "draft.kv_heads=null", "draft.intermediate_size=null")


WITH_TEACHER = ["pretrain.objective=forward_kl", "pretrain.teacher={}"]


def recipe_of(files: Path, teacher: Path, *more: str) -> Recipe:
    """A recipe whose phase `pretrain` has this teacher."""
    overrides = [f"target.path={files}/target", *(key.format(teacher) for key in WITH_TEACHER), *more]
    return resolve(files / "recipe.yaml", overrides).recipe


def keys(files: Path, teacher: Path) -> dict[str, str]:
    """The key of each stage of that recipe."""
    recipe, found = recipe_of(files, teacher), {}
    for stage in stages_of(recipe):
        found[stage.name] = key_of(stage, recipe, found)
    return found


def test_an_unusable_teacher_fails_before_any_work(tiny):
    other = tiny / "other"
    with pytest.raises(TargetError, match=r"pretrain.teacher: no config.json in .*other\n  do: "):
        run_target(tiny, *(key.format(other) for key in WITH_TEACHER))
    shutil.copytree(tiny / "target", other)
    assert run_target(tiny, *(key.format(other) for key in WITH_TEACHER)) == []
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
    with pytest.raises(VocabularyMismatch, match=r"pretrain.teacher: 2 of [^\0]*leave it out"):
        run_context.open_teacher("pretrain", torch.float32)  # the stage `target` is done
    shutil.rmtree(tiny / "run")
    with pytest.raises(VocabularyMismatch, match=r"pretrain.teacher: "):
        run_target(tiny, *(key.format(other) for key in WITH_TEACHER))


def test_another_teacher_reruns_the_phase(tiny, perturbed):
    other = tiny / "other"
    shutil.copytree(tiny / "target", other)
    before = keys(tiny, other)
    assert keys(tiny, other) == before
    perturbed(LlamaForCausalLM.from_pretrained(other), 0.1, 3).save_pretrained(other)
    after = keys(tiny, other)
    assert [name for name in before if before[name] != after[name]] == ["pretrain", "continue", "align", "evaluate"]


def test_a_copy_of_the_target_as_teacher_gives_the_same_draft(tiny, one_thread, monkeypatch):
    """Bit for bit."""
    monkeypatch.chdir(tiny)
    shutil.copytree(tiny / "target", tiny / "other")
    drafts = [tiny / "runs" / name for name in ("own", "teacher")]
    for folder, more in zip(drafts, ([], [f"pretrain.teacher={tiny}/other"]), strict=True):
        overrides = [f"target.path={tiny}/target", "pretrain.objective=forward_kl", "pretrain.train_tokens=1000", *more]
        recipe = resolve(tiny / "recipe.yaml", overrides).recipe
        folder.mkdir(parents=True)
        manifest = Manifest(folder, digest(recipe), recipe.seed, torch.device("cpu"))
        run_stages(RunContext(recipe, folder, torch.device("cpu")), manifest, until="pretrain")
    own, by_teacher = (load_file(folder / "pretrain/model/model.safetensors") for folder in drafts)
    assert all(torch.equal(own[name], by_teacher[name]) for name in own)
