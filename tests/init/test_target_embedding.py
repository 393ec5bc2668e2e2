"""The target's embedding in the draft: a rotation where nothing is cut, the directions that matter where it is."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdraft.config import TargetPart
from fastdraft.init.target_embedding import EMBEDDING_SPREAD, check_width, projected, target_rows
from fastdraft.system.errors import ShapeError, TargetError


def test_at_full_width_it_is_a_rotation_of_the_targets():
    """Every inner product keeps its share of the whole."""
    rows_VE = torch.randn(131, 17, generator=torch.Generator().manual_seed(1)) + 0.3
    found = projected(rows_VE, 17)
    ours, theirs = (rows @ rows.T / rows.square().sum() for rows in (found, rows_VE))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(found / found.norm(), rows_VE / rows_VE.norm(), atol=1e-3)


@pytest.mark.parametrize("width", [1, 5, 17])
def test_its_spread_is_what_was_measured_best(width):
    rows_VE = 40 * torch.randn(131, 17, generator=torch.Generator().manual_seed(1))
    assert projected(rows_VE, width).square().mean().sqrt() == pytest.approx(EMBEDDING_SPREAD, rel=1e-4)


def test_directions_in_which_rows_differ_come_before_what_all_fraction():
    """Five directions of 17 vary, far from the origin along a sixth: distances between rows stay."""
    generator = torch.Generator().manual_seed(1)
    basis_EE = torch.linalg.qr(torch.randn(17, 17, generator=generator)).Q
    rows_VE = torch.randn(131, 5, generator=generator) @ basis_EE[:5] + 30 * basis_EE[5]
    ours, theirs = (torch.nn.functional.pdist(rows) for rows in (projected(rows_VE, 5), rows_VE))
    torch.testing.assert_close(ours / ours.max(), theirs / theirs.max(), atol=1e-3, rtol=1e-3)


def test_a_draft_wider_than_its_target():
    check_width(17, 17)
    with pytest.raises(
        ShapeError, match=r"the draft is 19 wide, its target 17\n  wanted.*\n  do: lower draft.hidden_size"
    ):
        projected(torch.randn(31, 17), 19)


@pytest.mark.parametrize("tied", [True, False])
def test_one_tensor_is_read_of_many_files(tied, make_model, make_tokenizer, save_donor):
    """The weights lie in shards, and those without the embedding are not even sound."""
    model = make_model(tie_word_embeddings=tied)
    folder = save_donor(model, make_tokenizer["bpe"](307))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "model.embed_tokens.weight"
    save_file({name: weights.pop(name)}, folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"not yet fetched")
    files = {name: "model-00001-of-00002.safetensors"} | dict.fromkeys(weights, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert torch.equal(target_rows(TargetPart(path=str(folder))), model.get_input_embeddings().weight)


def test_damaged_weights_are_named(make_model, make_tokenizer, save_donor):
    folder = save_donor(make_model(), make_tokenizer["bpe"](307))
    (folder / "model.safetensors").write_bytes(b"not yet fetched")
    with pytest.raises(TargetError, match=r"the weights in .* cannot be loaded(.|\n)*  do: check that the download"):
        target_rows(TargetPart(path=str(folder)))


def test_pickled_weights_are_opened_as_a_model(make_model, make_tokenizer, save_donor):
    model = make_model()
    folder = save_donor(model, make_tokenizer["bpe"](307))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    rows_VE = target_rows(TargetPart(path=str(folder), allow_pickle=True))
    assert torch.equal(rows_VE, model.get_input_embeddings().weight)
