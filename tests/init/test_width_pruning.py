"""Cutting inactive channels and heads does not change the logits in any family, and neither does rotation."""

import json

import pytest
import torch

from fastdraft.init import width_pruning
from fastdraft.init.donor import with_layers
from fastdraft.init.layer_pruning import layer_stack
from fastdraft.models import draft
from fastdraft.models.shape import FAMILIES
from fastdraft.system.errors import ShapeError

CUT = sorted(name for name, family in FAMILIES.items() if family.names.kv_heads)
# Their norms subtract a mean over the width, which includes inactive channels.
SUBTRACT_MEAN = {"olmo", "starcoder2", "stablelm"}
# Their heads fill the width exactly, or a norm is taken over all heads of a query.
KEEP_HEADS = {"helium", "stablelm", "olmo2", "olmo3"}


def shape_of(model):
    return with_layers(json.loads(model.config.to_json_string(use_diff=False)), range(3))


def narrower(whole, **sizes):
    names = FAMILIES[whole.family].names
    keys = {"hidden_size": names.hidden_size, "heads": names.heads, "kv_heads": names.kv_heads}
    keys |= {"intermediate_size": names.intermediate}
    return with_layers(whole.config | {keys[name]: size for name, size in sizes.items()}, range(3))


def opened(shape, weights):
    model = draft.new(shape, 5)
    model.load_state_dict(weights)
    return model.eval()


def silence(model, whole, hidden=(), heads=(), mlp=()):
    """Make these hidden channels, heads and MLP channels inactive."""
    size = whole.head_size
    columns = [column for head in heads for column in range(head * size, (head + 1) * size)]
    for embedding in {model.get_input_embeddings(), model.get_output_embeddings()}:
        embedding.weight[:, list(hidden)] = 0
    for layer in layer_stack(model):
        for name, module in layer.named_modules():
            last = name.rpartition(".")[2]
            if last in width_pruning.OUTPUT_PROJECTIONS:
                module.weight[list(hidden)] = 0
                module.weight[:, columns if last == "o_proj" else list(mlp)] = 0
                if getattr(module, "bias", None) is not None:
                    module.bias[list(hidden)] = 0


def logits(model, batch):
    with torch.no_grad():
        return model(batch.inputs_BT).logits


def flatten_last_norm(model, family):
    """Make the last norm constant: the only weight that rotation does not keep if the output layer is tied."""
    model.base_model.norm.weight.fill_(0.7 - (family in width_pruning.GEMMA))


def test_families_that_can_be_cut():
    assert len(CUT) >= 15
    assert {*FAMILIES} - {*CUT} == {"gpt2", "gpt_neox"}
    assert {*CUT} >= width_pruning.ROTATABLE


@pytest.mark.parametrize("family", CUT)
def test_cutting_inactive_parts_does_not_change_the_logits(family, make_model, batch):
    model = make_model(family)
    whole = shape_of(model)
    hidden = () if family in SUBTRACT_MEAN | {"helium"} else (0, 5, 11, 12, 13, 23)
    heads = () if family in KEEP_HEADS else (0, 1)
    sizes = {"intermediate_size": 31} | ({"hidden_size": 18} if hidden else {})
    sizes |= {"heads": 2, "kv_heads": 1} if heads else {}
    silence(model, whole, hidden, heads, (1, 2, 3, 17, 30, 36))
    if family in width_pruning.ROTATABLE:
        flatten_last_norm(model, family)
    before = logits(model, batch)
    shape = narrower(whole, **sizes)
    cut = opened(shape, width_pruning.narrow(model, whole, shape, batch))
    assert cut.num_parameters() < model.num_parameters()
    torch.testing.assert_close(logits(cut, batch), before, atol=3e-3, rtol=1e-3)


@pytest.mark.parametrize("family", CUT)
def test_any_width_can_be_cut(family, make_model, batch):
    """The weights fit, and the logits are finite."""
    model = make_model(family)
    whole = shape_of(model)
    sizes = {"hidden_size": 12, "heads": 2, "kv_heads": 1, "intermediate_size": 13}
    shape = narrower(whole, **sizes)
    cut = opened(shape, width_pruning.narrow(model, whole, shape, batch))
    assert logits(cut, batch).isfinite().all()


@pytest.mark.parametrize("family", sorted(width_pruning.ROTATABLE))
def test_rotation_changes_nothing(family, make_model, batch):
    model = make_model(family)
    whole = shape_of(model)
    flatten_last_norm(model, family)
    before = logits(model, batch)
    width_pruning._fold_norms(model, family)
    torch.testing.assert_close(logits(model, batch), before, atol=1e-3, rtol=1e-3)
    rotation_EE = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(2))).Q
    lengths = width_pruning._KeptLengths(rotation_EE)
    with width_pruning._observe(model, lengths.add):
        logits(model, batch)
    all_indices = {"heads": torch.arange(24), "kv_heads": torch.arange(12), "mlp": torch.arange(37)}
    all_indices |= {"qkv": torch.arange(48), "gate_up": torch.arange(74)}
    cut = opened(whole, dict(width_pruning._cut_weights(model, whole, rotation_EE, lengths, [all_indices] * 3)))
    assert not torch.allclose(cut.get_input_embeddings().weight, model.get_input_embeddings().weight, atol=0.1)
    torch.testing.assert_close(logits(cut, batch), before, atol=1e-3, rtol=1e-3)


def test_directions_keep_more_than_channels(make_model, batch):
    """Of the norms' inputs at length 1, the principal directions keep more than any 12 channels."""
    model = make_model()
    statistics = width_pruning._Statistics()
    with width_pruning._observe(model, statistics.add):
        logits(model, batch)
    moment_EE = statistics.moment_EE
    kept = {}
    for rotate in (True, False):
        directions_EW = width_pruning._directions(moment_EE, 12, rotate)
        kept[rotate] = (directions_EW.T @ moment_EE @ directions_EW).trace()
    assert kept[True] > 1.1 * kept[False]
    best = max(moment_EE.diagonal()[torch.randperm(24)[:12]].sum() for _ in range(50))
    assert kept[False] >= best


def test_heads_are_kept_in_groups():
    """Three groups of two heads, with what each head adds."""
    written_KG = torch.tensor([[1.0, 9.0], [5.0, 6.0], [8.0, 0.0]])
    groups = width_pruning._kept_heads(written_KG, type("Shape", (), {"heads": 4, "kv_heads": 2}))
    assert [indices.tolist() for indices in groups] == [[0, 1, 2, 3], [0, 1]]
    thinned = width_pruning._kept_heads(written_KG, type("Shape", (), {"heads": 2, "kv_heads": 2}))
    assert [indices.tolist() for indices in thinned] == [[1, 4], [0, 2]]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_families_that_cannot_lose_width(family, make_model, batch):
    more = {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 37} if family == "gpt2" else {}
    model = make_model(family, **more)
    whole = shape_of(model)
    shape = whole.model_copy(update={"config": whole.config | {FAMILIES[family].names.intermediate: 13}})
    with pytest.raises(ShapeError, match=f"a `{family}` .* width cannot be cut\n  do: "):
        width_pruning.narrow(model, whole, shape, batch)
