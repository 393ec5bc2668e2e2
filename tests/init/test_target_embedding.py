"""The projection of the target's embedding is a rotation at full width, otherwise it keeps principal directions."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdraft.config import TargetPart
from fastdraft.init.target_embedding import EMBEDDING_RMS, check_width, project_rows, read_target_embedding
from fastdraft.system.errors import ShapeError, TargetError


def test_at_full_width_the_projection_is_a_rotation():
    """All inner products are kept up to one scale."""
    rows_VE = torch.randn(131, 17, generator=torch.Generator().manual_seed(1)) + 0.3
    projected = project_rows(rows_VE, 17)
    products, expected = (rows @ rows.T / rows.square().sum() for rows in (projected, rows_VE))
    torch.testing.assert_close(products, expected, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(projected / projected.norm(), rows_VE / rows_VE.norm(), atol=1e-3)


@pytest.mark.parametrize("width", [1, 5, 17])
def test_root_mean_square_of_the_projection(width):
    rows_VE = 40 * torch.randn(131, 17, generator=torch.Generator().manual_seed(1))
    assert project_rows(rows_VE, width).square().mean().sqrt() == pytest.approx(EMBEDDING_RMS, rel=1e-4)


def test_directions_in_which_rows_differ_come_before_their_common_direction():
    """Rows vary in five of 17 directions and are far from the origin along a sixth: their distances are kept."""
    generator = torch.Generator().manual_seed(1)
    basis_EE = torch.linalg.qr(torch.randn(17, 17, generator=generator)).Q
    rows_VE = torch.randn(131, 5, generator=generator) @ basis_EE[:5] + 30 * basis_EE[5]
    distances, expected = (torch.nn.functional.pdist(rows) for rows in (project_rows(rows_VE, 5), rows_VE))
    torch.testing.assert_close(distances / distances.max(), expected / expected.max(), atol=1e-3, rtol=1e-3)


def test_a_draft_wider_than_its_target():
    check_width(17, 17)
    with pytest.raises(ShapeError, match=r"19 wide, its target 17\n  wanted.*\n  do: "):
        project_rows(torch.randn(31, 17), 19)


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_embedding_is_read_from_shards(tied, make_model, make_tokenizer, save_donor):
    """The shard without the embedding is damaged, and the embedding is read nevertheless."""
    model = make_model(tie_word_embeddings=tied)
    folder = save_donor(model, make_tokenizer["bpe"](307))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "model.embed_tokens.weight"
    save_file({name: weights.pop(name)}, folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"not yet fetched")
    files = {name: "model-00001-of-00002.safetensors"} | dict.fromkeys(weights, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert torch.equal(read_target_embedding(TargetPart(path=str(folder))), model.get_input_embeddings().weight)


def test_damaged_weights(make_model, make_tokenizer, save_donor):
    folder = save_donor(make_model(), make_tokenizer["bpe"](307))
    (folder / "model.safetensors").write_bytes(b"not yet fetched")
    with pytest.raises(TargetError, match=r"model.safetensors cannot be read(.|\n)*  do: "):
        read_target_embedding(TargetPart(path=str(folder)))


def test_pickled_weights_are_opened_as_a_model(make_model, make_tokenizer, save_donor):
    model = make_model()
    folder = save_donor(model, make_tokenizer["bpe"](307))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    rows_VE = read_target_embedding(TargetPart(path=str(folder), allow_pickle=True))
    assert torch.equal(rows_VE, model.get_input_embeddings().weight)
