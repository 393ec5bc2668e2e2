"""GGUF files say what the draft says: weight for weight by the package's own reader, token for token in llama.cpp."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fastdraft.config import TargetPart
from fastdraft.exporters.export_draft import ExportOptions, export
from fastdraft.exporters.gguf import export_gguf, file_name, open_gguf
from fastdraft.exporters.gguf_families import family_of, interleaved, tensors
from fastdraft.exporters.proof import material, prove
from fastdraft.models.pretrained import folder_of, load, open_tokenizer
from fastdraft.models.token_bytes import PROBES
from fastdraft.results.export import ExportCard
from fastdraft.system.cards import read_card
from fastdraft.system.errors import DiskFull, ExportError
from fastdraft.system.files import atomic_write

LLAMA_CPP = pytest.mark.engine("llama_cpp")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def read(folder: Path, weights: str):
    """(keys, tensors by name) of an exported file."""
    reader = gguf.GGUFReader(folder / file_name(weights))
    return {key: field.contents() for key, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


def config_of(**more: object):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "num_hidden_layers": 1}
    return AutoConfig.for_model(**{"model_type": "llama"} | sizes | more)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_in_the_file(draft_of, tmp_path, family):
    """As many numbers as the draft has, their sum of squares, and nothing twice."""
    folder = draft_of(family)
    assert export_gguf(folder, tmp_path, "f32") == []
    keys, found = read(tmp_path, "f32")
    weights = load_file(folder / "model.safetensors")
    assert sum(t.n_elements for t in found.values()) == sum(weight.numel() for weight in weights.values())
    squares = [
        sum(float((np.asarray(t, np.float64) ** 2).sum()) for t in side)
        for side in ([t.data for t in found.values()], weights.values())
    ]
    assert squares[0] == pytest.approx(squares[1], rel=1e-6)
    assert "output.weight" not in found
    assert keys["general.architecture"] == {"mistral": "llama"}.get(family, family)
    assert np.array_equal(found["token_embd.weight"].data, weights["model.embed_tokens.weight"].numpy())
    assert (keys["tokenizer.ggml.pre"], keys["tokenizer.ggml.eos_token_id"]) == ("qwen2", 0)
    assert (keys["tokenizer.ggml.add_bos_token"], keys["tokenizer.ggml.add_eos_token"]) == (False, False)


def test_what_is_turned_together_becomes_neighbours():
    """Row 2j of a head was j, row 2j + 1 was j + d/2."""
    heads, size = 3, 10
    rows = interleaved(torch.arange(heads * size), heads)
    for head in range(heads):
        for j in range(size // 2):
            assert rows[head * size + 2 * j] == head * size + j
            assert rows[head * size + 2 * j + 1] == head * size + j + size // 2


def test_only_llama_is_turned(draft_of):
    for family, is_turned in (("llama", True), ("qwen3", False)):
        model = load(draft_of(family), torch.float32)
        weights = model.state_dict()
        named = dict(tensors(model.config, family_of(model.config), weights))
        key = weights["model.layers.1.self_attn.k_proj.weight"]
        assert torch.equal(named["blk.1.attn_k.weight"], interleaved(key, 2) if is_turned else key)
        assert torch.equal(named["blk.1.attn_v.weight"], weights["model.layers.1.self_attn.v_proj.weight"])


def test_an_output_layer_of_its_own_is_written(draft_of, tmp_path):
    export_gguf(draft_of(tie_word_embeddings=False), tmp_path, "f16")
    assert read(tmp_path, "f16")[1]["output.weight"].tensor_type.name == "F16"


@pytest.mark.parametrize(("weights", "steps"), [("q8_0", 255), ("q4_0", 15)])
def test_quantised_weights_are_within_half_a_step(draft_of, tmp_path, weights, steps):
    folder = draft_of()
    assert export_gguf(folder, tmp_path, weights) == []
    _, found = read(tmp_path, weights)
    exact = load_file(folder / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].numpy()
    down = found["blk.0.ffn_down.weight"]
    assert down.tensor_type.name == weights.upper()
    near = gguf.quants.dequantize(down.data, down.tensor_type).reshape(exact.shape)
    span = np.repeat(np.abs(exact).reshape(len(exact), -1, 32).max(-1) * 2, 32, axis=1)
    assert np.abs(near - exact).max() > 0
    # q4_0's sixteen steps reach from -8 to 7: the largest value of the other sign is cut by a whole one.
    assert (np.abs(near - exact) <= span / steps * (1.2 if weights == "q4_0" else 0.55)).all()
    assert found["token_embd.weight"].tensor_type.name == "Q8_0"
    assert found["output_norm.weight"].tensor_type.name == "F32"


def test_rows_that_blocks_do_not_divide_stay_f16(draft_of, tmp_path):
    (said,) = export_gguf(draft_of(intermediate_size=150), tmp_path, "q8_0")
    assert said.startswith("2 of [96, 150] stay f16: rows of 150 are no multiple of the 32")
    kinds = {name: tensor.tensor_type.name for name, tensor in read(tmp_path, "q8_0")[1].items()}
    assert [name for name, kind in kinds.items() if kind == "F16"] == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]


def test_a_weight_beyond_half_precision(draft_of, tmp_path):
    folder = draft_of()
    model = load(folder, torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = 7e4
    model.save_pretrained(folder)
    with pytest.raises(ExportError, match="blk.0.ffn_up.weight holds 7e\\+04, .*\n  do: --weights f32"):
        export_gguf(folder, tmp_path, "q8_0")
    export_gguf(folder, tmp_path, "f32")


def test_a_full_disk(draft_of, tmp_path, full_disk):
    """numpy writes the weights, and does not say why it could not."""
    folder = draft_of()
    with full_disk(), pytest.raises(DiskFull, match="no space left while"), atomic_write(tmp_path / "out") as part:
        export_gguf(folder, part, "q8_0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gemma2"}, "a `gemma2` cannot be written as GGUF"),
        ({"model_type": "qwen2", "head_dim": 32}, "4 heads of 32 in a width of 64"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "of type dynamic"),
        ({"model_type": "qwen3", "rope_parameters": LLAMA3}, "qwen3 has no rotary positions of type llama3"),
    ],
)
def test_what_llama_cpp_cannot_run(config, said):
    with pytest.raises(ExportError, match=rf"{said}[\s\S]*\n  do: "):
        family_of(config_of(**config))


def test_llama_3s_factors_are_those_of_transformers():
    """What llama.cpp divides a frequency by, over transformers' own scaled frequencies."""
    config = config_of(rope_parameters=LLAMA3, max_position_embeddings=512, tie_word_embeddings=True)
    ((name, factors),) = tensors(config, family_of(config), {})
    plain = 1 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    assert name == "rope_freqs.weight"
    assert len(set(factors.tolist())) >= 3
    torch.testing.assert_close(plain / factors, scaled)


def test_scaled_positions_are_named(draft_of, tmp_path):
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    export_gguf(draft_of("qwen2", rope_parameters=rope), tmp_path, "f16")
    keys, _ = read(tmp_path, "f16")
    found = {key.removeprefix("qwen2.rope.scaling."): value for key, value in keys.items() if ".scaling." in key}
    assert found == {"type": "yarn", "factor": 4.0, "original_context_length": 64}


def test_a_window_is_reported_of(draft_of, tmp_path):
    (said,) = export_gguf(draft_of("mistral", sliding_window=100), tmp_path, "f16")
    assert "texts longer than 100 tokens may differ" in said


def opened(folder: Path, to: Path, weights: str):
    """(the draft, its export in llama.cpp, what it is tried on)"""
    export_gguf(folder, to, weights)
    original = load(folder, torch.float32).eval()
    tried = material(open_tokenizer(TargetPart(path=str(folder))), PROBES, [], 256)
    # Half of the time of a proof is transformers': 3.6 ms a token. `export` itself is tested with all prompts.
    tried = tried._replace(prompts=tried.prompts[::3])
    return original, open_gguf(to, tried.longest_tokens), tried


VARIANTS = {
    **{family: {"family": family} for family in FAMILIES},
    "llama, biases": {"attention_bias": True},
    "llama, untied": {"tie_word_embeddings": False},
    "llama, llama3 positions": {"rope_parameters": LLAMA3},
    "llama, linear positions": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    "llama, wide heads": {"head_dim": 32},
    "qwen2, yarn positions": {
        "family": "qwen2",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}


@LLAMA_CPP
@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_writes_what_the_draft_writes(draft_of, tmp_path, variant):
    proof = prove(*opened(draft_of(**VARIANTS[variant]), tmp_path, "f32"))
    assert proof.equal_prompts == proof.prompts >= 5
    assert proof.agreeing_tokens == proof.tokens
    assert proof.unlike_texts == ()


@LLAMA_CPP
def test_a_sentencepiece_tokenizer_cuts_alike(spoken, tmp_path):
    proof = prove(*opened(spoken, tmp_path, "f32"))
    assert proof.equal_prompts == proof.prompts
    assert proof.unlike_texts == ()


def accepts(target: Path, draft: Path) -> bool:
    """common_speculative_are_compatible of llama.cpp (common/speculative.cpp), asked of the library itself."""
    import llama_cpp

    models = [llama_cpp.Llama(str(path), vocab_only=True, verbose=False) for path in (target, draft)]
    vocabs = [llama_cpp.llama_model_get_vocab(model._model.model) for model in models]
    types = {llama_cpp.llama_vocab_type(vocab) for vocab in vocabs}
    adds = [(llama_cpp.llama_vocab_get_add_bos(vocab), llama_cpp.llama_vocab_get_add_eos(vocab)) for vocab in vocabs]
    sizes = [llama_cpp.llama_vocab_n_tokens(vocab) for vocab in vocabs]
    texts = [[llama_cpp.llama_vocab_get_text(vocab, number) for number in range(5, min(sizes))] for vocab in vocabs]
    return len(types) == 1 and adds[0] == adds[1] and abs(sizes[0] - sizes[1]) <= 128 and texts[0] == texts[1]


@LLAMA_CPP
def test_llama_cpp_takes_the_draft(draft_of, spoken, tmp_path):
    """The packaged target's own file beside its draft's; a model of another vocabulary is refused."""
    for name, folder in (("target", folder_of(TargetPart(path="demo"))), ("draft", draft_of()), ("other", spoken)):
        export_gguf(folder, tmp_path / name, "q8_0")
    target, draft, other = (tmp_path / name / file_name("q8_0") for name in ("target", "draft", "other"))
    assert accepts(target, draft)
    assert not accepts(target, other)


@LLAMA_CPP
def test_it_is_exported_over(draft_of, tmp_path):
    """The command's whole way: the rule, the file, its proof, the model card."""
    options = ExportOptions(draft_of(), "gguf", "f32", TargetPart(path="demo"), tmp_path / "out")
    folder, card = export(options)
    assert set(card.files) == {"draft-f32.gguf"}
    assert card.proof.equal_prompts == card.proof.prompts
    assert [accepted.engine.partition(",")[0] for accepted in card.accepted] == ["llama.cpp"]
    assert "library_name: gguf" in (folder / "README.md").read_text()


@LLAMA_CPP
def test_weights_that_are_not_turned_are_seen(draft_of, tmp_path, monkeypatch):
    """The proof can fail: rotary positions on rows in transformers' order."""
    monkeypatch.setattr("fastdraft.exporters.gguf_families.interleaved", lambda weight, _: weight)
    proof = prove(*opened(draft_of(), tmp_path, "f32"))
    assert proof.equal_prompts < proof.prompts
    assert proof.agreement < 0.9
    assert proof.widest_gap > 0.1


@LLAMA_CPP
@pytest.mark.parametrize(("weights", "least"), [("q8_0", 0.97), ("q4_0", 0.8)])
def test_rounded_weights_are_proved_in_llama_cpp(tmp_path, weights, least):
    """The packaged draft, by the command: llama.cpp ends the process where it cannot run on a processor."""
    command = [
        sys.executable,
        "-m",
        "fastdraft",
        "export",
        str(files("fastdraft") / "demo" / "draft"),
        "--target",
        "demo",
    ]
    command += ["--format", "gguf", "--weights", weights, "--out", str(tmp_path / "out"), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, f"{ran.returncode}: {ran.stderr}"
    proof = read_card(tmp_path / "out", ExportCard).proof
    assert proof.prompts == 16
    assert least < proof.agreement < 1
