"""A GGUF file is a model like any other: what the export wrote is opened again, with the same logits and ids."""

import random
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from fastdraft.exporters.gguf import export_gguf, open_gguf
from fastdraft.models import model_files, pretrained
from fastdraft.models.gguf_file import copy_keys
from fastdraft.models.gguf_pre_tokenizers import PRE_TOKENIZERS, SAME_AS, definition_of, name_of, steps_of
from fastdraft.models.token_bytes import PROBES
from fastdraft.system.errors import TargetError

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.0 + i / 8 for i in range(8)],
    "short_factor": [1.0 + i / 16 for i in range(8)],
    "original_max_position_embeddings": 128,
}
VARIANTS = {
    "llama": {},
    "untied": {"tie_word_embeddings": False},
    "llama3": {"max_position_embeddings": 32768, "rope_parameters": LLAMA3},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0}},
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "longrope": {"rope_parameters": LONGROPE},
}
FAMILY = {"untied": "llama", "llama3": "llama", "yarn": "llama", "longrope": "phi3"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The user's cache, in the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastdraft" / "gguf"


def exported(folder: Path, destination: Path, weights: str = "f32") -> Path:
    export_gguf(folder, destination, weights)
    (file,) = destination.glob("*.gguf")
    return file


def changed(file: Path, destination: Path, keys: dict[str, object], parts: int = 0) -> Path:
    """A copy of a GGUF file with other keys (None removes one), or in parts of that many tensors."""
    reader = gguf.GGUFReader(file)
    architecture = keys.pop("general.architecture", reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(destination, architecture, split_max_tensors=parts)
    with closing(writer):
        copy_keys(reader, writer, lambda key: key not in keys)
        for key, value in keys.items():
            if value is not None:
                writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data.copy(), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return destination


def logits(folder: Path) -> torch.Tensor:
    ids = torch.arange(2, 402, 5)[None] % 401
    return pretrained.open_model(folder, "cpu")(ids).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_that_is_opened_is_the_model_that_was_written(draft_of, tmp_path, variant):
    folder = draft_of(FAMILY.get(variant, variant), **VARIANTS[variant])
    opened = pretrained.folder_of(str(exported(folder, tmp_path)))
    torch.testing.assert_close(logits(opened), logits(folder), atol=2e-4, rtol=2e-4)
    first, second = (model_files.read(path) for path in (folder, opened))
    assert second.id_bytes == first.id_bytes
    assert (second.eos_ids, second.context_tokens()) == (first.eos_ids, first.context_tokens())
    assert [second.tokenizer(text).input_ids for text in PROBES] == [first.tokenizer(text).input_ids for text in PROBES]


@pytest.mark.parametrize("weights", ["q8_0", "q4_0"])
def test_the_weights_are_those_of_the_file_dequantised(draft_of, tmp_path, weights):
    """In half precision, which holds them within 2^-11 of their size."""
    file = exported(draft_of(), tmp_path, weights)
    opened = pretrained.load(file, torch.float32).state_dict()
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for name, weight in (("token_embd", "embed_tokens"), ("blk.1.ffn_down", "layers.1.mlp.down_proj")):
        tensor = stored[f"{name}.weight"]
        expected = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        torch.testing.assert_close(opened[f"model.{weight}.weight"], expected, rtol=2**-11, atol=1e-7)


def test_a_sentencepiece_tokenizer_gives_the_same_ids(spoken, tmp_path):
    opened = pretrained.folder_of(exported(spoken, tmp_path))
    before, after = (pretrained.open_tokenizer(folder) for folder in (spoken, opened))
    for text in PROBES:
        ids = before(text, add_special_tokens=False).input_ids
        assert after(text, add_special_tokens=False).input_ids == ids, text
        assert after.decode(ids) == before.decode(ids)


def test_the_header_alone_gives_configuration_and_tokenizer(draft_of, tmp_path, cache):
    file = exported(draft_of(), tmp_path)
    folder = pretrained.folder_of(file, weights=False)
    assert pretrained.open_config(file).num_hidden_layers == 2
    assert len(pretrained.open_tokenizer(file)) == 8192
    assert not list(folder.glob("*.safetensors"))
    whole = pretrained.folder_of(file)
    assert sorted(path.name for path in cache.iterdir()) == sorted([folder.name, whole.name])
    assert pretrained.folder_of(file, weights=False) == whole


def test_a_file_with_other_content_has_another_folder(draft_of, tmp_path):
    file = exported(draft_of(), tmp_path)
    before = pretrained.folder_of(file, weights=False)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert pretrained.folder_of(file, weights=False) != before


def test_all_parts_of_a_split_file_are_read(draft_of, tmp_path):
    folder = draft_of()
    whole = exported(folder, tmp_path)
    changed(whole, tmp_path / "split.gguf", {}, parts=7)
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) > 2
    torch.testing.assert_close(logits(pretrained.folder_of(parts[0])), logits(pretrained.folder_of(whole)))
    parts[1].unlink()
    with pytest.raises(TargetError, match=parts[1].name):
        pretrained.folder_of(parts[0])


def test_an_exported_draft_takes_over_the_keys_of_the_targets_tokenizer(draft_of, tmp_path):
    """Byte for byte, tokens without an id in tokenizer.json included."""
    file = changed(
        exported(draft_of(), tmp_path / "first"),
        tmp_path / "target.gguf",
        {"tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.add_bos_token": None},
    )
    again = exported(pretrained.folder_of(file), tmp_path / "second")
    first, second = (
        {key: bytes(b"".join(part.tobytes() for part in field.parts)) for key, field in reader.fields.items()}
        for reader in (gguf.GGUFReader(file), gguf.GGUFReader(again))
    )
    keys = {key for key in first if key.startswith("tokenizer.")}
    assert {key: second[key] for key in second if key.startswith("tokenizer.")} == {key: first[key] for key in keys}


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"tokenizer.ggml.pre": "unheard-of"}, "unheard-of"),
        ({"tokenizer.ggml.pre": None}, "not named"),
        ({"tokenizer.ggml.model": "bert"}, "bert"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens"),
        ({"general.architecture": "bert"}, "bert"),
        ({"general.architecture": "t5encoder"}, "t5"),
        ({"llama.rope.scaling.type": "odd"}, "odd"),
        ({"llama.attention.head_count": 5}, "head"),
    ],
)
def test_a_file_that_is_no_target_is_refused_by_what_it_has(draft_of, tmp_path, cache, keys, named):
    file = changed(exported(draft_of(), tmp_path), tmp_path / "other.gguf", dict(keys))
    with pytest.raises(TargetError, match=named):
        pretrained.folder_of(file)
        pretrained.open_config(file)
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize("damage", ["empty", "text", "magic", "version", "header", "weights", "type"])
def test_a_damaged_file_leaves_nothing_in_the_cache(draft_of, tmp_path, cache, damage):
    file = exported(draft_of(), tmp_path)
    content = bytearray(file.read_bytes())
    if damage in ("header", "weights"):
        del content[1000 if damage == "header" else -1000 :]
    elif damage == "version":
        content[4] = 1
    elif damage == "type":
        place = content.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 2 * 8
        content[place] = 250
    else:
        content = bytearray({"empty": b"", "text": b"a text", "magic": b"XXXX" + content[4:]}[damage])
    file.write_bytes(content)
    with pytest.raises(TargetError, match=file.name):
        pretrained.folder_of(file)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_tensor_that_has_no_place_in_the_model_is_not_left_out(draft_of, tmp_path):
    """transformers reads a Llama without biases, whatever the file holds."""
    file = exported(draft_of("qwen2"), tmp_path)
    reader = gguf.GGUFReader(file)
    assert any(tensor.name.endswith("attn_q.bias") for tensor in reader.tensors)
    keys = {
        f"llama.{key.partition('.')[2]}": field.contents() for key, field in reader.fields.items() if "qwen2." in key
    }
    with pytest.raises(TargetError, match="weights"):
        pretrained.folder_of(changed(file, tmp_path / "llama.gguf", {"general.architecture": "llama", **keys}))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TargetError, match="nowhere.gguf"):
        pretrained.folder_of(str(tmp_path / "nowhere.gguf"))


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_the_steps_of_a_pre_tokenizer_name_it(name):
    steps = tuple(steps_of(definition_of(PRE_TOKENIZERS[name].steps)))
    assert steps == PRE_TOKENIZERS[name].steps
    assert name_of(steps, PRE_TOKENIZERS[name].ignore_merges) == name


def test_every_other_name_stands_for_a_known_one():
    assert set(SAME_AS.values()) <= PRE_TOKENIZERS.keys()
    assert not SAME_AS.keys() & PRE_TOKENIZERS.keys()


PIECES = (
    *(
        "word",
        "Word",
        "WORD",
        "camelCase",
        "don't",
        "I'LL",
        "x'y",
        "naïve",
        "Straße",
        "слово",
        "МИР",
        "日本語",
        "中文字",
    ),
    *("한국어", "العربية", "हिन्दी", "ไทย", "😀", "👩‍👩‍👧", "é", "e\u0301", "ǅ", "ªº", "²³", "½", "٣", "Ⅳ"),
    *("1", "22", "333", "4444", "1234567", "0x1F", "3.14", "1,000"),
    *(" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\n ", "\u00a0", "\u3000", "\u2028"),
    *(
        ".",
        ",",
        "...",
        "!?",
        "(",
        ")",
        "[]",
        "{}",
        "==",
        "!=",
        "->",
        "//",
        "/",
        "\\",
        "#",
        "$",
        "€",
        "—",
        "“",
        "”",
        "_",
    ),
    *("<|im_start|>", "<s>", "</s>", "<|", "|>", "'", "`", "~", "\u200b", "\ufeff"),
)


def probe_texts(count: int) -> list[str]:
    """Texts of one to twelve pieces that pre-tokenizers treat differently."""
    rng = random.Random(23)
    return ["".join(rng.choices(PIECES, k=rng.randint(1, 12))) for _ in range(count)]


@pytest.mark.engine("llama_cpp")
@pytest.mark.parametrize("name", [*PRE_TOKENIZERS, *SAME_AS])
def test_llama_cpp_gives_the_same_ids(draft_of, tmp_path, name):
    import llama_cpp

    file = changed(exported(draft_of(), tmp_path), tmp_path / "other.gguf", {"tokenizer.ggml.pre": name})
    tokenizer = pretrained.open_tokenizer(file)
    engine = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    for text in (*PROBES, *probe_texts(1000 if name in PRE_TOKENIZERS else 100)):
        assert tokenizer(text).input_ids == engine.tokenize(text.encode(), add_bos=True, special=True), text


@pytest.mark.engine("llama_cpp")
def test_the_dequantised_model_is_the_one_that_llama_cpp_runs(draft_of, tmp_path):
    """llama.cpp also rounds activations, to 8 bits, which changes the logits of this random model by 6 %."""
    folder = draft_of()
    file, ids = exported(folder, tmp_path, "q4_0"), np.arange(2, 402, 5) % 401
    actual = open_gguf(tmp_path, len(ids)).logits(ids)
    dequantised, original = (logits(each)[0] for each in (pretrained.folder_of(file), folder))
    assert float((actual - dequantised).norm() / dequantised.norm()) < 0.1
    assert float((actual - dequantised).norm() / (actual - original).norm()) < 0.5
