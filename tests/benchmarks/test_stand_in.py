"""A stand-in writes what the small model writes, and says that it is one."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from fastdraft.config import TargetPart
from fastdraft.models import pretrained
from fastdraft.system.errors import RunError, ShapeError

# fp32 sums in another order, logits up to 10: 2.4e-5 on an Intel Xeon, less on an AMD EPYC; a wrong weight: over 1e-3.
SAME = 3e-5
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "stand_in.py"


@pytest.fixture(scope="module")
def stand_in():
    spec = importlib.util.spec_from_file_location("stand_in", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(tied: bool, **more) -> LlamaForCausalLM:
    sizes = {"vocab_size": 131, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4}
    config = LlamaConfig(**sizes | heads | {"tie_word_embeddings": tied, "initializer_range": 0.3} | more)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = LlamaForCausalLM(config).eval()
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("width", "layers", "head_size"), [(24, 5, 4), (72, 2, 4), (24, 2, 12), (96, 7, 8)])
def test_it_is_the_same_function(stand_in, tied, width, layers, head_size):
    """Deeper, wider, with wider heads, and all of it; logits are up to 10 here."""
    model = small(tied)
    grown = stand_in.grow(model, stand_in.Growth(width, layers, head_size))
    config = grown.config
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (width, layers, head_size)
    assert (grown.get_output_embeddings().weight is grown.get_input_embeddings().weight) == tied
    assert config.tie_word_embeddings == tied
    assert stand_in.largest_difference(model, grown) < SAME
    assert grown.num_parameters() > model.num_parameters()


def test_the_difference_sees_a_wrong_weight(stand_in):
    model = small(True)
    grown = stand_in.grow(model, stand_in.Growth(48, 3, 4))
    with torch.no_grad():
        grown.model.layers[0].self_attn.q_proj.weight[0] *= 1.1
    assert stand_in.largest_difference(model, grown) > 1e-3


def test_new_layers_are_computed(stand_in):
    """Nothing for an engine to skip: of a new layer's matrices only the two that write are zero."""
    grown = stand_in.grow(small(True), stand_in.Growth(48, 3, 4))
    zero = [name for name, weight in grown.model.layers[2].named_parameters() if not weight.any()]
    assert zero == ["self_attn.o_proj.weight", "mlp.down_proj.weight"]


def test_it_reports_that_it_is_a_stand_in(stand_in, tiny_files, tmp_path):
    part, folder = TargetPart(path=str(tiny_files / "target")), tmp_path / "grown"
    said = stand_in.write(part, folder, stand_in.Growth(96, 5, 12))
    assert "A stand-in, not a large model" in said
    assert (folder / "README.md").read_text() == said
    assert "dead weights" in json.loads((folder / "config.json").read_text())[stand_in.KEY]
    theirs = tiny_files / "target"
    names = [name for name in pretrained.TOKENIZER_FILES if (theirs / name).is_file()]
    assert len(names) >= 2
    assert all((folder / name).read_bytes() == (theirs / name).read_bytes() for name in names)
    opened = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert stand_in.largest_difference(AutoModelForCausalLM.from_pretrained(theirs), opened) < SAME


def test_what_fits_bf16_is_stored_in_it(stand_in, tiny_files, tmp_path):
    """Four times as wide, the scales of RMSNorm and of q are powers of two."""
    exact = LlamaForCausalLM.from_pretrained(tiny_files / "target").bfloat16()
    exact.save_pretrained(tmp_path / "target")
    for name in pretrained.TOKENIZER_FILES:
        if (tiny_files / "target" / name).is_file():
            (tmp_path / "target" / name).write_bytes((tiny_files / "target" / name).read_bytes())
    part = TargetPart(path=str(tmp_path / "target"))
    for width, wanted in ((96, "bfloat16"), (48, "float32")):
        stand_in.write(part, tmp_path / wanted, stand_in.Growth(width, 3, 6))
        assert json.loads((tmp_path / wanted / "config.json").read_text())["dtype"] == wanted


@pytest.mark.parametrize(
    ("growth", "more"),
    [((25, 2, 4), {}), ((48, 1, 4), {}), ((48, 2, 6), {}), ((48, 2, 4), {"attention_bias": True})],
)
def test_sizes_that_do_not_fit(stand_in, growth, more):
    with pytest.raises(ShapeError, match=r"\n  wanted: .*\n  do: choose"):
        stand_in.grow(small(True, **more), stand_in.Growth(*growth))


def test_bad_input(stand_in, tiny_files, tmp_path):
    growth = stand_in.Growth(48, 3, 6)
    (tmp_path / "there").mkdir()
    with pytest.raises(RunError, match=r"exists\n  do: remove it"):
        stand_in.write(TargetPart(path=str(tiny_files / "target")), tmp_path / "there", growth)
    GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ShapeError, match="is a `gpt2`\n  wanted: a Llama"):
        stand_in.write(TargetPart(path=str(tmp_path / "gpt2")), tmp_path / "grown", growth)
    assert not (tmp_path / "grown").exists()
