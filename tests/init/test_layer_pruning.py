"""Which layers stay is what the measured losses say, turn by turn; the rest of the model is untouched by measuring."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from fastdraft.data.order import IGNORED
from fastdraft.init.layer_pruning import keep, layers_that_stay, loss_with


def rebuilt(model, kept):
    """A model of its own with these layers, made without our code: by names."""
    config = json.loads(model.config.to_json_string(use_diff=False)) | {"num_hidden_layers": len(kept)}
    if kinds := config.get("layer_types"):
        config["layer_types"] = [kinds[layer] for layer in kept]
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    weights = {}
    for name, weight in model.state_dict().items():
        head, _, rest = name.partition(".layers.")
        layer, _, rest = rest.partition(".")
        if not rest:
            weights[name] = weight
        elif int(layer) in kept:
            weights[f"{head}.layers.{kept.index(int(layer))}.{rest}"] = weight
    made.load_state_dict(weights)
    return made.eval()


def nats(model, batch):
    with torch.no_grad():
        logits_NV = model(batch.inputs_BT).logits.flatten(0, 1)
    return float(cross_entropy(logits_NV, batch.labels_BT.flatten(), ignore_index=IGNORED))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "starcoder2"])
def test_the_loss_without_a_layer_is_that_of_the_model_without_it(family, make_model, batch):
    model = make_model(family, num_hidden_layers=4)
    for kept in ([0, 1, 2, 3], [0, 2, 3], [1, 2], [3]):
        assert loss_with(model, kept, batch) == pytest.approx(nats(rebuilt(model, kept), batch), abs=1e-5)
    assert nats(model, batch) == nats(rebuilt(model, [0, 1, 2, 3]), batch)  # measuring has changed nothing


@pytest.mark.parametrize("layers", [3, 4, 5])
def test_the_layers_that_stay_are_those_of_brute_force(layers, make_model, batch):
    model = make_model(num_hidden_layers=layers, seed=layers)
    wanted = list(range(layers))
    for count in range(layers - 1, 0, -1):
        losses = {gone: nats(rebuilt(model, [i for i in wanted if i != gone]), batch) for gone in wanted}
        wanted.remove(min(losses, key=losses.__getitem__))
        assert layers_that_stay(model, count, batch) == tuple(wanted)


def test_not_always_the_same_layer_goes(make_model, batch):
    """Or the test above would say nothing."""
    gone = {
        ({0, 1, 2, 3} - {*layers_that_stay(make_model(num_hidden_layers=4, seed=s), 3, batch)}).pop() for s in range(9)
    }
    assert len(gone) >= 3


def test_a_second_turn_measures_anew(make_model, batch):
    """The two cheapest to lose one by one are not the cheapest two: seen on at least one of these models."""
    apart = []
    for seed in range(9):
        model = make_model(num_hidden_layers=5, seed=seed)
        once = {gone: loss_with(model, [i for i in range(5) if i != gone], batch) for gone in range(5)}
        cheapest = sorted(once, key=once.__getitem__)[:2]
        apart.append({*range(5)} - {*cheapest} != {*layers_that_stay(model, 3, batch)})
    assert any(apart)


def test_all_that_are_asked_for_stay_unmeasured(make_model, batch):
    model = make_model()
    model.forward = None
    assert layers_that_stay(model, 3, batch) == (0, 1, 2)


def test_layers_left_out_for_good(make_model, batch):
    model = make_model(num_hidden_layers=4)
    wanted = nats(rebuilt(model, [0, 3]), batch)
    keep(model, (0, 3))
    assert model.config.num_hidden_layers == 2
    assert loss_with(model, [0, 1], batch) == pytest.approx(wanted, abs=1e-6)
