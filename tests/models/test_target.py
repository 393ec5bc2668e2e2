"""A target opens completely, or the error names what is wrong with its folder."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from fastdraft.config import TargetPart
from fastdraft.models import architecture, pretrained, target
from fastdraft.system.errors import TargetError, UserError, VocabularyMismatch
from fastdraft.system.progress import suppressed_logs

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, tiny_llama) -> Path:
    """A complete target: 131 rows, 101 tokens, weights in safetensors."""
    model = tiny_llama(seed=3)
    model.save_pretrained(tmp_path / "target")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(101)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0").save_pretrained(tmp_path / "target")
    return tmp_path / "target"


def part(folder: Path | str, **keys: object) -> TargetPart:
    return TargetPart(path=str(folder), **keys)


def edit(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_the_card_of_a_target(folder, tiny_llama):
    card = target.card(part(folder))
    assert (card["family"], card["vocab_rows"], card["tokenizer_tokens"]) == ("llama", 131, 101)
    assert (card["context_tokens"], card["bos_id"], card["eos_ids"], card["adds_bos"]) == (97, None, (0,), False)
    assert card["parameters"] == tiny_llama(seed=3).num_parameters()


@pytest.mark.parametrize(
    ("front_matter", "licence"),
    [
        ("license: llama3.1", "llama3.1"),
        ("license: other\nlicense_name: LLAMA4", "llama4"),
        ("license: other", "other"),
        ("tags: [a]", None),
        ("license: [a, b]", None),
        ("license: {", None),
    ],
)
def test_the_licence_is_that_of_the_recipe_or_of_the_readme(folder, front_matter, licence):
    assert target.card(part(folder))["licence"] is None
    (folder / "README.md").write_text(f"---\n{front_matter}\n---\n# A model\n")
    assert target.card(part(folder))["licence"] == licence
    assert target.card(part(folder, licence="gemma"))["licence"] == "gemma"


def test_the_licence_does_not_change_the_digest(folder):
    before = pretrained.digest(part(folder))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert pretrained.digest(part(folder, licence="gemma")) == before


def test_all_end_of_text_ids_are_found(folder):
    """Chat models name the end of a turn only in generation_config.json."""
    edit(folder / "config.json", eos_token_id=[5, 0])
    edit(folder / "generation_config.json", eos_token_id=[7, 5])
    assert target.card(part(folder))["eos_ids"] == (0, 5, 7)


def test_an_end_of_text_beyond_the_rows(folder):
    edit(folder / "generation_config.json", eos_token_id=[7, 131])
    with pytest.raises(TargetError, match=r"states 131 as an end-of-text id\n  wanted: an id below its 131 rows"):
        target.card(part(folder))


@pytest.mark.parametrize("eos", ["</s>", 0.5, -1, True, [0, None, "x"]])
def test_an_end_of_text_that_is_no_id(folder, eos):
    edit(folder / "generation_config.json", eos_token_id=eos)
    with pytest.raises(TargetError, match=f"{folder}/generation_config.json: eos_token_id is .*\n  wanted: a token id"):
        target.card(part(folder))


def test_a_target_without_an_end_of_text(folder):
    edit(folder / "config.json", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")))
    tokenizer.save_pretrained(folder)
    with pytest.raises(TargetError, match=f"{folder} has no end-of-text token\n  do: set eos_token_id"):
        target.card(part(folder))


def test_a_model_opens_in_eval_mode_without_gradients(folder, tiny_llama):
    model = pretrained.open_model(part(folder), CPU)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(tokens).logits, tiny_llama(seed=3)(tokens).logits)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_the_demo_target_is_packaged():
    assert (pretrained.folder_of(TargetPart(path="demo")) / "config.json").is_file()


def test_a_real_target(stories260k):
    card = target.card(part(stories260k))
    assert (card["parameters"], card["vocab_rows"]) == (260_032, 512)
    assert pretrained.open_model(part(stories260k), CPU).num_parameters() == 260_032


def no_causal_lm(family: str):
    def write(folder: Path) -> None:
        AutoConfig.for_model(family).save_pretrained(folder)

    return write


BROKEN_CONFIGS = {
    "gone": (lambda folder: (folder / "config.json").unlink(), "no config.json in"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json cannot be read"),
    "no family": (lambda folder: edit(folder / "config.json", model_type=None), "config.json: model_type is None"),
    "unknown family": (
        lambda folder: edit(folder / "config.json", model_type="riddle"),
        r"is of family `riddle`, which transformers [\d.]+ cannot run\n  wanted: a family",
    ),
    "unknown encoder": (
        lambda folder: edit(folder / "config.json", model_type="riddle", architectures=["RiddleForMaskedLM"]),
        "describes a `riddle`, which does not generate",
    ),
    "unknown encoder and decoder": (
        lambda folder: edit(folder / "config.json", model_type="riddle", is_encoder_decoder=True),
        "describes a `riddle`, which does not generate",
    ),
    "whisper": (no_causal_lm("whisper"), "describes a `whisper`, which does not generate"),
    "clip": (no_causal_lm("clip"), "describes a `clip`, which does not generate"),
    "t5": (no_causal_lm("t5"), "describes a `t5`, which does not generate"),
    "bert": (no_causal_lm("bert"), "describes a `bert`, which does not generate"),
    "bart": (no_causal_lm("bart"), "describes a `bart`, which does not generate"),
    "vit": (no_causal_lm("vit"), "describes a `vit`, which does not generate"),
    "mamba": (no_causal_lm("mamba"), "of family `mamba` does not state a context length"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN_CONFIGS.values(), ids=BROKEN_CONFIGS.keys())
def test_a_config_that_cannot_be_used(folder, damage, message):
    damage(folder)
    if message.startswith("of family"):
        edit(folder / "config.json", vocab_size=131)
    with pytest.raises(TargetError, match=f"(?s){message}.*\n  do: ") as caught:
        target.card(part(folder))
    assert str(folder) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_configuration_alone_is_enough_to_plan(folder, tmp_path, tiny_llama):
    """A config.json, or its folder, without weights and tokenizer."""
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(folder / "config.json", bare)
    for path in (bare, bare / "config.json"):
        assert pretrained.folder_of(part(path)) == bare
        assert architecture.parameters(pretrained.open_config(part(path))) == tiny_llama(seed=3).num_parameters()
    with pytest.raises(TargetError, match=f"(?s)tokenizer .*{bare}\\b.*wanted: tokenizer.json.*do: copy"):
        target.card(part(bare / "config.json"))
    with pytest.raises(TargetError, match="no config.json in .*model.safetensors\n  do: give the folder"):
        pretrained.open_config(part(folder / "model.safetensors"))


def test_the_configuration_of_an_unknown_family_opens(folder):
    edit(folder / "config.json", model_type="riddle", text_config={"model_type": "qwen3", "vocab_size": 97})
    config = pretrained.open_config(part(folder))
    assert (config.model_type, config.vocab_size) == ("riddle", 131)
    assert (type(config.get_text_config()).__name__, config.get_text_config().vocab_size) == ("Qwen3Config", 97)


VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
MULTIMODAL = {
    "llava": {"text_config": {"model_type": "llama"}, "vision_config": VISION | {"image_size": 28, "patch_size": 14}},
    "qwen2_5_vl": {
        "text_config": {"model_type": "qwen2_5_vl_text"},
        "vision_config": {
            "depth": 1,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": 32,
        },
    },
}


@pytest.mark.parametrize("family", MULTIMODAL)
def test_a_multimodal_target_opens_for_text(folder, family):
    """Its text part gives the rows; the parameters are those of the whole model."""
    sizes = {"vocab_size": 131, "hidden_size": 32, "intermediate_size": 61, "num_hidden_layers": 2, "pad_token_id": 0}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 97, "eos_token_id": 0}
    sizes |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    values = MULTIMODAL[family] | {"image_token_id": 130}
    values["text_config"] = values["text_config"] | sizes
    config = AutoConfig.for_model(family, **values)
    architecture.class_of(config).from_config(config).save_pretrained(folder)
    card, model = target.card(part(folder)), pretrained.open_model(part(folder), CPU)
    assert (card["vocab_rows"], card["family"]) == (131, values["text_config"]["model_type"])
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 131)


@pytest.mark.parametrize("place", ["loop", "./loop", "nowhere"])
def test_a_link_that_leads_nowhere(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("nowhere").symlink_to("nothing")
    with pytest.raises(TargetError, match="is a link to .*\n  do: correct the link"):
        target.card(part(place))


def test_no_folder(tmp_path):
    with pytest.raises(TargetError, match=f"no config.json in {tmp_path}/nothing\n  do: give the folder of a model"):
        target.card(part(tmp_path / "nothing"))


@pytest.mark.parametrize("content", [None, "{", "[]"], ids=["gone", "no JSON", "a list"])
def test_a_tokenizer_that_cannot_be_read(folder, content):
    (folder / "tokenizer.json").unlink() if content is None else (folder / "tokenizer.json").write_text(content)
    with pytest.raises(TargetError, match=f"(?s)no tokenizer can be read in {folder}.*wanted.*\n.*do: copy"):
        target.card(part(folder))


def test_the_regex_warning_is_shown_only_for_mistral_families(folder, transformers_log):
    """transformers warns about every large tokenizer if the configuration names no version."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(100_003)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0").save_pretrained(folder)
    for family, warnings in (("qwen2", 0), ("mistral", 1)):
        edit(folder / "config.json", model_type=family, transformers_version=None)
        pretrained.open_tokenizer(part(folder))
        assert sum("incorrect regex pattern" in line for line in transformers_log) == warnings


def test_only_the_given_log_lines_are_suppressed(transformers_log):
    log = logging.getLogger("transformers.here")
    with suppressed_logs("transformers", "wolf", "river 7"):
        log.warning("a wolf")
        log.warning("river %d", 7)
        log.warning("river 11")
    log.warning("a wolf again")
    assert transformers_log == ["river 11", "a wolf again"]


def test_a_tokenizer_larger_than_the_embedding(folder):
    edit(folder / "config.json", vocab_size=97)
    message = (
        f"the tokenizer in {folder} has 101 tokens, the embedding 97 rows; 4 of them without a row, "
        r"first 'w97' \(id 97\)\n  wanted.*\n?.*do: "
    )
    with pytest.raises(VocabularyMismatch, match=message) as caught:
        target.card(part(folder))
    assert caught.value.exit_code == 2


def test_a_tokenizer_that_adds_tokens_beyond_the_rows(folder):
    """The padding has room for some; the error names the first that has no row."""
    tokenizer = pretrained.open_tokenizer(part(folder))
    tokenizer.add_tokens([f"<{number}>" for number in range(30)])
    tokenizer.save_pretrained(folder)
    assert target.card(part(folder))["tokenizer_tokens"] == 131
    tokenizer.add_tokens(["<30>", "<31>"])
    tokenizer.save_pretrained(folder)
    message = (
        r"has 133 tokens, the embedding 131 rows; 2 of them added to it, first '<30>' \(id 131\)\n  wanted.*\n?.*do: "
    )
    with pytest.raises(VocabularyMismatch, match=message):
        target.card(part(folder))


@pytest.mark.parametrize("suffix", pretrained.PICKLED)
def test_pickled_weights_need_allow_pickle(folder, suffix):
    torch.save({}, folder / f"pytorch_model{suffix}")
    target.card(part(folder))  # next to safetensors they are not read
    (folder / "model.safetensors").unlink()
    with pytest.raises(TargetError, match=rf"(?s)pickled weights only \(pytorch_model{suffix}\).*do: .*allow_pickle"):
        target.card(part(folder))
    assert pretrained.folder_of(part(folder, allow_pickle=True)) == folder


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def without(path: Path, name: str) -> None:
    save_file({key: value for key, value in load_file(path).items() if key != name}, path, {"format": "pt"})


def stored_as(path: Path, name: str, change) -> None:
    save_file({key: change(value) if key == name else value for key, value in load_file(path).items()}, path)


BROKEN_WEIGHTS = {
    "gone": (Path.unlink, "cannot be loaded"),
    "cut short": (halve, "model.safetensors cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "model.safetensors cannot be read"),
    "no safetensors": (lambda path: path.write_bytes(b"x" * 999), "model.safetensors cannot be read"),
    "another width": (lambda path: edit(path.with_name("config.json"), intermediate_size=67), r"\(61, 32\)|\(32, 61\)"),
    "another shape": (
        lambda path: stored_as(path, "model.norm.weight", lambda weight: weight.reshape(4, 8)),
        r"another shape .*first model.norm.weight \(4, 8\)\n  wanted: \(32,\)",
    ),
    "a tensor less": (
        lambda path: without(path, "model.layers.1.mlp.up_proj.weight"),
        "lack 1 of the model's tensors, first model.layers.1.mlp.up_proj.weight",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN_WEIGHTS.values(), ids=BROKEN_WEIGHTS.keys())
def test_weights_that_are_missing_or_damaged(folder, damage, message):
    """A missing tensor must not be initialised at random."""
    damage(folder / "model.safetensors")
    with pytest.raises(TargetError, match=f"(?s)the .*{folder}.*{message}.*\n  do: check that the download"):
        pretrained.open_model(part(folder), CPU)
    assert issubclass(TargetError, UserError)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_weights_stored_as_whole_numbers_are_refused(folder, dtype):
    """transformers converts them to floats: a model of zeros and ones, without a word."""
    stored_as(folder / "model.safetensors", "model.layers.0.mlp.up_proj.weight", lambda weight: weight.to(dtype))
    with pytest.raises(TargetError, match=r"stores model.layers.0.mlp.up_proj.weight as .*\n  wanted: F16"):
        pretrained.open_model(part(folder), CPU)


def test_the_digest_depends_on_configuration_tokenizer_and_weights(folder, tmp_path):
    before = pretrained.digest(part(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert pretrained.digest(part(tmp_path / "copy")) == before
    (folder / "README.md").write_text("words")
    assert pretrained.digest(part(folder)) == before
    digests = {before}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        edit(folder / name, note="another")
        digests.add(pretrained.digest(part(folder)))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert len(digests | {pretrained.digest(part(folder))}) == 6


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_built_model(tied):
    """A tied output layer counts once: counted twice, it would halve the draft that fits a budget."""
    sizes = {"hidden_size": 32, "intermediate_size": 61, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model("llama", vocab_size=131, tie_word_embeddings=tied, **sizes)
    assert architecture.parameters(config) == sum(
        p.numel() for p in AutoModelForCausalLM.from_config(config).parameters()
    )


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_by_kind(tied):
    sizes = {"hidden_size": 32, "intermediate_size": 61, "num_hidden_layers": 3, "num_attention_heads": 4}
    counts = architecture.counts(AutoConfig.for_model("llama", vocab_size=131, tie_word_embeddings=tied, **sizes))
    assert (counts.embedding, counts.output, counts.tied, counts.experts) == (131 * 32, 131 * 32, tied, 0)
    experts = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 7}
    counts = architecture.counts(AutoConfig.for_model("qwen3_moe", vocab_size=131, pad_token_id=0, **sizes, **experts))
    assert counts.experts == 3 * 5 * 3 * 32 * 7
