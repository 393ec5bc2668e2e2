"""A saved draft opens in transformers and has its target's tokenizer and special ids."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fastdraft.config import DraftPart, TargetPart
from fastdraft.models import draft, pretrained, target
from fastdraft.models.pretrained import PICKLED, TOKENIZER_FILES
from fastdraft.models.shape import derive
from fastdraft.models.target import TargetCard
from fastdraft.system.cards import Cost
from fastdraft.system.errors import CardError, VocabularyMismatch

CPU = torch.device("cpu")


@pytest.fixture
def demo() -> tuple[TargetPart, TargetCard]:
    part = TargetPart(path="demo")
    return part, TargetCard(key="k", cost=Cost(seconds=1.0), **target.card(part))


@pytest.fixture
def saved(demo, tmp_path) -> Path:
    part, card = demo
    model = draft.new(derive(pretrained.open_config(part), DraftPart(hidden_size=64, layers=2)), seed=7)
    draft.save(model, pretrained.folder_of(part), card, tmp_path / "model")
    return tmp_path / "model"


def test_random_weights_depend_only_on_the_seed(demo):
    shape = derive(pretrained.open_config(demo[0]), DraftPart(hidden_size=64, layers=2))
    first, same, different = (draft.new(shape, seed) for seed in (7, 7, 8))
    assert first.num_parameters() == shape.parameters
    assert all(map(torch.equal, first.parameters(), same.parameters()))
    assert not torch.equal(next(first.parameters()), next(different.parameters()))
    assert {p.dtype for p in first.parameters()} == {torch.float32}
    assert first.get_output_embeddings().weight is first.get_input_embeddings().weight


def test_opens_with_transformers_alone(demo, saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer, target_tokenizer = AutoTokenizer.from_pretrained(saved), pretrained.open_tokenizer(demo[0])
    text = "def tale(fox):\n    return [fox] * 3  # äöü"
    assert tokenizer(text).input_ids == target_tokenizer(text).input_ids
    ids = tokenizer("def", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] <= ids.input_ids.shape[1] + 3


def test_opens_with_the_saved_weights(demo, saved):
    shape = derive(pretrained.open_config(demo[0]), DraftPart(hidden_size=64, layers=2))
    opened = draft.open_draft(saved, CPU)
    assert all(map(torch.equal, opened.parameters(), draft.new(shape, 7).parameters()))
    assert not opened.training
    draft.check_fit(opened, demo[1], saved)


def test_tokenizer_files_are_the_targets_byte_for_byte(demo, saved):
    target_folder = pretrained.folder_of(demo[0])
    names = [name for name in TOKENIZER_FILES if (target_folder / name).is_file()]
    assert len(names) >= 2
    for name in TOKENIZER_FILES:
        assert (saved / name).is_file() == (name in names)
    assert all((saved / name).read_bytes() == (target_folder / name).read_bytes() for name in names)
    assert not [path for path in saved.rglob("*") if path.suffix in PICKLED]


@pytest.mark.parametrize(("eos", "expected"), [((0,), 0), ((5, 0, 7), [5, 0, 7])])
def test_generation_ends_where_the_targets_does(demo, saved, tmp_path, eos, expected):
    part, card = demo
    model = draft.open_draft(saved, CPU)
    card = card.model_copy(update={"eos_ids": eos, "bos_id": 3})
    draft.save(model, pretrained.folder_of(part), card, tmp_path / "again")
    config = GenerationConfig.from_pretrained(tmp_path / "again")
    assert (config.eos_token_id, config.bos_token_id) == (expected, 3)
    assert config.pad_token_id is not None


def test_a_draft_of_another_vocabulary_is_refused(demo, saved):
    _, card = demo
    rows = f"{card.vocab_rows} output rows, target demo has {card.vocab_rows + 64}"
    with pytest.raises(VocabularyMismatch, match=f"(?s){saved} has {rows}\n.*fastdraft check demo {saved} --repair"):
        draft.check_fit(
            draft.open_draft(saved, CPU), card.model_copy(update={"vocab_rows": card.vocab_rows + 64}), saved
        )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / "model.safetensors"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "t5"})),
    ],
)
def test_the_error_names_a_damaged_draft(saved, damage):
    damage(saved)
    with pytest.raises(CardError, match=f"{saved} cannot be opened: .*\n  do: remove {saved.parent}") as error:
        draft.open_draft(saved, CPU)
    assert error.value.exit_code == 2


def test_a_draft_survives_a_kill_while_it_is_replaced(saved):
    os.rename(saved, saved.with_name("model.fastdraft-old"))
    draft.open_draft(saved, CPU)
