"""What carries nothing can be cut without a trace, in every family; rotation alone changes nothing."""

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
# Of these a mean over the width is subtracted: channels that carry nothing are part of it.
MEAN_TAKEN = {"olmo", "starcoder2", "stablelm"}
# Their heads fill the width exactly, or the length of a query is taken over all heads.
HEADS_STAY = {"helium", "stablelm", "olmo2", "olmo3"}


def shape_of(model):
    return with_layers(json.loads(model.config.to_json_string(use_diff=False)), range(3))


def narrower(own, **sizes):
    names = FAMILIES[own.family].names
    keys = {"hidden_size": names.hidden_size, "heads": names.heads, "kv_heads": names.kv_heads}
    keys |= {"intermediate_size": names.intermediate}
    return with_layers(own.config | {keys[name]: size for name, size in sizes.items()}, range(3))


def opened(shape, weights):
    model = draft.new(shape, 5)
    model.load_state_dict(weights)
    return model.eval()


def silence(model, own, hidden=(), heads=(), mlp=()):
    """Let nothing pass through these hidden channels, heads and MLP channels; what is left is scattered."""
    size = own.head_size
    columns = [place for head in heads for place in range(head * size, (head + 1) * size)]
    for embedding in {model.get_input_embeddings(), model.get_output_embeddings()}:
        embedding.weight[:, list(hidden)] = 0
    for layer in layer_stack(model):
        for name, module in layer.named_modules():
            last = name.rpartition(".")[2]
            if last in width_pruning.WRITE_BACK:
                module.weight[list(hidden)] = 0
                module.weight[:, columns if last == "o_proj" else list(mlp)] = 0
                if getattr(module, "bias", None) is not None:
                    module.bias[list(hidden)] = 0


def logits(model, batch):
    with torch.no_grad():
        return model(batch.inputs_BT).logits


def plain_last_norm(model, family):
    """The only weight that a turned model cannot keep where the output layer is the embedding."""
    model.base_model.norm.weight.fill_(0.7 - (family in width_pruning.OFFSET))


def test_every_family_is_known():
    assert len(CUT) >= 15
    assert {*FAMILIES} - {*CUT} == {"gpt2", "gpt_neox"}
    assert {*CUT} >= width_pruning.TURNED


@pytest.mark.parametrize("family", CUT)
def test_what_carries_nothing_is_cut_without_a_trace(family, make_model, batch):
    model = make_model(family)
    own = shape_of(model)
    hidden = () if family in MEAN_TAKEN | {"helium"} else (0, 5, 11, 12, 13, 23)
    heads = () if family in HEADS_STAY else (0, 1)
    sizes = {"intermediate_size": 31} | ({"hidden_size": 18} if hidden else {})
    sizes |= {"heads": 2, "kv_heads": 1} if heads else {}
    silence(model, own, hidden, heads, (1, 2, 3, 17, 30, 36))
    if family in width_pruning.TURNED:
        plain_last_norm(model, family)
    before = logits(model, batch)
    shape = narrower(own, **sizes)
    made = opened(shape, width_pruning.narrowed(model, own, shape, batch))
    assert made.num_parameters() < model.num_parameters()
    torch.testing.assert_close(logits(made, batch), before, atol=3e-3, rtol=1e-3)


@pytest.mark.parametrize("family", CUT)
def test_any_width_can_be_cut(family, make_model, batch):
    """Silenced or not: the weights fit, and are numbers."""
    model = make_model(family)
    own = shape_of(model)
    sizes = {"hidden_size": 12, "heads": 2, "kv_heads": 1, "intermediate_size": 13}
    shape = narrower(own, **sizes)
    made = opened(shape, width_pruning.narrowed(model, own, shape, batch))
    assert logits(made, batch).isfinite().all()


@pytest.mark.parametrize("family", sorted(width_pruning.TURNED))
def test_rotation_changes_nothing(family, make_model, batch):
    model = make_model(family)
    own = shape_of(model)
    plain_last_norm(model, family)
    before = logits(model, batch)
    width_pruning._fold(model, family)
    torch.testing.assert_close(logits(model, batch), before, atol=1e-3, rtol=1e-3)
    turn_EE = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(2))).Q
    lengths = width_pruning._Lengths(turn_EE)
    with width_pruning._hooked(model, lengths.note):
        logits(model, batch)
    every = {"heads": torch.arange(24), "kv_heads": torch.arange(12), "mlp": torch.arange(37)}
    every |= {"qkv": torch.arange(48), "gate_up": torch.arange(74)}
    made = opened(own, dict(width_pruning._cut(model, own, turn_EE, lengths, [every] * 3)))
    assert not torch.allclose(made.get_input_embeddings().weight, model.get_input_embeddings().weight, atol=0.1)
    torch.testing.assert_close(logits(made, batch), before, atol=1e-3, rtol=1e-3)


def test_directions_keep_more_than_channels(make_model, batch):
    """What the norms see at length 1, of it the share along what is kept: no 12 directions have more."""
    model = make_model()
    seen = width_pruning._Seen()
    with width_pruning._hooked(model, seen.note):
        logits(model, batch)
    moment = seen.moment_EE
    shares = {
        turn: (d.T @ moment @ d).trace()
        for turn in (True, False)
        for d in [width_pruning._directions(moment, 12, turn)]
    }
    assert shares[True] > 1.1 * shares[False]
    best = max(moment.diagonal()[torch.randperm(24)[:12]].sum() for _ in range(50))
    assert shares[False] >= best


def test_heads_stay_in_whole_groups():
    """Three groups of two heads, by what each adds."""
    written_KG = torch.tensor([[1.0, 9.0], [5.0, 6.0], [8.0, 0.0]])
    whole = width_pruning._heads_that_stay(written_KG, type("Shape", (), {"heads": 4, "kv_heads": 2}))
    assert [found.tolist() for found in whole] == [[0, 1, 2, 3], [0, 1]]
    thinned = width_pruning._heads_that_stay(written_KG, type("Shape", (), {"heads": 2, "kv_heads": 2}))
    assert [found.tolist() for found in thinned] == [[1, 4], [0, 2]]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_families_that_mix_their_heads_keep_their_width(family, make_model, batch):
    more = {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 37} if family == "gpt2" else {}
    model = make_model(family, **more)
    own = shape_of(model)
    shape = own.model_copy(update={"config": own.config | {FAMILIES[family].names.intermediate: 13}})
    with pytest.raises(
        ShapeError, match=f"of a `{family}` layers can be left out.*\n  do: leave out draft.hidden_size"
    ):
        width_pruning.narrowed(model, own, shape, batch)
