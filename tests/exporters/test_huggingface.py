"""A folder in the precision asked for, which opens with transformers alone."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastdraft.exporters.huggingface import PRECISIONS, export_huggingface, open_huggingface
from fastdraft.models.pretrained import TOKENIZER_FILES, load
from fastdraft.system.errors import ExportError


@pytest.mark.parametrize("weights", PRECISIONS)
def test_it_opens_with_transformers_alone(draft_of, tmp_path, weights):
    folder, out = draft_of(), tmp_path / "out"
    assert export_huggingface(folder, out, weights) == []
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    exact = load(folder, torch.float32)
    assert model.dtype == PRECISIONS[weights]
    assert json.loads((out / "config.json").read_text())["dtype"] == str(PRECISIONS[weights]).removeprefix("torch.")
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(PRECISIONS[weights]))
    names = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    assert len(names) >= 2
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in (*names, "generation_config.json"))
    text = "def tale(fox):  # äöü"
    assert open_huggingface(out, 97).encode(text) == AutoTokenizer.from_pretrained(folder)(text).input_ids


def test_a_weight_that_half_precision_cannot_hold(draft_of, tmp_path):
    folder = draft_of()
    model = load(folder, torch.float32)
    with torch.no_grad():
        model.model.norm.weight[3] = 7e4
    model.save_pretrained(folder)
    with pytest.raises(ExportError, match="7e\\+04, fp16 holds at most .*\n  do: --weights bf16"):
        export_huggingface(folder, tmp_path / "out", "fp16")
    export_huggingface(folder, tmp_path / "out", "bf16")
