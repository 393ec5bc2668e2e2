"""OpenVINO IR says what the draft says, in OpenVINO GenAI; symmetric weights, which the NPU wants, are symmetric."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fastdraft.config import TargetPart
from fastdraft.exporters.formats import FORMATS
from fastdraft.exporters.openvino import export_openvino, open_openvino
from fastdraft.exporters.proof import material, prove
from fastdraft.models.pretrained import TOKENIZER_FILES, folder_of, load, open_tokenizer
from fastdraft.models.token_bytes import PROBES
from fastdraft.system.errors import DiskFull, ExportError

pytest.importorskip("optimum.intel", reason="OpenVINO is not installed: pip install 'fastdraft[openvino]'")
openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'fastdraft[openvino]'")

pytestmark = pytest.mark.slow


def stored(folder) -> set[str]:
    """The types of the model's constants that are matrices."""
    model = openvino.Core().read_model(folder / "openvino_model.xml")
    found = [op for op in model.get_ops() if op.get_type_name() == "Constant" and len(op.shape) >= 2]
    return {op.get_element_type().get_type_name() for op in found if max(op.shape) >= 96 and min(op.shape[:2]) > 1}


@pytest.mark.parametrize(
    ("weights", "types"),
    [
        ("fp16", {"f16"}),
        ("int8", {"u8"}),
        ("int8_sym", {"i8"}),
        ("int4", {"u4", "u8"}),
        ("int4_sym", {"i4", "i8"}),
    ],
)
def test_it_writes_what_the_draft_writes(tmp_path, capsys, transformers_log, weights, types):
    folder, out = folder_of(TargetPart(path="demo")), tmp_path / "out"  # trained: random weights bear no rounding
    assert export_openvino(folder, out, weights) == []
    assert (capsys.readouterr().out, transformers_log) == ("", [])
    assert types <= stored(out) <= {*types, "f16", "f32"}
    names = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    assert len(names) >= 2
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in (*names, "generation_config.json"))
    expected = [file.read_text(encoding="utf-8") for file in out.glob("*.json")]
    assert len(expected) >= 4
    assert not any(str(folder) in text for text in expected), "a path of this machine goes to nobody"
    original = load(folder, torch.float32).eval()
    tried = material(
        open_tokenizer(TargetPart(path="demo")), PROBES[:8], [], 256
    )  # each prompt is read and continued: eight will do
    proof = prove(original, open_openvino(out, tried.longest_tokens), tried)
    assert proof.unlike_texts == ()
    assert proof.agreement >= FORMATS["openvino"].agreement[weights]
    assert proof.agreement > (0.99 if weights == "fp16" else 0.8)


def test_a_full_disk(draft_of, tmp_path, full_disk):
    """C++ writes the model, and does not say why it could not."""
    folder = draft_of()
    with full_disk(), pytest.raises(DiskFull, match="no space left while writing .*/out "):
        export_openvino(folder, tmp_path / "out", "fp16")
    assert list(tmp_path.iterdir()) == []


def test_a_family_that_optimum_has_no_converter_for(tmp_path):
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = AutoConfig.for_model("helium", **sizes, num_attention_heads=2, num_key_value_heads=2, head_dim=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ExportError, match="optimum-intel cannot convert the model in .*helium.*\n  do: choose another"):
        export_openvino(tmp_path / "model", tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()
