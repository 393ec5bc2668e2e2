"""Layers are chosen by the measured losses, step by step, and measuring does not change the model."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from fastdraft.data.order import IGNORED
from fastdraft.init.layer_pruning import choose_layers, keep_layers, loss_with_layers


def rebuilt(model, kept):
    """A new model with these layers, made independently of `keep_layers` by the names of the weights."""
    config = json.loads(model.config.to_json_string(use_diff=False)) | {"num_hidden_layers": len(kept)}
    if layer_types := config.get("layer_types"):
        config["layer_types"] = [layer_types[layer] for layer in kept]
    model_of_kept = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    weights = {}
    for name, weight in model.state_dict().items():
        head, _, rest = name.partition(".layers.")
        layer, _, rest = rest.partition(".")
        if not rest:
            weights[name] = weight
        elif int(layer) in kept:
            weights[f"{head}.layers.{kept.index(int(layer))}.{rest}"] = weight
    model_of_kept.load_state_dict(weights)
    return model_of_kept.eval()


def nats(model, batch):
    with torch.no_grad():
        logits_NV = model(batch.inputs_BT).logits.flatten(0, 1)
    return float(cross_entropy(logits_NV, batch.labels_BT.flatten(), ignore_index=IGNORED))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "starcoder2"])
def test_loss_with_layers_is_the_loss_of_a_model_with_only_these_layers(family, make_model, batch):
    model = make_model(family, num_hidden_layers=4)
    for kept in ([0, 1, 2, 3], [0, 2, 3], [1, 2], [3]):
        assert loss_with_layers(model, kept, batch) == pytest.approx(nats(rebuilt(model, kept), batch), abs=1e-5)
    assert nats(model, batch) == nats(rebuilt(model, [0, 1, 2, 3]), batch)  # measuring has changed nothing


@pytest.mark.parametrize("layers", [3, 4, 5])
def test_chosen_layers_are_those_of_brute_force(layers, make_model, batch):
    model = make_model(num_hidden_layers=layers, seed=layers)
    expected = list(range(layers))
    for count in range(layers - 1, 0, -1):
        losses = {removed: nats(rebuilt(model, [i for i in expected if i != removed]), batch) for removed in expected}
        expected.remove(min(losses, key=losses.__getitem__))
        assert choose_layers(model, count, batch) == tuple(expected)


def test_the_removed_layer_differs_between_models(make_model, batch):
    """Otherwise the comparison with brute force would be trivial."""
    removed = {
        ({0, 1, 2, 3} - {*choose_layers(make_model(num_hidden_layers=4, seed=s), 3, batch)}).pop() for s in range(9)
    }
    assert len(removed) >= 3


def test_losses_are_measured_again_after_each_removal(make_model, batch):
    """In some of these models, the two layers with the lowest single costs are not the two that are removed."""
    differs = []
    for seed in range(9):
        model = make_model(num_hidden_layers=5, seed=seed)
        single = {i: loss_with_layers(model, [j for j in range(5) if j != i], batch) for i in range(5)}
        cheapest = sorted(single, key=single.__getitem__)[:2]
        differs.append({*range(5)} - {*cheapest} != {*choose_layers(model, 3, batch)})
    assert any(differs)


def test_nothing_is_measured_if_all_layers_are_kept(make_model, batch):
    model = make_model()
    model.forward = None
    assert choose_layers(model, 3, batch) == (0, 1, 2)


def test_keep_layers(make_model, batch):
    model = make_model(num_hidden_layers=4)
    expected = nats(rebuilt(model, [0, 3]), batch)
    keep_layers(model, (0, 3))
    assert model.config.num_hidden_layers == 2
    assert loss_with_layers(model, [0, 1], batch) == pytest.approx(expected, abs=1e-6)
