"""A target is opened whole, or the error says what is wrong with its folder and what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from fastdraft import target
from fastdraft.errors import TargetError, UserError, VocabularyMismatch
from fastdraft.recipe import TargetPart

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, tiny_llama) -> Path:
    """A whole target: 131 rows, 101 tokens, weights in safetensors."""
    model = tiny_llama(seed=3)
    model.save_pretrained(tmp_path / "target")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(101)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0").save_pretrained(tmp_path / "target")
    return tmp_path / "target"


def part(folder: Path, **keys: object) -> TargetPart:
    return TargetPart(path=str(folder), **keys)


def edit(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_card_says_what_a_draft_must_know(folder, tiny_llama):
    card = target.card(part(folder))
    assert (card["family"], card["vocab_rows"], card["tokenizer_tokens"]) == ("llama", 131, 101)
    assert (card["context_tokens"], card["bos_id"], card["eos_ids"], card["adds_bos"]) == (97, None, (0,), False)
    assert card["parameters"] == tiny_llama(seed=3).num_parameters()


def test_every_end_of_text_is_known(folder):
    """Chat models name the end of a turn in generation_config.json alone."""
    edit(folder / "config.json", eos_token_id=[5, 0])
    edit(folder / "generation_config.json", eos_token_id=[7, 5])
    assert target.card(part(folder))["eos_ids"] == (0, 5, 7)


def test_a_target_without_an_end_of_text(folder):
    edit(folder / "config.json", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")))
    tokenizer.save_pretrained(folder)
    with pytest.raises(TargetError, match=f"{folder} names no end-of-text token\n  do: set eos_token_id"):
        target.card(part(folder))


def test_weights_open_ready_to_answer(folder, tiny_llama):
    model = target.open_model(part(folder), CPU)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(tokens).logits, tiny_llama(seed=3)(tokens).logits)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_the_demo_is_there():
    assert (target.folder_of(TargetPart(path="demo")) / "config.json").is_file()


def test_a_real_target(stories260k):
    card = target.card(part(stories260k))
    assert (card["parameters"], card["vocab_rows"]) == (260_032, 512)
    assert target.open_model(part(stories260k), CPU).num_parameters() == 260_032


def no_causal_lm(family: str):
    def write(folder: Path) -> None:
        AutoConfig.for_model(family).save_pretrained(folder)

    return write


BROKEN_CONFIGS = {
    "gone": (lambda folder: (folder / "config.json").unlink(), "no config.json in"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json cannot be read"),
    "unknown family": (lambda folder: edit(folder / "config.json", model_type="riddle"), "config.json cannot be read"),
    "t5": (no_causal_lm("t5"), "describes a `t5`, which writes no text"),
    "bert": (no_causal_lm("bert"), "describes a `bert`, which writes no text"),
    "bart": (no_causal_lm("bart"), "describes a `bart`, which writes no text"),
    "vit": (no_causal_lm("vit"), "describes a `vit`, which writes no text"),
    "mamba": (no_causal_lm("mamba"), "of family `mamba` names no longest context"),
}


@pytest.mark.parametrize(("damage", "found"), BROKEN_CONFIGS.values(), ids=BROKEN_CONFIGS.keys())
def test_a_config_that_cannot_be_used(folder, damage, found):
    damage(folder)
    if found.startswith("of family"):
        edit(folder / "config.json", vocab_size=131)
    with pytest.raises(TargetError, match=f"(?s){found}.*\n  do: ") as caught:
        target.card(part(folder))
    assert str(folder) in str(caught.value)
    assert caught.value.exit_code == 2


def test_no_folder(tmp_path):
    with pytest.raises(TargetError, match=f"no config.json in {tmp_path}/nothing\n  do: give the folder of a model"):
        target.card(part(tmp_path / "nothing"))


def test_a_name_that_is_no_folder_and_cannot_be_fetched(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        TargetError, match=r"(?s)nobody/nothing-at-all is no local folder and cannot be fetched.*\n  do: "
    ):
        target.card(TargetPart(path="nobody/nothing-at-all"))


@pytest.mark.parametrize("content", [None, "{", "[]"], ids=["gone", "no JSON", "a list"])
def test_a_tokenizer_that_cannot_be_read(folder, content):
    (folder / "tokenizer.json").unlink() if content is None else (folder / "tokenizer.json").write_text(content)
    with pytest.raises(TargetError, match=f"(?s)no tokenizer can be read in {folder}.*wanted.*\n.*do: copy"):
        target.card(part(folder))


def test_a_tokenizer_larger_than_the_embedding(folder):
    edit(folder / "config.json", vocab_size=97)
    said = f"the tokenizer in {folder} has 101 tokens, the embedding 97 rows\n  wanted.*\n?.*do: "
    with pytest.raises(VocabularyMismatch, match=said) as caught:
        target.card(part(folder))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("suffix", target.PICKLED)
def test_pickled_weights_are_opened_only_when_asked_for(folder, suffix):
    torch.save({}, folder / f"pytorch_model{suffix}")
    target.card(part(folder))  # beside safetensors they are not read
    (folder / "model.safetensors").unlink()
    with pytest.raises(TargetError, match=rf"(?s)pickled weights only \(pytorch_model{suffix}\).*do: .*allow_pickle"):
        target.card(part(folder))
    assert target.folder_of(part(folder, allow_pickle=True)) == folder


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def without(path: Path, name: str) -> None:
    save_file({key: value for key, value in load_file(path).items() if key != name}, path, {"format": "pt"})


BROKEN_WEIGHTS = {
    "gone": (Path.unlink, "cannot be loaded"),
    "cut short": (halve, "cannot be loaded"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be loaded"),
    "no safetensors": (lambda path: path.write_bytes(b"x" * 999), "cannot be loaded"),
    "another width": (lambda path: edit(path.with_name("config.json"), intermediate_size=67), "cannot be loaded"),
    "a tensor less": (
        lambda path: without(path, "model.layers.1.mlp.up_proj.weight"),
        "lack 1 of the model's tensors, first model.layers.1.mlp.up_proj.weight",
    ),
}


@pytest.mark.parametrize(("damage", "found"), BROKEN_WEIGHTS.values(), ids=BROKEN_WEIGHTS.keys())
def test_weights_that_are_missing_or_damaged(folder, damage, found):
    """A tensor that is not there must not be made up at random."""
    damage(folder / "model.safetensors")
    with pytest.raises(TargetError, match=f"(?s)the weights in {folder} .*{found}.*\n  do: check that the download"):
        target.open_model(part(folder), CPU)
    assert issubclass(TargetError, UserError)


def test_the_digest_changes_with_every_file_that_matters(folder, tmp_path):
    before = target.digest(part(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert target.digest(part(tmp_path / "copy")) == before
    (folder / "README.md").write_text("words")
    assert target.digest(part(folder)) == before
    found = {before}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        edit(folder / name, note="another")
        found.add(target.digest(part(folder)))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert len(found | {target.digest(part(folder))}) == 6


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_built_model(tied):
    """A tied output layer is no parameter of its own: counted twice it halves what a budget buys."""
    sizes = {"hidden_size": 32, "intermediate_size": 61, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model("llama", vocab_size=131, tie_word_embeddings=tied, **sizes)
    assert target.parameters(config) == sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
